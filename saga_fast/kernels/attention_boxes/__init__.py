"""attention_boxes: one crop box per image from features and channel weights (SAGA, Eq. 3 to 4)."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from saga_fast.kernels._dispatch import Array, choose
from saga_fast.kernels.attention_boxes._numba import attention_boxes_numba
from saga_fast.kernels.attention_boxes.reference import attention_boxes_reference


def _lazy_triton(*arguments: Any) -> Any:
    """Import Triton on the first call."""
    from saga_fast.kernels.attention_boxes._triton import attention_boxes_triton

    return attention_boxes_triton(*arguments)


IMPLEMENTATIONS = {
    "reference": attention_boxes_reference,
    "numba": attention_boxes_numba,
    "triton": _lazy_triton,
}
Normalize = Literal["minmax", "max"]
AnyArray = TypeVar("AnyArray", bound=Array)


def attention_boxes(
    features: AnyArray,
    weights: AnyArray,
    *,
    delta: float = 0.7,
    size: int = 224,
    normalize: Normalize = "minmax",
    impl: str | None = None,
) -> tuple[AnyArray, AnyArray]:
    """Return the smallest rectangle around each image's thresholded attention map.

    L = ReLU(sum_k weights[:, k] * features[:, k]) on the coarse grid (Eq. 3). L is scaled to [0, 1] and upsampled to
    (size, size) as by ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False)``. The box covers all
    pixels > delta (Eq. 4). The (B, size, size) heatmaps are never stored.

    Args:
        features: (B, C, u, v) last convolutional activations or patch tokens; float32, float16 or bfloat16, any strides
            (contiguous and channels_last features are not copied).
        weights: (B, C) channel weights alpha (Eq. 2), the same array type as features.
        delta: threshold on the scaled heatmap, in [0, 1).
        size: side of the upsampled map in pixels; box edges lie on this pixel grid.
        normalize: ``"minmax"`` maps [min, max] of each coarse map to [0, 1]; ``"max"`` divides by its maximum.
        impl: ``None`` picks by device; ``"numba"`` (CPU), ``"triton"`` (GPU) and ``"reference"`` (float64 NumPy) never
            fall back.

    Returns:
        boxes (B, 4) float32 [x_min, y_min, w, h], normalised to [0, 1], and found (B,) bool. A map that is zero,
        constant or not finite, or has no pixel above delta, gives the whole image and found = False.

    Raises:
        ValueError: invalid shape, delta, size, normalize or impl.
    """
    if features.ndim != 4 or weights.ndim != 2 or tuple(features.shape[:2]) != tuple(weights.shape):
        raise ValueError(
            f"features must be (B, C, u, v) and weights (B, C), got {tuple(features.shape)} and {tuple(weights.shape)}"
        )
    if 0 in features.shape[1:]:
        raise ValueError(f"features must have at least one channel and one position, got {tuple(features.shape)}")
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta must be in [0, 1), got {delta}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if normalize not in ("minmax", "max"):
        raise ValueError(f"normalize must be 'minmax' or 'max', got {normalize!r}")
    boxes, found = choose(IMPLEMENTATIONS, impl, features)(features, weights, delta, size, normalize)
    return boxes, found
