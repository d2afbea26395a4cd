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
def _shift_hue(r: tl.tensor, g: tl.tensor, b: tl.tensor, turns: tl.tensor) -> tl.tensor:
    """Rotate the hue by ``turns``: HSV without a division, because hue and the results are linear in chroma.

    ``hue`` is chroma times sixths of a turn, from -1 to 5. A channel is value - chroma * clamp(2 - d, 0, 1). d is
    the distance on the circle of six sixths from the hue where the channel is smallest: 3 for r, 5 for g, 1 for b.
    """
    value = tl.maximum(tl.maximum(r, g), b)
    least = tl.minimum(tl.minimum(r, g), b)
    chroma = value - least
    hue = tl.where(value == g, 2.0 * chroma + (b - r), 4.0 * chroma + (r - g))
    hue = tl.where(value == r, g - b, hue)
    sixths = 6.0 * (turns - tl.floor(turns))
    hue += sixths * chroma
    hue = tl.where(hue >= 5.0 * chroma, hue - 6.0 * chroma, hue)
    low = value - 2.0 * chroma
    # Distances of 2 and more have the same result, so only green's, from 0 to 6, must be taken on the circle.
    from_red, from_blue = tl.abs(hue - 3.0 * chroma), tl.abs(hue - chroma)
    from_green = tl.minimum(hue + chroma, 5.0 * chroma - hue)
    return (
        tl.minimum(tl.maximum(low + from_red, least), value),
        tl.minimum(tl.maximum(low + from_green, least), value),
        tl.minimum(tl.maximum(low + from_blue, least), value),
    )


@jit
def jitter(r: tl.tensor, g: tl.tensor, b: tl.tensor, p: tl.tensor, steps: tl.tensor, mean: tl.tensor) -> tl.tensor:
    """Apply the first ``steps`` of the view's four jitter steps; contrast pivots on ``mean``."""
    # Loaded before the loop, so that their latencies overlap.
    brightness, contrast = tl.load(p + BRIGHTNESS), tl.load(p + CONTRAST)
    saturation, turns = tl.load(p + SATURATION), tl.load(p + HUE)
    for i in range(steps):
        step = tl.load(p + ORDER + i)
        if step == 0.0:
            r, g, b = _clamp(brightness * r), _clamp(brightness * g), _clamp(brightness * b)
        elif step == 1.0:
            if contrast != 1.0:  # pass 1 computes no mean for contrast 1
                offset = (1.0 - contrast) * mean
                r, g, b = _clamp(contrast * r + offset), _clamp(contrast * g + offset), _clamp(contrast * b + offset)
        elif step == 2.0:
            if saturation != 1.0:
                offset = (1.0 - saturation) * gray(r, g, b)
                r = _clamp(saturation * r + offset)
                g, b = _clamp(saturation * g + offset), _clamp(saturation * b + offset)
        else:
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
