"""Gathering, agreeing, and the gradient through a gather."""

import numpy as np
import pytest
import torch
from processes import run
from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, ImageFolder
from saga_fast.runtime import distributed
from saga_fast.runtime.distributed import (
    StopRequest,
    check_same,
    gather,
    gather_uneven,
    gather_with_gradient,
    local_rows,
    mean,
    rank,
)


def collect() -> list[Tensor]:
    own = torch.full((2, 3), float(rank()))
    uneven = [torch.full((1, 2), 10 * rank() + part) for part in range(rank())]
    return [
        gather(own)[:, 0],
        local_rows(torch.arange(6)),
        mean(torch.tensor([float(rank()), 1.0])),
        gather_uneven(uneven)[:, 0],
        torch.tensor(distributed.broadcast(rank() + 7)),
    ]


def test_collectives() -> None:
    for number, (gathered, own, means, uneven, first) in enumerate(run(3, collect)):
        assert gathered.tolist() == [0, 0, 1, 1, 2, 2]
        assert own.tolist() == [2 * number, 2 * number + 1]
        assert means.tolist() == [1.0, 1.0]
        assert uneven.tolist() == [10, 20, 21]  # rank 0 has none
        assert first == 7


def test_one_process_needs_none() -> None:
    rows = torch.arange(4.0, requires_grad=True)
    assert gather_with_gradient(rows) is rows
    assert gather(rows).data_ptr() == rows.data_ptr()
    assert mean(rows) is rows
    assert local_rows(rows) is rows
    assert gather_uneven([rows, rows]).shape == (8,)
    assert StopRequest().update(True)


def gradient() -> tuple[Tensor, Tensor]:
    rows, bias = torch.arange(4.0).view(2, 2) + rank(), torch.zeros(6, 2)
    rows.requires_grad_()
    bias.requires_grad_()
    weight = torch.arange(12.0).view(6, 2) * (rank() + 1)
    first, second = torch.autograd.grad(((bias + gather_with_gradient(rows)) * weight).sum(), (rows, bias))
    return first, second


def test_gradient_is_the_sum_over_all_losses() -> None:
    expected = 6 * torch.arange(12.0).view(3, 2, 2)  # 1 + 2 + 3 times the weight
    for number, (found, of_bias) in enumerate(run(3, gradient)):
        torch.testing.assert_close(found, expected[number], rtol=0.0, atol=0.0)
        # The bias shares its gradient's memory with the gathered rows, and is this process's alone.
        torch.testing.assert_close(of_bias, torch.arange(12.0).view(6, 2) * (number + 1), rtol=0.0, atol=0.0)


def answers() -> list[bool]:
    request = StopRequest()
    return [request.update(rank() == 1 and step == 2) for step in range(6)]


def test_a_stop_request_reaches_every_rank_one_step_later() -> None:
    assert run(2, answers) == [[False, False, False, True, False, False]] * 2


def bad_lists(root: str, each: list[list[int]]) -> tuple[list[int], str]:
    bad = BadImages(ImageFolder(root), max_fraction=0.1)
    for index in each[rank()]:
        bad.add(index, f"rank {rank()}")
    try:
        bad.share()
    except SagaError as error:
        return bad.indices.tolist(), str(error)
    return bad.indices.tolist(), ""


@pytest.mark.parametrize("each", [[[3], []], [[5, 3], [3, 7]]])
def test_bad_images_are_agreed_upon(images, each) -> None:  # type: ignore[no-untyped-def]
    for indices, error in run(2, bad_lists, str(images / "train"), each):
        assert indices == sorted(set(np.concatenate(each).astype(int).tolist()))
        assert not error


def test_too_many_bad_images_together(images) -> None:  # type: ignore[no-untyped-def]
    for _, error in run(2, bad_lists, str(images / "train"), [[1, 2, 3], [4, 5, 6]]):
        assert "5 of 41 images" in error


def differing(values: list[str]) -> str:
    try:
        check_same({"one": "1", "last.pt": values[rank()]})
    except SagaError as error:
        return str(error)
    return ""


def test_processes_that_see_other_files() -> None:
    assert run(2, differing, ["a", "a"]) == [""] * 2
    said = "last.pt is a for rank 0, b for rank 2: all processes must see the same files"
    assert run(3, differing, ["a", "a", "b"]) == [said] * 3
