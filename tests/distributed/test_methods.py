"""Steps of every method in two processes are those of one process with the same batch.

Each rank sums over its own images first, so sums agree to rounding, not to the bit: float32 has 7 digits, and three
steps of a tiny network lose two or three of them.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from processes import run
from torch import Tensor, nn

from saga_fast.methods import METHODS, Method, build_method
from saga_fast.methods.moco import MoCo
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.sync_batchnorm import is_local_batchnorm, synchronise_batchnorm
from saga_fast.optim import OptimizerConfig, build_optimizer
from saga_fast.runtime import distributed
from saga_fast.runtime.distributed import data_parallel, local_rows, rank

ENCODER = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
GROUP_NORM = replace(ENCODER, args={**ENCODER.args, "norm_layer": "groupnorm1"})
BANK = {"negatives": 32, "projection_dim": 12}
JIGSAW = {"jigsaw_size": 27, "jigsaw_patch": 8}
CASES: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.3},
    "moco": {"queue_size": 20, "momentum": 0.9},  # 20 % 12 != 0
    "mocov2": {"queue_size": 64, "momentum": 0.9},
    "insdis": BANK,
    "insdis nce": BANK | {"loss": "nce", "temperature": 0.5},
    "pirl": BANK | JIGSAW,
    "cmc nce": BANK | {"loss": "nce", "temperature": 0.5},
    "invspread": {"temperature": 0.3},
}
BATCH, STEPS = 12, 3
CPU = torch.device("cpu")


def make(case: str, encoder: EncoderConfig = ENCODER, parts: int = 1) -> Method:
    name = case.split()[0]
    torch.manual_seed(0)
    return build_method(METHODS[name].Config(name=name, **CASES[case]), encoder, num_images=40, parts=parts)


def steps(
    cases: list[str], synchronised: bool, encoder: EncoderConfig = ENCODER, parts: int = 1
) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """Losses (STEPS,), means over ranks, and the state after the steps, of each case."""
    found = {}
    for case in cases:
        model = make(case, encoder, parts).train()
        if synchronised:
            synchronise_batchnorm(model, CPU)
        network, optimizer = data_parallel(model, CPU), build_optimizer(OptimizerConfig(), model)
        optimizer.param_groups[0]["lr"] = 0.02
        losses = []
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            index = torch.randperm(40, generator=generator)[:BATCH]
            sizes = [(model.num_views, 16), *((group.count, group.size) for group in model.more_views)]
            views = [torch.rand(BATCH, count, 3, side, side, generator=generator) for count, side in sizes]
            output = network(local_rows(views[0]), local_rows(index), *map(local_rows, views[1:]))
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            model.after_step()
            losses.append(distributed.mean(output.loss.detach()))
        found[case] = torch.stack(losses), model.state_dict()
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    (found,) = run(1, steps, list(CASES), False)
    return found  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def together() -> list[dict[str, tuple[Tensor, dict[str, Tensor]]]]:
    return run(2, steps, list(CASES), True)


def test_every_method_is_a_case() -> None:
    assert {case.split()[0] for case in CASES} == {name for name, method in METHODS.items() if method.contrastive}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_step_as_one(case: str, alone: Any, together: Any) -> None:
    losses, state = alone[case]
    first, second = (found[case] for found in together)
    torch.testing.assert_close(first[0], losses, rtol=1e-4, atol=1e-5)
    assert first[1].keys() == state.keys()  # no "module."
    fresh = make(case).state_dict()
    for name, tensor in state.items():
        assert torch.equal(first[1][name], second[1][name]), name
        torch.testing.assert_close(first[1][name], tensor, rtol=2e-3, atol=2e-4, msg=name)
    moved = [name for name in state if name.endswith("weight") and not torch.equal(state[name], fresh[name])]
    assert moved


@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_with_batch_norm_of_their_own(case: str, apart: Any) -> None:
    """Queues, banks and key encoders; the batch norm's running statistics differ."""
    first, second = (found[case][1] for found in apart)
    statistics = [name for name in first if "running" in name]
    for name in first:
        assert torch.equal(first[name], second[name]) == (name not in statistics), name


