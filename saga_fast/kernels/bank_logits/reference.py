"""The oracle of bank_logits and of its backward: plain NumPy float64 with gathered rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_fast.kernels._dispatch import Array, convert_like, to_numpy


def bank_logits_reference(features: Array, bank: Array, idx: Array) -> Any:
    """See :func:`saga_fast.kernels.bank_logits`."""
    bank_ND = to_numpy(bank)
    rows_BMD = bank_ND.astype(np.float64)[to_numpy(idx)]
    logits_BM = np.einsum("bd,bmd->bm", to_numpy(features, np.float64), rows_BMD)
    return convert_like(logits_BM.astype(np.float64 if bank_ND.dtype == np.float64 else np.float32), features)


def bank_logits_backward_reference(grad: Array, bank: Array, idx: Array) -> Any:
    """Return the gradient of the features, sum_m grad[b, m] * bank[idx[b, m]]: (B, D), grad's dtype."""
    grad_BM = to_numpy(grad)
    rows_BMD = to_numpy(bank, np.float64)[to_numpy(idx)]
    return convert_like(np.einsum("bm,bmd->bd", grad_BM.astype(np.float64), rows_BMD).astype(grad_BM.dtype), grad)
