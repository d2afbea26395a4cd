#!/bin/sh
# FFCV's system packages, and the browser that the report's test opens: there already, installed where this user may,
# else named in one line.
set -u
packages="g++ pkg-config libopencv-dev libturbojpeg0-dev chromium"
if command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg &&
    command -v chromium >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing system packages: $packages"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null && exit 0
fi
echo "FFCV and the tests need system packages; install them and repeat: sudo apt-get install $packages" >&2
exit 1
