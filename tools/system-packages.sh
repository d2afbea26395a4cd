#!/bin/sh
# FFCV's system packages: there already, installed where this user may, else named in one line.
set -u
packages="g++ pkg-config libopencv-dev libturbojpeg0-dev"
if command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing FFCV's system packages: $packages"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null && exit 0
fi
echo "FFCV needs system packages; install them and repeat: sudo apt-get install $packages" >&2
exit 1
