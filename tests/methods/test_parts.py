"""A batch in parts: its steps are the whole batch's, and only batch norm and dropout see parts."""

import copy
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from method_loops import ENCODER, build, random_views
from test_every_method import CASES
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saga_fast.methods import Method
from saga_fast.methods.bank import MemoryBank
from saga_fast.models.encoder import Encoder
from saga_fast.models.modes import keeping_statistics
from saga_fast.optim import OptimizerConfig, build_optimizer

GROUP_NORM = replace(ENCODER, args={**ENCODER.args, "norm_layer": "groupnorm1"})
DROPPING = replace(ENCODER, args={**ENCODER.args, "drop_path_rate": 0.3, "drop_rate": 0.2})
BATCH, STEPS = 8, 3
SOFTMAX = [case for case in CASES if "nce" not in case]

Gradients = dict[str, Tensor]


def take_steps(model: Method) -> list[tuple[Tensor, Tensor, Gradients]]:
    """Loss, similarity and gradients of some steps; random draws go on from the seed."""
    optimizer = build_optimizer(OptimizerConfig(), model)
    optimizer.param_groups[0]["lr"] = 0.05
    torch.manual_seed(5)
    found = []
    for step in range(STEPS):
        index = torch.randint(20, (BATCH,), generator=torch.Generator().manual_seed(step))  # some of them twice
        sizes = [(model.num_views, 16), *((group.count, group.size) for group in model.more_views)]
        views = [random_views(BATCH, count, seed=step, side=side).sigmoid() for count, side in sizes]
        output = model(views[0], index, *views[1:])
        optimizer.zero_grad()
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((output.loss.detach(), output.positive_similarity, gradients))
        optimizer.step()
        model.after_step()
    return found


def make(case: str, parts: int) -> Method:
    """Without batch norm, and the networks in float64; features, banks and queues are float32, as they always are."""
    fields = {**CASES[case], **({"num_images": 20} if "num_images" in CASES[case] else {})}
    model = build(case.split()[0], encoder=GROUP_NORM, parts=parts, **fields)
    for child in model.children():
        if not isinstance(child, MemoryBank):
            child.double()
    for encoder in all_encoders(model):
        encoder.register_forward_pre_hook(to_double)
    return model


def to_double(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in args)


def all_encoders(model: Method) -> list[Encoder]:
    """Momentum encoders, too."""
    return [module for module in model.modules() if isinstance(module, Encoder)]


def assert_close(found: Gradients, expected: Gradients) -> None:
    """To 1e-10 in float64. An entry may be a difference of larger ones: 1e-13 of the largest is allowed in addition."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        slack = 1e-13 * float(tensor.abs().max()) if tensor.dtype == torch.float64 else 0.0
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=slack, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_whole_batchs(case: str) -> None:
    """Losses, gradients, and what three steps leave: weights, bank and Z, queue and pointer, key encoder."""
    whole = make(case, 1)
    expected = take_steps(whole)
    drawn = torch.get_rng_state()
    for parts in (2, 4):
        model = make(case, parts)
        for (loss, similarity, gradients), reference in zip(take_steps(model), expected, strict=True):
            assert torch.equal(loss, reference[0])
            assert torch.equal(similarity, reference[1])
            assert_close(gradients, reference[2])
        assert torch.equal(torch.get_rng_state(), drawn)
        assert_close(model.state_dict(), whole.state_dict())
    fresh = make(case, 1).state_dict()
    for name in ("queue", "bank.rows", "luminance_bank.rows", "key_encoder.backbone.conv1.weight"):
        assert name not in fresh or not torch.equal(fresh[name], whole.state_dict()[name])


def count_rows(calls: Counter[int], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    calls[len(args[0])] += 1


@pytest.mark.parametrize("case", CASES)
def test_networks_get_one_part(case: str) -> None:
    """All parts once, and all but the last again; momentum encoders, which have no gradient, once."""

    def rows_of_calls(parts: int) -> tuple[Counter[int], Counter[int]]:
        model = make(case, parts)
        trained, averaged = Counter[int](), Counter[int]()
        for encoder in all_encoders(model):
            calls = trained if next(encoder.parameters()).requires_grad else averaged
            encoder.register_forward_pre_hook(partial(count_rows, calls))
        take_steps(model)
        return trained, averaged

    whole, parted = rows_of_calls(1), rows_of_calls(4)
    assert parted[0] == {rows // 4: 7 * count for rows, count in whole[0].items()}
    assert parted[1] == {rows // 4: 4 * count for rows, count in whole[1].items()}
    assert whole[0].total() >= STEPS
    assert bool(whole[1]) or "moco" not in case


@pytest.mark.parametrize("case", SOFTMAX)
def test_batch_norm_and_dropout_are_those_of_the_parts(case: str) -> None:
    """As in a plain loop over the parts that keeps all activations: statistics move once, draws are not repeated."""
    model = build(case, encoder=DROPPING, parts=4, **CASES[case])
    reference = copy.deepcopy(model)

    def plain(images: Tensor, *networks: nn.Module) -> Tensor:
        return torch.cat([nn.Sequential(*networks)(part) for part in images.chunk(4)])

    reference.in_parts = plain  # type: ignore[method-assign]
    expected, drawn = take_steps(reference), torch.get_rng_state()
    for (loss, _, gradients), other in zip(take_steps(model), expected, strict=True):
        assert torch.equal(loss, other[0])
        assert all(torch.equal(gradient, other[2][name]) for name, gradient in gradients.items())
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference.state_dict()[name]), name
    counts = [int(tensor) for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert min(counts) == (2 if case == "pirl" else 1) * 4 * STEPS  # whose encoder gets the view and the patches


def test_statistics_stay_those_of_the_first_pass_after_an_error() -> None:
    norm = nn.BatchNorm2d(3)
    before = copy.deepcopy(norm.state_dict())
    with pytest.raises(RuntimeError, match="inside"), keeping_statistics(nn.Sequential(norm)):
        norm(torch.randn(4, 3, 2, 2))
        raise RuntimeError("inside")
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    norm.eval()
    with keeping_statistics(norm):  # in eval mode they are read
        assert torch.equal(norm(torch.ones(1, 3, 1, 1)), norm(torch.ones(1, 3, 1, 1)))
        assert norm.running_mean is not None and torch.equal(norm.running_mean, before["running_mean"])


class Peak(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the largest number of bytes of tensors that were made in the block and are held at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[StorageWeakRef, int] = {}
        self.bytes: int = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.held[StorageWeakRef(storage)] = storage.nbytes()  # type: ignore[no-untyped-call]
        self.held = {
            storage: size
            for storage, size in self.held.items()
            if not storage.expired()  # type: ignore[no-untyped-call]
        }
        self.bytes = max(self.bytes, sum(self.held.values()))
        return result


def peak_bytes(case: str, parts: int) -> int:
    """Of a step's forward and backward pass."""
    model = build(case, parts=parts, **CASES[case])
    views = random_views(32, model.num_views, side=32)
    more = [random_views(32, group.count, side=group.size) for group in model.more_views]
    with Peak() as peak:
        model(views, torch.arange(32), *more).loss.backward()
    return int(peak.bytes)


@pytest.mark.parametrize("case", SOFTMAX)
def test_memory_is_that_of_one_part(case: str) -> None:
    """An eighth of the activations, and gradients, views and the loss's logits, which are not divided."""
    whole, eighth = peak_bytes(case, 1), peak_bytes(case, 8)
    assert eighth < 0.3 * whole
