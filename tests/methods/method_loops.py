"""What the tests of the methods share: a tiny network, sums in plain Python, and gradients without autograd."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from saga_fast.methods import METHODS, Method, build_method
from saga_fast.models.encoder import EncoderConfig

ENCODER = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
SIDE = 16

Row = Sequence[float]
Rows = Sequence[Row]
Loss = Callable[[Rows], float]


def build(
    name: str, *, num_images: int = 20, seed: int = 0, encoder: EncoderConfig = ENCODER, parts: int = 1, **fields: Any
) -> Method:
    """A method with fresh weights of this seed."""
    torch.manual_seed(seed)
    return build_method(METHODS[name].Config(name=name, **fields), encoder, num_images=num_images, parts=parts)


def random_views(batch: int, num_views: int, *, seed: int = 1, side: int = SIDE) -> Tensor:
    return torch.randn(batch, num_views, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random_rows(n: int, dim: int, *, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(row: Row) -> list[float]:
    """A row over its length."""
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


def units(rows: Tensor | Rows) -> list[list[float]]:
    return [unit(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]


def gradient_of_rows(loss: Loss, rows: Tensor, *, step: float = 1e-6) -> Tensor:
    """Central differences of a loss over every entry of its rows."""
    gradient = torch.zeros_like(rows, dtype=torch.float64)
    for i, d in ((i, d) for i in range(rows.shape[0]) for d in range(rows.shape[1])):
        shift = torch.zeros_like(rows, dtype=torch.float64)
        shift[i, d] = step
        gradient[i, d] = (loss((rows + shift).tolist()) - loss((rows - shift).tolist())) / (2 * step)
    return gradient


def gradient_of_bias(loss: Loss, z: Tensor) -> Tensor:
    """That of a layer's bias, which every row of z (B, D) contains: the sum over the rows."""
    return gradient_of_rows(loss, z.double()).sum(0)


def assert_gradient(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest entry: float32 has 7 digits, and entries are differences of larger terms."""
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
