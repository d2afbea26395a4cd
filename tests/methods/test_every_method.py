"""What holds for each method: it learns, gives boxes, and steps from a saved state are the same steps."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_loops import build, random_views
from torch import Tensor

from saga_fast.attention import build_box_table
from saga_fast.evaluate.features import FrozenModel, extract_features
from saga_fast.loaders import LoaderOptions, WholePlan, open_loader
from saga_fast.methods import METHODS, Method, StepOutput
from saga_fast.optim import OptimizerConfig, build_optimizer

BANK = {"negatives": 64, "num_images": 200, "projection_dim": 12}
JIGSAW = {"jigsaw_size": 27, "jigsaw_patch": 8}
NCE = {"loss": "nce", "temperature": 0.5}
LOCAL: dict[str, Any] = {"local_size": 16, "local_views": 2, "frozen_epochs": 0}
# The student follows a slow teacher and centre within a test; with fast ones the loss rises and falls in turns.
SLOW = {"prototypes": 24, "hidden_dim": 32, "projection_dim": 12, "momentum": 0.999, "centre_momentum": 0.999}
CASES: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco": {"queue_size": 64, "momentum": 0.9},
    "mocov2": {"queue_size": 64, "momentum": 0.9},
    "insdis": BANK,
    "insdis nce": BANK | NCE,
    "pirl": BANK | JIGSAW,
    "pirl nce": BANK | JIGSAW | NCE,
    "cmc": BANK,
    "cmc nce": BANK | NCE | {"color": "ydbdr"},
    "invspread": {},
    "byol": {"hidden_dim": 32, "projection_dim": 12, "momentum": 0.9},
    "dino": SLOW | LOCAL,
    "dino norm": SLOW | LOCAL | {"projection_norm": "hidden"},
    "dino global": SLOW | LOCAL | {"local_views": 0, "unit_prototypes": False},
}
INDEX = torch.arange(16)


def make(case: str, seed: int = 0) -> Method:
    return build(case.split()[0], seed=seed, **CASES[case])


def step(model: Method, optimizer: torch.optim.Optimizer, views: Tensor, more: list[Tensor]) -> StepOutput:
    """A training step as ``train_epoch`` makes it, on noisy copies of the images."""
    noisy = [(group + 0.1 * torch.randn_like(group)).clamp(0.0, 1.0) for group in (views, *more)]
    output: StepOutput = model(noisy[0], INDEX, *noisy[1:])
    optimizer.zero_grad()
    output.loss.backward()  # type: ignore[no-untyped-call]
    model.after_backward()
    optimizer.step()
    model.after_step()
    return output


def images_for(model: Method) -> tuple[Tensor, list[Tensor]]:
    """16 images in [0, 1], the views of each alike but for noise."""
    more = [random_views(16, group.count, side=group.size).sigmoid() for group in model.more_views]
    return random_views(16, 1).sigmoid().repeat(1, model.num_views, 1, 1, 1), more


def make_optimizer(model: Method) -> torch.optim.Optimizer:
    optimizer = build_optimizer(OptimizerConfig(), model)
    optimizer.param_groups[0]["lr"] = 0.02
    return optimizer


def test_every_method_is_a_case() -> None:
    assert {case.split()[0] for case in CASES} == {name for name, kind in METHODS.items() if kind.contrastive}


@pytest.mark.parametrize("case", CASES)
def test_loss_falls(case: str) -> None:
    """From its value once queue and bank have met the features; NCE's has a floor, as noise may be the image's row."""
    model = make(case)
    optimizer = make_optimizer(model)
    outputs = [step(model, optimizer, *images_for(model)) for _ in range(50)]
    losses = torch.stack([output.loss.detach() for output in outputs])
    assert bool(losses.isfinite().all())
    assert float(losses[-5:].mean()) < (0.96 if "nce" in case else 0.8) * float(losses[2:7].mean())


@pytest.mark.parametrize("case", CASES)
def test_steps_from_a_saved_state_are_bit_identical(case: str) -> None:
    """Model, optimiser and torch's generator are all that a checkpoint holds."""
    models = [make(case), make(case, seed=1)]
    optimizers = [make_optimizer(model) for model in models]
    images = images_for(models[0])
    for _ in range(3):
        step(models[0], optimizers[0], *images)
    models[1].load_state_dict(copy.deepcopy(models[0].state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    generator = torch.get_rng_state()
    losses = []
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.set_rng_state(generator)
        losses.append([step(model, optimizer, *images).loss.item() for _ in range(2)])
    assert losses[0] == losses[1]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("case", CASES)
def test_attention_pass_and_features(case: str, images: Path) -> None:
    model = make(case)
    views, more = images_for(model)
    for _ in range(2):
        model(views, INDEX, *more)  # batch-norm statistics
    loader = open_loader("folder", images / "train", WholePlan(size=32), LoaderOptions(threads=1), batch_size=8)
    with torch.no_grad():
        for branch in model.branches(views[:, 0]):
            for weight in list(branch.projector.parameters())[::2]:
                weight.abs_()  # else a random map may be below nought everywhere
    before = copy.deepcopy(model.state_dict())
    table = build_box_table(model, loader, delta=0.5)
    assert len(table) == 41
    assert table.found_fraction > 0.8
    assert len(np.unique(table.boxes, axis=0)) > 5
    features, labels = extract_features(FrozenModel(model=model), loader)
    assert features["backbone"].shape == (41, model.encoder.dim)
    for feature in features.values():
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(41))
    width = features["projector"].shape[1]
    assert 0 <= table.pseudo_label.min() <= table.pseudo_label.max() < width
    assert len(labels) == 41
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16(case: str) -> None:
    """The networks in 16 bits, the loss in 32: near the loss in full precision."""
    losses = []
    for enabled in (False, True):
        model = make(case)
        views, more = images_for(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = model(views, INDEX, *more)
        assert (output.loss.dtype, output.positive_similarity.dtype) == (torch.float32, torch.float32)
        output.loss.backward()
        model.after_step()
        losses.append(output.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.05)
