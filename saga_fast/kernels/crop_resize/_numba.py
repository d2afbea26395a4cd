"""crop_resize on the CPU: two separable float32 passes per view, the cheaper one first.

A window at least as high as the view is resized vertically first. That pass sums whole rows of the stored image
(3 * width contiguous bytes), which vectorises, and the horizontal pass then runs on ``size`` rows instead of
``height``. A lower window is resized horizontally first, on its ``height`` rows. The horizontal pass reads pixels at
irregular positions, so it treats a pixel as one vector of four floats: its three channels and an ignored fourth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from saga_fast.kernels._dispatch import Array, convert_like, to_numpy
from saga_fast.kernels._jit import FAST_SUMS, PARALLEL_LOCK, intrinsic, jit, prange

_HALF = np.float32(0.5)


@intrinsic
def _pixel(_context: Any, line: Any, begin: Any, weights: Any, row: Any, taps: Any, out: Any, to: Any) -> Any:
    """Compute out[to : to + 4] = sum_k weights[row, k] * line[begin + 3 k : begin + 3 k + 4] for k < taps.

    LLVM does not vectorise a loop over three channels. Two views of a photograph take 415 us with such a loop, 340 us
    with vectors of four, and 260 us where a literal ``taps`` unrolls the sum. Bounds are not checked: line and out are
    float32, C-contiguous and hold one value more than their last pixel; weights (n, >= taps) is contiguous too.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        four, i32 = ir.VectorType(ir.FloatType(), 4), ir.IntType(32)
        arrays = {i: context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 5)}
        columns = builder.extract_value(arrays[2].shape, 1)
        pixel = builder.gep(arrays[0].data, [args[1]])
        weight = builder.gep(arrays[2].data, [builder.mul(args[3], columns)])

        def term(k: Any) -> Any:
            source = builder.gep(pixel, [builder.mul(k, k.type(3))])
            values = builder.load(builder.bitcast(source, four.as_pointer()), align=4)
            lane = builder.insert_element(four(ir.Undefined), builder.load(builder.gep(weight, [k])), i32(0))
            lanes = builder.shuffle_vector(lane, four(ir.Undefined), ir.VectorType(i32, 4)([0] * 4))
            return builder.fmul(values, lanes, flags=("contract",))

        if isinstance(taps, types.IntegerLiteral):
            total = term(args[4].type(0))
            for k in range(1, taps.literal_value):
                total = builder.fadd(total, term(args[4].type(k)), flags=("contract",))
        else:
            total_at = cgutils.alloca_once_value(builder, four([0.0] * 4))  # type: ignore[no-untyped-call]
            with cgutils.for_range(builder, args[4]) as loop:
                builder.store(builder.fadd(builder.load(total_at), term(loop.index), flags=("contract",)), total_at)
            total = builder.load(total_at)
        target = builder.gep(arrays[5].data, [args[6]])
        builder.store(total, builder.bitcast(target, four.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(line, begin, weights, row, taps, out, to), generate


@jit()
def _taps(length: Any, size: Any) -> Any:
    """Return first pixel, number of taps and weights (size, taps) of the antialiased triangle filter."""
    scale = length / size
    support = max(scale, 1.0)
    first, count = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.zeros((size, np.int64(np.ceil(support)) * 2 + 1), np.float32)
    for i in range(size):
        centre = (i + 0.5) * scale
        low: Any = max(np.int64(centre - support + 0.5), 0)
        high: Any = min(np.int64(centre + support + 0.5), length)
        total = 0.0
        for k in range(high - low):
            total += max(1.0 - abs(low + k + 0.5 - centre) / support, 0.0)
        for k in range(high - low):
            weights[i, k] = max(1.0 - abs(low + k + 0.5 - centre) / support, 0.0) / total
        first[i], count[i] = low, high - low
    return first, count, weights


@jit()
def _equal_taps(length: Any, size: Any) -> Any:
    """Return first, taps and weights (size, taps) of :func:`_taps`, padded to one number of taps.

    The added weights are zero. An image narrower than the filter gets taps beyond its end, with weight zero.
    """
    first, count, weights = _taps(length, size)
    taps = max(count.max(), 2)
    padded = np.zeros((size, taps), np.float32)
    for i in range(size):
        start = max(min(first[i], length - taps), 0)
        shift = first[i] - start
        for k in range(count[i]):
            padded[i, shift + k] = weights[i, k]
        first[i] = start
    return first, taps, padded


@jit()
def _horizontal(line: Any, first: Any, taps: Any, weights: Any, out: Any) -> None:
    """Resize one row from 3 * width to 3 * size values. Two to five taps are literals, which unrolls _pixel.

    The fourth lane of a pixel falls on the red of the next one, which is written afterwards. Both buffers have room for
    the fourth lane of the last pixel.
    """
    if taps == 2:
        for x in range(first.shape[0]):
            _pixel(line, 3 * first[x], weights, x, 2, out, 3 * x)
    elif taps == 3:
        for x in range(first.shape[0]):
            _pixel(line, 3 * first[x], weights, x, 3, out, 3 * x)
    elif taps == 4:
        for x in range(first.shape[0]):
            _pixel(line, 3 * first[x], weights, x, 4, out, 3 * x)
    elif taps == 5:
        for x in range(first.shape[0]):
            _pixel(line, 3 * first[x], weights, x, 5, out, 3 * x)
    else:
        for x in range(first.shape[0]):
            _pixel(line, 3 * first[x], weights, x, taps, out, 3 * x)


@jit(fastmath=FAST_SUMS)
def _vertical(rows: Any, first: Any, taps: Any, begin: Any, end: Any, weights: Any, out: Any) -> None:
    """Store the weighted sum of rows[first : first + taps, begin:end] at the start of ``out``.

    Two taps per sweep. Rows are sliced one by one: Numba then knows that their values are adjacent, unlike those of a
    2D slice. 224 rows of two taps take 23 us instead of 70 us.
    """
    length = end - begin
    above = rows[first, begin:end]
    if taps == 1:
        for x in range(length):
            out[x] = weights[0] * np.float32(above[x])
        return
    below = rows[first + 1, begin:end]
    for x in range(length):
        out[x] = weights[0] * np.float32(above[x]) + weights[1] * np.float32(below[x])
    for k in range(2, taps - 1, 2):
        above, below = rows[first + k, begin:end], rows[first + k + 1, begin:end]
        for x in range(length):
            out[x] += weights[k] * np.float32(above[x]) + weights[k + 1] * np.float32(below[x])
    if taps % 2 == 1:
        above = rows[first + taps - 1, begin:end]
        for x in range(length):
            out[x] += weights[taps - 1] * np.float32(above[x])


@jit()
def _store(line: Any, out: Any) -> None:
    """Round to the nearest level. Weights are positive and sum to 1, so all values are in [0, 255]."""
    for x in range(out.shape[0]):
        out[x] = np.uint8(np.int32(line[x] + _HALF))


@jit()
def _crop_resize_view(image: Any, top: Any, left: Any, height: Any, width: Any, out: Any) -> None:
    """Crop and resize one view: image (H, 3 W) uint8, out (size, 3 size) uint8."""
    size = out.shape[0]
    y_first, y_count, y_weights = _taps(height, size)
    x_first, x_taps, x_weights = _equal_taps(width, size)
    begin, end = 3 * left, 3 * (left + width)
    line = np.empty(3 * size + 1, np.float32)
    wide = np.zeros(3 * max(width, x_taps) + 1, np.float32)  # zeros: values with weight zero must be finite
    if height >= size:
        for y in range(size):
            _vertical(image, top + y_first[y], y_count[y], begin, end, y_weights[y], wide)
            _horizontal(wide, x_first, x_taps, x_weights, line)
            _store(line, out[y])
    else:
        rows = np.empty((height, 3 * size + 1), np.float32)
        for i in range(height):
            source = image[top + i, begin:end]
            for x in range(source.shape[0]):
                wide[x] = np.float32(source[x])
            _horizontal(wide, x_first, x_taps, x_weights, rows[i])
        for y in range(size):
            _vertical(rows, y_first[y], y_count[y], 0, 3 * size, y_weights[y], line)
            _store(line, out[y])


@jit()
def crop_resize_image(image: Any, windows: Any, sides: Any, out: Any) -> None:
    """Crop and resize all views of one image on the calling thread, without the GIL.

    The engines' decoding threads call it. image (H, W, 3) uint8 C-contiguous; windows (V, 4) int32, inside the image;
    sides (V,) int64 of the views; out uint8: the views (side, side, 3) one after the other.
    """
    flat = image.reshape(image.shape[0], image.shape[1] * 3)
    begin: Any = 0
    for v in range(windows.shape[0]):
        top, left, height, width = windows[v]
        size = sides[v]
        view = out[begin : begin + 3 * size * size].reshape(size, size * 3)
        _crop_resize_view(flat, np.int64(top), np.int64(left), np.int64(height), np.int64(width), view)
        begin += 3 * size * size


@jit()
def crop_resize_images(memory: Any, begins: Any, sizes: Any, chosen: Any, windows: Any, sides: Any, views: Any) -> None:
    """Crop and resize all views of n images that lie in one block of memory, see :func:`crop_resize_image`.

    memory (bytes,) uint8; begins (n,) int64, where each image begins; sizes (n, 2) int64; chosen (n,) bool, the images
    to crop; windows (n, V, 4) int32; views (n, view_bytes) uint8.
    """
    for n in range(begins.shape[0]):
        if chosen[n]:
            height, width = sizes[n, 0], sizes[n, 1]
            image = memory[begins[n] : begins[n] + 3 * height * width].reshape(height, width, 3)
            crop_resize_image(image, windows[n], sides, views[n])


@jit(parallel=True)
def _crop_resize_batch(images: Any, windows: Any, out: Any) -> None:
    views = windows.shape[1]
    sides = np.full(1, out.shape[2], np.int64)
    for n in prange(images.shape[0] * views):
        image, v = n // views, n % views
        crop_resize_image(images[image], windows[image, v : v + 1], sides, out[image, v].reshape(-1))


def crop_resize_numba(images: Array, windows: Array, size: int, flip: Array | None) -> Any:
    """See :func:`saga_fast.kernels.crop_resize`; images (B, H, W, 3), windows (B, V, 4), flip (B, V)."""
    views = np.empty((*windows.shape[:2], size, size, 3), np.uint8)
    with PARALLEL_LOCK:
        _crop_resize_batch(
            np.ascontiguousarray(to_numpy(images)), np.ascontiguousarray(to_numpy(windows), np.int32), views
        )
    if flip is not None:
        mirrored = to_numpy(flip, np.bool_)
        views[mirrored] = views[mirrored][:, :, ::-1]
    return convert_like(views, images)
