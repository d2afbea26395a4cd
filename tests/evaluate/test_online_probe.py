"""The online probe: the features it learns from, and its steps against softmax regression written out in NumPy."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.evaluate.online_probe import LR, MOMENTUM, OnlineProbe
from saga_fast.methods import METHODS, Method
from saga_fast.models.precision import Precision, autocast

sys.path.append(str(Path(__file__).parent.parent / "methods"))
from method_loops import SIDE, build, random_views

BANK = {"negatives": 8, "projection_dim": 12}
FIELDS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco": {"queue_size": 16},
    "mocov2": {"queue_size": 16},
    "insdis": BANK,
    "pirl": BANK | {"jigsaw_size": 27, "jigsaw_patch": 8},
    "cmc": BANK,
    "invspread": {},
}
LABELS = torch.tensor([2, 0, 1, 2, 2, 0])
CPU = torch.device("cpu")


def forward(model: Method, seed: int, precision: Precision = "fp32") -> Tensor:
    """One forward pass in train mode; its main views (6, V, 3, S, S)."""
    views = random_views(6, model.num_views, seed=seed)
    more = [random_views(6, group.count, seed=seed, side=group.size) for group in model.more_views]
    with autocast(CPU, precision):
        model.train()(views, torch.arange(6), *more)
    return views


def features_of(model: Method, views: Tensor) -> Tensor:
    """Unit features of the views that the loss compares as main views, image by image, in train mode."""
    images = views.flatten(0, 1) if model.method in ("simclr", "invspread") else views[:, 0]
    if model.method == "cmc":
        encoder: Any = model.encoder
        luminance, chrominance = encoder.split(images)
        parts = [encoder.luminance(luminance), encoder.chrominance(chrominance)]
        return torch.cat([F.normalize(part) for part in parts], 1).detach() / 2**0.5
    return F.normalize(model.encoder(images)).detach()


def regression(batches: list[tuple[Tensor, Tensor]], classes: int) -> tuple[Any, Any, list[float]]:
    """Weights, bias and the accuracies before each step of SGD with momentum on the mean cross-entropy, in float64."""
    dim = batches[0][0].shape[1]
    weight, bias = np.zeros((classes, dim)), np.zeros(classes)
    momenta, accuracies = [np.zeros_like(weight), np.zeros_like(bias)], []
    for features, labels in batches:
        x, y = features.numpy().astype(np.float64), labels.numpy()
        logits = x @ weight.T + bias
        accuracies.append(float((logits.argmax(1) == y).mean()))
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1.0
        gradients = [p.T @ x / len(x), p.mean(0)]
        for parameter, momentum, gradient in zip((weight, bias), momenta, gradients, strict=True):
            momentum *= MOMENTUM
            momentum += gradient
            parameter -= LR * momentum
    return weight, bias, accuracies


@pytest.mark.parametrize("name", FIELDS)
def test_learns_from_the_features_of_the_steps(name: str) -> None:
    """The image's own features, not those of key encoders or of PIRL's patches, each with its image's label."""
    model = build(name, **FIELDS[name])
    probe, batches = OnlineProbe(model, 3), []
    for step in range(3):
        with probe.recording(LABELS):
            views = forward(model, step)
        features = features_of(model, views)
        batches.append((features, LABELS.repeat_interleave(len(features) // 6)))
        probe.step()
    weight, bias, accuracies = regression(batches, 3)
    state = probe.state()["classifier"]
    torch.testing.assert_close(state["weight"], torch.from_numpy(weight).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state["bias"], torch.from_numpy(bias).float(), rtol=1e-4, atol=1e-5)
    assert probe.finish_epoch() == pytest.approx(np.mean(accuracies))
    assert probe.finish_epoch() is None  # the next epoch has no step yet
    expected = (batches[0][0] @ state["weight"].T + state["bias"]).argmax(1) == batches[0][1]
    assert probe.top1(*batches[0]) == pytest.approx(float(expected.double().mean()))


def test_every_method_is_a_case() -> None:
    assert FIELDS.keys() == {name for name, method in METHODS.items() if method.contrastive}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_features_are_converted(name: str, precision: Precision) -> None:
    model = build(name, **FIELDS[name])
    probe = OnlineProbe(model, 3)
    with probe.recording(LABELS):
        forward(model, 0, precision)
    probe.step()
    weight = probe.state()["classifier"]["weight"]
    assert weight.dtype == torch.float32
    assert weight.isfinite().all() and weight.any()


def test_network_has_no_gradient_and_no_hook_of_it() -> None:
    model = build("simclr")
    probe = OnlineProbe(model, 3)
    with probe.recording(LABELS):
        forward(model, 0)
    probe.step()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(RuntimeError), probe.recording(LABELS):
        model(torch.rand(6, 2, 1, 2, 2), torch.arange(6))  # one channel
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_random_number_is_drawn() -> None:
    model = build("simclr")
    before = torch.get_rng_state()
    probe = OnlineProbe(model, 3)
    with probe.recording(LABELS):
        forward(model, 0)  # SimCLR's forward pass draws none either
    probe.step()
    assert torch.equal(torch.get_rng_state(), before)


def test_passes_of_one_step_are_learned_from_together() -> None:
    """Parts of a batch, and methods that call their projector once per view, give the same step as one pass."""
    whole, parts = (OnlineProbe(build("simclr").eval(), 3) for _ in range(2))
    h = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    (projector,) = build("simclr").projectors
    for probe in (whole, parts):
        probe._projectors = (projector,)
    with whole.recording(LABELS):
        projector(h)
    with parts.recording(LABELS):  # view by view
        projector(h[0::2])
        projector(h[1::2])
    whole.step()
    parts.step()
    torch.testing.assert_close(whole.state()["classifier"]["weight"], parts.state()["classifier"]["weight"])
    for images in (slice(0, 2), slice(2, 6)):  # part by part
        with parts.recording(LABELS[images]):
            projector(h.view(6, 2, 16)[images].flatten(0, 1))
    with whole.recording(LABELS):
        projector(h)
    whole.step()
    parts.step()
    torch.testing.assert_close(whole.state()["classifier"]["weight"], parts.state()["classifier"]["weight"])


def test_dropped_pass_leaves_no_trace() -> None:
    model = build("simclr")
    probe, other = OnlineProbe(model, 3), OnlineProbe(model, 3)
    with probe.recording(LABELS):
        forward(model, 5)
    probe.drop()
    for each in (probe, other):
        with each.recording(LABELS):
            forward(model, 0)
        each.step()
    assert torch.equal(probe.state()["classifier"]["weight"], other.state()["classifier"]["weight"])
    assert probe.finish_epoch() == other.finish_epoch()


def test_state_comes_back_to_the_bit() -> None:
    model = build("simclr")
    probe = OnlineProbe(model, 3)
    assert not probe.has_learned
    for step in range(4):
        if step == 2:
            saved, probe = probe.state(), OnlineProbe(model, 3)
            probe.restore(saved)
            assert probe.has_learned
        with probe.recording(LABELS):
            forward(model, step)
        probe.step()
    straight = OnlineProbe(model, 3)
    for step in range(4):
        with straight.recording(LABELS):
            forward(model, step)
        straight.step()
    for name in ("weight", "bias"):
        assert torch.equal(probe.state()["classifier"][name], straight.state()["classifier"][name])
    assert probe.finish_epoch() == straight.finish_epoch()


def test_classes_that_the_network_tells_apart_are_learned() -> None:
    """Red, green and blue images: an untrained network's features separate them."""
    model = build("simclr")
    colours = 3.0 * torch.eye(3)[LABELS][:, None, :, None, None].expand(6, 2, 3, SIDE, SIDE)
    probe = OnlineProbe(model, 3)
    for step in range(60):
        with probe.recording(LABELS):
            model.train()(colours + 0.3 * random_views(6, 2, seed=step), torch.arange(6))
        probe.step()
    top1 = probe.finish_epoch()
    assert top1 is not None and top1 > 0.8  # the first steps included
    assert isinstance(model.projector, nn.Module)
    with torch.no_grad():
        features = F.normalize(model.encoder(colours[:, 0]))
    assert probe.top1(features, LABELS) == 1.0
