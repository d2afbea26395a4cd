"""planes_to_rgb on the CPU: 32 pixels of a row at a time, and those at the left and right edge one by one.

The blocks are vectors in LLVM's own language. From loops LLVM makes vectors of eight 32-bit sums, and stores three
interleaved channels byte by byte: 1.2 ns per pixel where blocks take 0.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from saga_fast.kernels._dispatch import Array, NDArray, convert_like, to_numpy
from saga_fast.kernels._jit import PARALLEL_LOCK, intrinsic, jit, prange
from saga_fast.kernels.planes_to_rgb.reference import num_bytes

COLUMNS = 16
"""Columns of colour of a block, which has twice as many pixels."""

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def _all(kind: Any, value: int) -> Any:
    """A vector of the type of ``kind`` with one value in all lanes."""
    return ir.Constant(kind, [value] * kind.count)


def _shuffle(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _upsampled(builder: Any, columns: Any) -> Any:
    """Two pixels' colour per column, less 128, in 16 bits: from the sums of rows of three adjacent columns."""
    before, here, after = columns
    triple = builder.mul(here, _all(here.type, 3))

    def blend(side: Any, rounding: int) -> Any:
        total = builder.add(builder.add(triple, side), _all(here.type, rounding))
        return builder.ashr(total, _all(here.type, 4))

    lanes = [lane // 2 + COLUMNS * (lane % 2) for lane in range(2 * COLUMNS)]
    wide = _shuffle(builder, blend(before, 8), blend(after, 7), lanes)
    return builder.sub(wide, _all(wide.type, 128))


def _colours(builder: Any, luma: Any, blue: Any, red: Any) -> list[Any]:
    """Red, green and blue in 16 bits, not yet clamped to a byte.

    Equal to the 32-bit sums of the reference, as libjpeg-turbo's vectors are: of the factors 1.402 and 1.772 the whole
    colours are added apart, and the rest, .402 and -.228, is multiplied by the doubled colour and then halved.
    """
    wide = ir.VectorType(_I32, luma.type.count)

    def times(colour: Any, factor: int) -> Any:
        return builder.mul(builder.sext(colour, wide), _all(wide, factor))

    def high_half(product: Any) -> Any:
        return builder.trunc(builder.ashr(product, _all(wide, 16)), luma.type)

    def rounded(colour: Any, factor: int) -> Any:
        product = high_half(times(builder.add(colour, colour), factor))
        return builder.ashr(builder.add(product, _all(luma.type, 1)), _all(luma.type, 1))

    mixed = builder.add(builder.add(times(blue, -22554), times(red, 18734)), _all(wide, 32768))
    return [
        builder.add(builder.add(luma, red), rounded(red, 26345)),
        builder.add(builder.sub(luma, red), high_half(mixed)),
        builder.add(builder.add(luma, builder.add(blue, blue)), rounded(blue, -14942)),
    ]


def _byte(builder: Any, value: Any) -> Any:
    """16-bit values clamped to a byte."""
    low, high = _all(value.type, 0), _all(value.type, 255)
    value = builder.select(builder.icmp_signed(">", value, low), value, low)
    value = builder.select(builder.icmp_signed("<", value, high), value, high)
    return builder.trunc(value, ir.VectorType(_I8, value.type.count))


@intrinsic
def _block(_context: Any, planes: Any, pixel: Any, near: Any, far: Any, to_red: Any, pixels: Any) -> Any:
    """Write 32 pixels of a row. Bounds are not checked.

    Args:
        planes: (bytes,) uint8, C-contiguous.
        pixel: the first pixel's number in the image, which is the position of its brightness.
        near, far: positions of its blue in the nearer and the farther row of colours, which have a column before it
            and 16 behind it.
        to_red: bytes from a blue to its red.
        pixels: (bytes,) uint8, C-contiguous, written.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = {i: context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 5)}

        def load(position: Any, count: int) -> Any:
            source = builder.gep(arrays[0].data, [position])
            levels = builder.load(builder.bitcast(source, ir.VectorType(_I8, count).as_pointer()), align=1)
            return builder.zext(levels, ir.VectorType(_I16, count))

        def sums(near: Any, far: Any) -> list[Any]:
            """Of the column before each, the column itself, and the one behind it."""
            shifts = [near.type(shift) for shift in (-1, 0, 1)]
            nearer = [load(builder.add(near, shift), COLUMNS) for shift in shifts]
            farther = [load(builder.add(far, shift), COLUMNS) for shift in shifts]
            triples = [builder.mul(row, _all(row.type, 3)) for row in nearer]
            return [builder.add(triple, row) for triple, row in zip(triples, farther, strict=True)]

        blue = _upsampled(builder, sums(args[2], args[3]))
        red = _upsampled(builder, sums(builder.add(args[2], args[4]), builder.add(args[3], args[4])))
        channels = [_byte(builder, c) for c in _colours(builder, load(args[1], 2 * COLUMNS), blue, red)]
        lanes = 2 * COLUMNS
        pair = _shuffle(builder, channels[0], channels[1], list(range(2 * lanes)))
        third = _shuffle(builder, channels[2], channels[2], list(range(2 * lanes)))
        rgb = _shuffle(builder, pair, third, [lane // 3 + lanes * (lane % 3) for lane in range(3 * lanes)])
        target = builder.gep(arrays[5].data, [builder.mul(args[1], args[1].type(3))])
        builder.store(rgb, builder.bitcast(target, rgb.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(planes, pixel, near, far, to_red, pixels), generate


@jit()
def _upsample(plane: Any, y: Any, x: Any) -> Any:
    """The colour of one pixel, less 128."""
    rows, columns = plane.shape
    if columns <= 2:
        return np.int64(plane[y // 2, x // 2]) - 128
    far_y = max(min(y // 2 + 2 * (y % 2) - 1, rows - 1), 0)
    far_x = max(min(x // 2 + 2 * (x % 2) - 1, columns - 1), 0)
    here = 3 * np.int64(plane[y // 2, x // 2]) + np.int64(plane[far_y, x // 2])
    beside = 3 * np.int64(plane[y // 2, far_x]) + np.int64(plane[far_y, far_x])
    return ((3 * here + beside + 8 - x % 2) >> 4) - 128


@jit()
def _pixels(luma: Any, colours: Any, y: Any, left: Any, right: Any, pixels: Any) -> None:
    """Write columns ``left`` to ``right`` of row ``y`` one by one."""
    for x in range(left, right):
        level = np.int64(luma[y, x])
        blue, red = _upsample(colours[0], y, x), _upsample(colours[1], y, x)
        pixels[y, x, 0] = min(max(level + ((91881 * red + 32768) >> 16), 0), 255)
        pixels[y, x, 1] = min(max(level + ((-22554 * blue - 46802 * red + 32768) >> 16), 0), 255)
        pixels[y, x, 2] = min(max(level + ((116130 * blue + 32768) >> 16), 0), 255)


@jit()
def planes_to_rgb_image(planes: Any, pixels: Any, top: Any, bottom: Any, left: Any, right: Any) -> None:
    """Write the pixels of a window of one image; one column beside it may be written too, and no others.

    The engines' decoding threads call it.

    Args:
        planes: (bytes,) uint8, see :mod:`saga_fast.kernels.planes_to_rgb`.
        pixels: (H, W, 3) uint8, C-contiguous.
        top, bottom, left, right: int, the window's rows and columns, within the image.
    """
    height, width = pixels.shape[0], pixels.shape[1]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    luma = planes[: height * width].reshape(height, width)
    colours = planes[height * width :].reshape(2, rows, columns)
    flat = pixels.reshape(-1)
    begin, end = max(left // 2, 1), min((right + 1) // 2, columns - 1)
    in_blocks = end - begin >= COLUMNS
    first, last = (2 * begin, 2 * end) if in_blocks else (right, right)
    for y in range(top, bottom):
        near = height * width + y // 2 * columns
        far = height * width + max(min(y // 2 + 2 * (y % 2) - 1, rows - 1), 0) * columns
        if in_blocks:
            for x in range(begin, end - COLUMNS + 1, COLUMNS):
                _block(planes, y * width + 2 * x, near + x, far + x, rows * columns, flat)
            if (end - begin) % COLUMNS:
                x = end - COLUMNS  # overlaps the block before it
                _block(planes, y * width + 2 * x, near + x, far + x, rows * columns, flat)
        _pixels(luma, colours, y, left, first, pixels)
        _pixels(luma, colours, y, last, right, pixels)


@jit(parallel=True)
def _planes_to_rgb(planes: Any, sizes: Any, stored: Any, written: Any, pixels: Any) -> None:
    """Convert all images; ``stored`` and ``written`` (B + 1,) int64 are where they begin in planes and pixels."""
    for n in prange(sizes.shape[0]):
        height, width = sizes[n, 0], sizes[n, 1]
        image = pixels[written[n] : written[n + 1]].reshape(height, width, 3)
        planes_to_rgb_image(planes[stored[n] : stored[n + 1]], image, 0, height, 0, width)


def planes_to_rgb_numba(planes: Array, sizes: NDArray) -> Any:
    """See :func:`saga_fast.kernels.planes_to_rgb`."""
    stored, written = (np.append(0, sums.cumsum()) for sums in (num_bytes(*sizes.T), 3 * sizes.prod(1)))
    pixels = np.empty(written[-1], np.uint8)
    with PARALLEL_LOCK:
        _planes_to_rgb(np.ascontiguousarray(to_numpy(planes)), sizes, stored, written, pixels)
    return convert_like(pixels, planes)
