"""The array operations of SAGA, one folder per op.

Every op has a ``reference`` implementation (NumPy float64, the oracle) and fast ones: ``numba`` on the CPU and
``triton`` on a GPU, or ``torch`` on both. ``impl=None`` picks by device; an explicit ``impl`` never falls back.
Tensors in give tensors out, and NumPy arrays in give NumPy arrays out.
"""

from saga_fast.kernels.attention_boxes import attention_boxes
from saga_fast.kernels.augment import augment
from saga_fast.kernels.bank_logits import bank_logits
from saga_fast.kernels.crop_resize import crop_resize
from saga_fast.kernels.jigsaw_patches import jigsaw_patches
from saga_fast.kernels.planes_to_rgb import planes_to_rgb
from saga_fast.kernels.rgb_to_lab import rgb_to_lab, rgb_to_ydbdr
from saga_fast.kernels.sample_photometrics import PHOTOMETRIC_FIELDS, PhotometricRecipe, sample_photometrics
from saga_fast.kernels.sample_windows import sample_windows

__all__ = [
    "PHOTOMETRIC_FIELDS",
    "PhotometricRecipe",
    "attention_boxes",
    "augment",
    "bank_logits",
    "crop_resize",
    "jigsaw_patches",
    "planes_to_rgb",
    "rgb_to_lab",
    "rgb_to_ydbdr",
    "sample_photometrics",
    "sample_windows",
]
