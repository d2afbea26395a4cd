"""Counter-based random numbers with Philox4x32-10.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

A draw is a pure function of (seed, epoch, index, view, purpose, block), so an image gets the same numbers in every
engine, for any batch size, thread count or world size, and after any resume.

Layout of the 128-bit counter and the 64-bit key:

    word 0   block (16 bits) | view (8 bits) | purpose (8 bits)
    word 1   epoch
    word 2   index, low 32 bits
    word 3   index, high 32 bits
    key      seed, low and high 32 bits
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saga_fast.kernels._dispatch import NDArray
from saga_fast.kernels._jit import jit

# Purposes. Draws for different purposes never share a counter.
WINDOW = 1
PHOTOMETRIC = 2
SHARE = 3
ORDER = 4
SUBSTITUTE = 5
JIGSAW = 6
CENTRE = 7
PASTE = 8

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint32(0x9E3779B9)
_WEYL_1 = np.uint32(0xBB67AE85)
_MASK_32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
TO_UNIT = 2.0**-32


def check_key(seed: int, epoch: int) -> None:
    """Raise ``ValueError`` for a seed outside [0, 2**64) or an epoch outside [0, 2**32)."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch must be in [0, 2**32), got {epoch}")


def philox_reference(counter: NDArray, key: NDArray) -> NDArray:
    """Compute ten rounds of Philox4x32: counter (..., 4) and key (..., 2) as uint32 -> (..., 4) uint32."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k0, k1 = key[..., 0].astype(np.uint64), key[..., 1].astype(np.uint64)
    for _ in range(10):
        p0, p1 = _MULTIPLIER_0 * c[0], _MULTIPLIER_1 * c[2]
        c = [(p1 >> _32) ^ c[1] ^ k0, p1 & _MASK_32, (p0 >> _32) ^ c[3] ^ k1, p0 & _MASK_32]
        k0, k1 = (k0 + np.uint64(_WEYL_0)) & _MASK_32, (k1 + np.uint64(_WEYL_1)) & _MASK_32
    return np.stack(c, axis=-1).astype(np.uint32)


def uniforms_reference(seed: int, epoch: int, index: int, view: int, purpose: int, block: int) -> NDArray:
    """Return four float64 uniforms in [0, 1): the oracle of :func:`uniforms`."""
    counter = np.array([block << 16 | view << 8 | purpose, epoch, index & 0xFFFFFFFF, index >> 32], np.uint32)
    key = np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32)
    return philox_reference(counter, key).astype(np.float64) * TO_UNIT


@jit()
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Compute ten rounds of Philox4x32: six uint32 words -> four uint32 words."""
    for _ in range(10):
        p0 = _MULTIPLIER_0 * np.uint64(c0)
        p1 = _MULTIPLIER_1 * np.uint64(c2)
        c0 = np.uint32(p1 >> _32) ^ c1 ^ k0
        c1 = np.uint32(p1)
        c2 = np.uint32(p0 >> _32) ^ c3 ^ k1
        c3 = np.uint32(p0)
        k0 = np.uint32(k0 + _WEYL_0)
        k1 = np.uint32(k1 + _WEYL_1)
    return c0, c1, c2, c3


@jit()
def uniforms(seed: Any, epoch: Any, index: Any, view: Any, purpose: Any, block: Any) -> Any:
    """Return four float64 uniforms in [0, 1), made from 32 bits each."""
    s, i = np.uint64(seed), np.uint64(index)
    word = np.uint32(block) << np.uint32(16) | np.uint32(view) << np.uint32(8) | np.uint32(purpose)
    a, b, c, d = philox(
        np.uint32(word),
        np.uint32(epoch),
        np.uint32(i & _MASK_32),
        np.uint32(i >> _32),
        np.uint32(s & _MASK_32),
        np.uint32(s >> _32),
    )
    return a * TO_UNIT, b * TO_UNIT, c * TO_UNIT, d * TO_UNIT


# Serial, because decoding threads call it. A parallel kernel would start a thread team in each of them (226 threads for
# 16 callers), and part of their memory stays after they end. 1.28 M draws take 23 ms.
@jit()
def _draw(seed: Any, epoch: Any, indices: Any, view: Any, purpose: Any, block: Any, out: Any) -> None:
    for n in range(indices.shape[0]):
        out[n, 0], out[n, 1], out[n, 2], out[n, 3] = uniforms(seed, epoch, indices[n], view, purpose, block)


def draw(seed: int, epoch: int, indices: NDArray, *, purpose: int, view: int = 0, block: int = 0) -> NDArray:
    """Return four uniforms per index: (B,) int64 -> (B, 4) float64 in [0, 1)."""
    out = np.empty((len(indices), 4), np.float64)
    _draw(np.uint64(seed), epoch, np.asarray(indices, np.int64), view, purpose, block, out)
    return out


def uniforms_torch(seed: int, epoch: int, indices: torch.Tensor, *, purpose: int, blocks: int) -> torch.Tensor:
    """Return the uniforms of view 0 on the indices' device: (B,) int64 -> (B, 4 * blocks) float64.

    Does not wait for a GPU. torch has no unsigned arithmetic: a product of two 32-bit words may wrap around in int64,
    and its bits are still the correct ones.
    """
    mask = 0xFFFFFFFF
    block = torch.arange(blocks, device=indices.device)
    index = indices[:, None].expand(-1, blocks)
    c0, c1 = (block << 16 | purpose).expand_as(index), torch.full_like(index, epoch)
    c2, c3 = index & mask, index >> 32 & mask
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):
        p0, p1 = int(_MULTIPLIER_0) * c0, int(_MULTIPLIER_1) * c2
        c0, c1, c2, c3 = (p1 >> 32 & mask) ^ c1 ^ k0, p1 & mask, (p0 >> 32 & mask) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + int(_WEYL_0)) & mask, (k1 + int(_WEYL_1)) & mask
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1).double() * TO_UNIT
