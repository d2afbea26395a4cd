"""DINO's loss, gradients, centre, teacher and steps against the paper's equations in float64 loops, and lightly."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightly.loss import DINOLoss
from method_loops import assert_gradient, build, random_rows, random_views
from method_oracles import (
    AdamW,
    Rows,
    Weights,
    assert_equal,
    average,
    batch_norm,
    encode,
    gradients_of,
    half_cosine,
    linear,
    replace_encoder,
    unit,
    weights_of,
)
from torch import Tensor, nn

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.config_file import config_from_dict
from saga_fast.kernels import PhotometricRecipe
from saga_fast.loaders import LoaderOptions, WholePlan, open_loader
from saga_fast.methods import METHODS, Progress, ViewGroup, build_method
from saga_fast.methods.dino import DINO, DINOConfig, cross_entropy
from saga_fast.models.encoder import EncoderConfig
from saga_fast.optim import PhaseConfig, build_optimizer, set_schedules
from saga_fast.train.step import Training, update_step

SMALL = {"prototypes": 12, "projection_dim": 6, "hidden_dim": 10, "local_size": 12, "local_views": 3}
STEPS, LR, CLIP, MOMENTUM, DECAY = 4, 0.01, 0.05, 0.9, (0.04, 0.4)
PHASE = PhaseConfig(epochs=STEPS, lr=LR, weight_decay=DECAY)


def make(seed: int = 0, **fields: Any) -> DINO:
    model = build("dino", seed=seed, **SMALL | fields)
    assert isinstance(model, DINO)
    return model


def training(model: DINO, tiny_values: Callable[[], dict[str, Any]]) -> Training:
    optimizer = {"name": "adamw", "decay_norm_and_bias": False, "clip_gradient": CLIP}
    values = {**tiny_values(), "method": {"name": "dino"}, "optimizer": optimizer}
    config = config_from_dict(values, where="test")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer_ = build_optimizer(config.optimizer, model)
    return Training(config=config, model=model, network=model, optimizer=optimizer_, scaler=scaler)


def gelu(row: Tensor) -> Tensor:
    return 0.5 * row * (1.0 + torch.erf(row / math.sqrt(2.0)))


def logits_loops(weights: Weights, prefix: str, views: Sequence[Rows]) -> list[list[Tensor]]:
    """Appendix C: three layers with GELU, L2 norm, and a linear layer whose rows are norm times direction.

    Batch norm follows the first two layers, if the weights have it; its statistics are of all views, of one size.
    """
    norms = weights[f"{prefix}prototypes.parametrizations.weight.original0"]
    directions = weights[f"{prefix}prototypes.parametrizations.weight.original1"]
    rows = [row for view in views for row in view]
    normed = f"{prefix}projector.1.weight" in weights
    *hidden, last = (0, 3, 6) if normed else (0, 2, 4)
    for layer in hidden:
        rows = [linear(weights, f"{prefix}projector.{layer}", row) for row in rows]
        rows = batch_norm(weights, f"{prefix}projector.{layer + 1}", rows) if normed else rows
        rows = [gelu(row) for row in rows]
    result = []
    for row in rows:
        z = unit(linear(weights, f"{prefix}projector.{last}", row))
        result.append(torch.stack([g[0] * (unit(v) * z).sum() for g, v in zip(norms, directions, strict=True)]))
    count = len(views[0])
    return [result[first : first + count] for first in range(0, len(result), count)]


def softmax(row: Tensor) -> Tensor:
    powers = torch.exp(row - row.detach().max())
    return powers / powers.sum()


def loss_loops(teacher: list[list[Tensor]], student: list[list[Tensor]], centre: Tensor, tau: float) -> Tensor:
    """Eq. 3 and Algorithm 1: H(P_t(x), P_s(x')) over pairs x' != x of a global view x and any view x'."""
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for x, of_teacher in enumerate(teacher):
        for other, of_student in enumerate(student):
            if other == x:
                continue
            for t, s in zip(of_teacher, of_student, strict=True):
                total = total - (softmax((t - centre) / tau) * torch.log(softmax(s / 0.1))).sum()
                terms += 1
    return total / terms


@pytest.mark.parametrize(("unit_prototypes", "head"), [(True, "none"), (False, "none"), (True, "hidden")])
def test_four_steps_are_the_papers(
    unit_prototypes: bool, head: str, monkeypatch: pytest.MonkeyPatch, tiny_values: Callable[[], dict[str, Any]]
) -> None:
    """Loss, gradients, AdamW's weights, teacher and centre, in float64, to 1e-10.

    An epoch is a step: the first one leaves the prototypes, the temperature is warmed up for three, clipping acts.
    """
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    model = make(
        unit_prototypes=unit_prototypes,
        projection_norm=head,
        teacher_temperature=0.07,
        warmup_temperature=0.04,
        warmup_epochs=3,
        momentum=MOMENTUM,
        centre_momentum=0.8,
    ).train()
    replace_encoder(model, "student_encoder", "encoder")
    if head == "hidden":
        # Batch norm cancels these biases: AdamW would scale up the rounding errors that are their gradient.
        for bias in ("encoder.linear.bias", "projector.0.bias", "projector.3.bias"):
            model.get_parameter(f"student_{bias}").requires_grad_(False)
    trained = training(model, tiny_values)
    weights, oracle, clipped = weights_of(model), AdamW(), 0
    for step, tau in enumerate((0.04, 0.055, 0.07, 0.07)):
        views, local = random_views(4, 2, seed=step, side=5).double(), random_views(4, 3, seed=9 + step).double()
        model.progress = Progress(epochs=float(step), phase=step / STEPS)
        set_schedules(trained.optimizer, trained.config.optimizer, PHASE, step)
        output = model(views, torch.arange(4), local)
        trained.optimizer.zero_grad()
        output.loss.backward()

        teacher = logits_loops(weights, "", [encode(weights, "encoder", view) for view in views.unbind(1)])
        student = []
        for group in (views, local):
            rows = [encode(weights, "student_encoder", view) for view in group.unbind(1)]
            student += logits_loops(weights, "student_", rows)
        loss = loss_loops(teacher, student, weights["centre"], tau)
        assert output.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        gradients = gradients_of(loss, weights)
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert found.keys() == gradients.keys()
        assert_equal(found, gradients)

        update_step(trained)
        for name, gradient in gradients.items():
            length = math.sqrt((gradient**2).sum())
            clipped += length > CLIP
            gradients[name] = gradient * min(1.0, CLIP / (length + 1e-6))
        if step == 0:
            gradients = {name: gradient for name, gradient in gradients.items() if "prototypes" not in name}
        oracle.step(weights, gradients, LR, half_cosine(*DECAY, step, STEPS))
        pairs = {name: f"student_{name}" for name in ("encoder", "projector", "prototypes")}
        average(weights, pairs, half_cosine(MOMENTUM, 1.0, step, STEPS))
        logits = [row for rows in teacher for row in rows]
        weights["centre"] = 0.8 * weights["centre"] + 0.2 * torch.as_tensor(sum(logits)).detach() / len(logits)
        assert_equal(model.state_dict(), weights)
    assert 0 < clipped <= 4 * len(gradients) - (head == "none")  # with batch norm all gradients are clipped


def test_loss_centre_and_gradient_are_lightlys() -> None:
    """Three batches of logits; lightly's centre moves within its loss."""
    criterion = DINOLoss(output_dim=9, teacher_temp=0.05, center_momentum=0.9)
    centre = torch.zeros(9)
    for seed in range(3):
        student = random_rows(5 * 6, 9, seed=seed).float().view(5, 6, 9).requires_grad_()
        teacher = random_rows(5 * 2, 9, seed=10 + seed).float().view(5, 2, 9)
        loss = cross_entropy(student / 0.1, (teacher - centre) / 0.05)
        expected = criterion(list(teacher.unbind(1)), list(student.unbind(1)), teacher_temp=0.05)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
        own, lightlys = (torch.autograd.grad(each, student)[0] for each in (loss, expected))
        assert_gradient(own, lightlys.double())
        centre = 0.9 * centre + 0.1 * teacher.mean((0, 1))
        torch.testing.assert_close(centre, criterion.center[0, 0])


def test_teacher_gets_global_views_only() -> None:
    model = make().train()
    calls: list[tuple[int, ...]] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: calls.append(tuple(inputs[0].shape)))
    model(random_views(4, 2), torch.arange(4), random_views(4, 3, side=12))
    assert calls == [(8, 3, 16, 16)]


def test_nothing_reaches_the_teacher() -> None:
    model = make().train()
    before = copy.deepcopy(model.state_dict())
    model(random_views(4, 2), torch.arange(4), random_views(4, 3, side=12)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    norms = "student_prototypes.parametrizations.weight.original0"
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("student_")} - {norms}
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("running" in name or "tracked" in name for name in moved)


def test_prototypes_are_frozen_in_the_first_epochs() -> None:
    model = make(frozen_epochs=2)
    for epochs, frozen in ((0.0, True), (1.99, True), (2.0, False), (7.5, False)):
        model.progress = Progress(epochs=epochs)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        model.after_backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert {name.partition(".")[0] for name in without} == ({"student_prototypes"} if frozen else set())


def test_temperature() -> None:
    """The official schedule: numpy.linspace(warm-up, final, epochs), then the final one."""
    model = make(warmup_temperature=0.04, teacher_temperature=0.07, warmup_epochs=4)
    found = []
    for epochs in (0.0, 0.9, 1.0, 2.0, 3.0, 3.99, 4.0, 50.0):
        model.progress = Progress(epochs=epochs)
        found.append(model.teacher_temperature)
    assert found == pytest.approx([0.04, 0.04, 0.05, 0.06, 0.07, 0.07, 0.07, 0.07])
    assert make(warmup_temperature=0.01, teacher_temperature=0.03).teacher_temperature == 0.03


def test_teacher_has_no_stochastic_depth() -> None:
    args = {"layers": [1] * 4, "channels": [8, 8, 8, 16], "drop_path_rate": 0.5, "zero_init_last": False}
    config = DINOConfig(**SMALL)  # type: ignore[arg-type]
    model = build_method(config, EncoderConfig(name="resnet18", stem="small", args=args)).train()
    assert isinstance(model, DINO)
    views = random_views(6, 1)[:, 0]
    first, second = (model.encoder(views) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(model.student_encoder(views), model.student_encoder(views))


def test_vision_transformer(images: Path) -> None:
    """Global and local views of 64 and 32 px through one network; the teacher's class token attends to patches."""
    args = {"embed_dim": 32, "depth": 2, "num_heads": 2, "drop_path_rate": 0.1}
    config = DINOConfig(**SMALL | {"local_size": 32})  # type: ignore[arg-type]
    model = build_method(config, EncoderConfig(name="vit_tiny_patch16_224", args=args)).train()
    assert isinstance(model, DINO)
    model(random_views(4, 2, side=64), torch.arange(4), random_views(4, 3, side=32)).loss.backward()
    model.after_step()
    student = dict(model.student_encoder.named_parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in student.values())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    loader = open_loader("folder", images / "train", WholePlan(size=64), LoaderOptions(threads=1), batch_size=8)
    for score in ("pseudo_label", "token"):
        table = build_box_table(model, loader, AttentionPass(size=64, score=score, delta=0.5))
        assert len(table) == 41 and table.found.any()


def test_without_local_views() -> None:
    model = make(local_views=0)
    assert (model.more_views, model.whole_views) == ((), 1)
    model(random_views(4, 2), torch.arange(4)).loss.backward()


def test_built_as_registered() -> None:
    model = make(local_scale=(0.1, 0.3), local_photometric=PhotometricRecipe(flip=0.5))
    local = ViewGroup(size=12, count=3, scale=(0.1, 0.3), photometric=PhotometricRecipe(flip=0.5))
    assert (model.more_views, model.num_views, model.whole_views) == ((local,), 2, 2)
    assert type(model) is METHODS["dino"] and model.sync_batchnorm
    (branch,) = model.branches(random_views(2, 1)[:, 0])
    assert branch.encoder is model.encoder and branch.projector is model.projector
    linears = [layer for layer in model.projector.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linears] == [10, 10, 6]
    defaults = DINOConfig()
    assert (defaults.prototypes, defaults.projection_dim, defaults.hidden_dim) == (65536, 256, 2048)
    assert (defaults.momentum, defaults.centre_momentum, defaults.frozen_epochs) == (0.996, 0.9, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prototypes", 1),
        ("projection_norm", "all"),
        ("momentum", 1.0),
        ("centre_momentum", -0.1),
        ("warmup_epochs", -1),
        ("frozen_epochs", -1),
        ("local_views", 65),
        ("local_size", 0),
    ],
)
def test_config_refuses(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field} must .*, got {value}"):
        DINOConfig(**{field: value})
    with pytest.raises(ValueError, match=r"local_scale must be an increasing pair"):
        DINOConfig(local_scale=(0.5, 0.2))
