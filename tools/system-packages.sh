#!/bin/sh
# System packages: there already, installed where this user may, else named in one line.
#   tools/system-packages.sh            all that `make test` needs
#   tools/system-packages.sh runtime    the same without the browser that the report's test opens; with Python if there is none
# FFCV is built with these, and torch.compile and Triton call the compiler.
set -u
packages="g++ pkg-config libopencv-dev libturbojpeg0-dev"
case "${1-tests}" in
tests)
    packages="$packages chromium"
    program=chromium
    ;;
runtime)
    command -v python3 >/dev/null || packages="$packages python3-dev python3-venv"
    program=python3
    ;;
*)
    echo "usage: $0 [runtime]" >&2
    exit 2
    ;;
esac
if command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg &&
    command -v "$program" >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing system packages: $packages"
    # shellcheck disable=SC2086 # a list
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null && exit 0
fi
echo "system packages are missing; install them and repeat: sudo apt-get install $packages" >&2
exit 1
