"""The per-pixel steps of augment as Triton functions.

r, g and b are float32 in [0, 1], of any shape; p points to the parameters of one view.
"""

from __future__ import annotations

import triton.language as tl

from saga_fast.kernels._triton import jit
from saga_fast.kernels.sample_photometrics import fields

ORDER = tl.constexpr(fields.ORDER)
BRIGHTNESS = tl.constexpr(fields.BRIGHTNESS)
CONTRAST = tl.constexpr(fields.CONTRAST)
SATURATION = tl.constexpr(fields.SATURATION)
HUE = tl.constexpr(fields.HUE)
GRAYSCALE = tl.constexpr(fields.GRAYSCALE)


@jit
def gray(r: tl.tensor, g: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Return the grey value with torchvision's weights (ITU-R 601-2)."""
    return 0.2989 * r + 0.587 * g + 0.114 * b


@jit
def _clamp(x: tl.tensor) -> tl.tensor:
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@jit
def _hsv_channel(n: tl.constexpr, hue: tl.tensor, value: tl.tensor, chroma: tl.tensor) -> tl.tensor:
    """Return value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + hue) mod 6: HSV to RGB, no branches."""
    k = n + hue
    k = tl.where(k >= 6.0, k - 6.0, k)
    return value - chroma * _clamp(tl.minimum(k, 4.0 - k))


@jit
def _shift_hue(r: tl.tensor, g: tl.tensor, b: tl.tensor, turns: tl.tensor) -> tl.tensor:
    """Rotate the hue by ``turns``. ``hue`` is in sixths of a turn, from 0 to 6."""
    value = tl.maximum(tl.maximum(r, g), b)
    chroma = value - tl.minimum(tl.minimum(r, g), b)
    scale = tl.where(chroma > 0.0, 1.0 / tl.where(chroma > 0.0, chroma, 1.0), 0.0)
    hue = 4.0 + (r - g) * scale
    hue = tl.where(value == g, 2.0 + (b - r) * scale, hue)
    hue = tl.where(value == r, (g - b) * scale, hue)
    hue += 6.0 * turns
    hue = tl.where(hue < 0.0, hue + 6.0, hue)
    hue = tl.where(hue >= 6.0, hue - 6.0, hue)
    return (
        _hsv_channel(5.0, hue, value, chroma),
        _hsv_channel(3.0, hue, value, chroma),
        _hsv_channel(1.0, hue, value, chroma),
    )


@jit
def jitter(r: tl.tensor, g: tl.tensor, b: tl.tensor, p: tl.tensor, steps: tl.tensor, mean: tl.tensor) -> tl.tensor:
    """Apply the first ``steps`` of the view's four jitter steps; contrast pivots on ``mean``."""
    for i in range(steps):
        step = tl.load(p + ORDER + i)
        if step == 0.0:
            f = tl.load(p + BRIGHTNESS)
            r, g, b = _clamp(f * r), _clamp(f * g), _clamp(f * b)
        elif step == 1.0:
            f = tl.load(p + CONTRAST)
            if f != 1.0:  # pass 1 computes no mean for contrast 1
                offset = (1.0 - f) * mean
                r, g, b = _clamp(f * r + offset), _clamp(f * g + offset), _clamp(f * b + offset)
        elif step == 2.0:
            f = tl.load(p + SATURATION)
            offset = (1.0 - f) * gray(r, g, b)
            r, g, b = _clamp(f * r + offset), _clamp(f * g + offset), _clamp(f * b + offset)
        else:
            turns = tl.load(p + HUE)
            if turns != 0.0:
                r, g, b = _shift_hue(r, g, b, turns)
    return r, g, b


@jit
def before_contrast(r: tl.tensor, g: tl.tensor, b: tl.tensor, p: tl.tensor) -> tl.tensor:
    """Return the grey value before contrast, after greyscale-first and the earlier jitter steps."""
    if tl.load(p + GRAYSCALE) == 2.0:
        luma = gray(r, g, b)
        r, g, b = luma, luma, luma
    steps = 0
    for i in tl.static_range(1, 4):
        steps += i * (tl.load(p + ORDER + i) == 1.0).to(tl.int32)
    r, g, b = jitter(r, g, b, p, steps, 0.0)
    return gray(r, g, b)