@pytest.fixture(scope="module")
def apart() -> list[dict[str, tuple[Tensor, dict[str, Tensor]]]]:
    return run(2, steps, list(CASES), False)


@pytest.fixture(scope="module")
def in_parts() -> tuple[Any, Any]:
    """Without batch norm: alone with whole batches, and in two processes with three parts each."""
    (alone,) = run(1, steps, list(CASES), False, GROUP_NORM)
    return alone, run(2, steps, list(CASES), False, GROUP_NORM, 3)


@pytest.mark.parametrize("case", CASES)
def test_parts_in_two_processes_step_as_one_whole_batch(case: str, in_parts: Any) -> None:
    alone, (first, second) = in_parts
    losses, state = alone[case]
    torch.testing.assert_close(first[case][0], losses, rtol=1e-4, atol=1e-5)
    for name, tensor in state.items():
        assert torch.equal(first[case][1][name], second[case][1][name]), name
        torch.testing.assert_close(first[case][1][name], tensor, rtol=2e-3, atol=2e-4, msg=name)


def test_ranks_agree_with_parts_and_synchronised_batch_norm() -> None:
    """It covers a part of all processes; its collectives are repeated in the second pass, in the same order."""
    cases = ["simclr", "mocov2", "pirl"]
    first, second = run(2, steps, cases, True, ENCODER, 3)
    for case in cases:
        assert torch.equal(first[case][0], second[case][0])
        for name, tensor in first[case][1].items():
            assert torch.equal(tensor, second[case][1][name]), (case, name)
            if name.endswith("num_batches_tracked"):
                assert int(tensor) == 3 * STEPS * (1 + (case == "pirl"))  # whose encoder gets the patches, too


class Pooled(nn.Module):
    """Has a batch norm, which calls for shuffling, and does not use it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x[:, 0, 0, 0].clone()
        return x.mean((2, 3))


def shuffled() -> tuple[Tensor, Tensor, Tensor]:
    model = make("moco").train()
    assert isinstance(model, MoCo)
    pooled = Pooled()
    model.key_encoder, model.key_projector = pooled, nn.Identity()  # type: ignore[assignment]
    views = torch.rand(32, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    keys = model._keys_of(local_rows(views))
    return (
        keys,
        local_rows(nn.functional.normalize(views.mean((2, 3)), dim=1)),
        pooled.seen - local_rows(views)[:, 0, 0, 0],
    )


def test_shuffled_keys_come_back_in_order() -> None:
    for keys, expected, moved in run(2, shuffled):
        torch.testing.assert_close(keys, expected)
        assert (moved != 0).float().mean() > 0.8


def synchronised_batchnorm() -> list[Tensor]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    nn.init.uniform_(norm.weight)
    x = (3.0 * torch.randn(8, 5, 3, 2) + torch.arange(8.0).view(8, 1, 1, 1)).double().float()
    weight = torch.randn(8, 5, 3, 2)
    model = nn.Sequential(norm)
    synchronise_batchnorm(model, CPU)
    assert not is_local_batchnorm(norm)
    own = local_rows(x).clone().requires_grad_()
    y = model(own)
    (y * local_rows(weight)).sum().backward()
    assert own.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    shared = [distributed.mean(g) * distributed.world_size() for g in (norm.weight.grad, norm.bias.grad)]
    buffers = [norm.running_mean, norm.running_var, norm.num_batches_tracked]
    return [distributed.gather(y), distributed.gather(own.grad), *shared, *(b for b in buffers if b is not None)]


def test_synchronised_batch_norm_is_that_of_the_whole_batch() -> None:
    (alone,) = run(1, synchronised_batchnorm)
    for found in run(2, synchronised_batchnorm):
        for own, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def unlike() -> bool:
    """Rank 1 passes another seed by: DistributedDataParallel starts from rank 0's weights."""
    model = make("simclr")
    if rank() == 1:
        nn.init.ones_(next(model.parameters()))
    data_parallel(model, CPU)
    return bool((next(model.parameters()) == 1).all())


def test_all_start_from_the_weights_of_rank_0() -> None:
    assert run(2, unlike) == [False, False]
