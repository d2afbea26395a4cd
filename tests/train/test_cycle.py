"""The training cycle end to end on tiny runs: what a run does and leaves behind."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from run_folders import MOCO, crash_at, figures, rows_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from timm.models import register_model
from torch import Tensor, nn

from saga_fast import load_model
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.checkpoint import read_checkpoint
from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, CropPlan, ImageFolder, WholePlan, open_loader
from saga_fast.loaders.folder.engine import FolderLoader
from saga_fast.runtime.files import sha256
from saga_fast.runtime.metrics import read_metrics
from saga_fast.train import cycle, epoch, renewal
from saga_fast.train.cycle import train


def test_run_folder(finished_run: Path, tiny_yaml: Path) -> None:
    files = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        "config.yaml",
        "metrics.jsonl",
        "last.pt",
        "att/epoch_0001.safetensors",
        "att/epoch_0003.safetensors",
    }
    config = load_config(tiny_yaml, [f"out={finished_run}"])
    assert load_config(finished_run / "config.yaml") == config
    state = read_checkpoint(finished_run / "last.pt")
    assert state["epoch"] == 5
    assert state["dataset"] == ImageFolder(config.data.train).fingerprint
    table = finished_run / "att/epoch_0003.safetensors"
    assert state["box_table"] == {"name": "att/epoch_0003.safetensors", "sha256": sha256(table)}


def test_metrics_rows(finished_run: Path) -> None:
    rows = read_metrics(finished_run)
    order = [(row["kind"], row["epoch"]) for row in rows if row.get("layer") != "projector"]
    assert order == [
        ("knn", 0),
        ("epoch", 1),
        ("renewal", 1),
        ("epoch", 2),
        ("knn", 2),
        ("epoch", 3),
        ("renewal", 3),
        ("epoch", 4),
        ("knn", 4),
        ("epoch", 5),
        ("knn", 5),
    ]
    assert [row["phase"] for row in rows if row["kind"] == "epoch"] == ["plain"] + ["saga"] * 4
    for row in rows_of(finished_run, "epoch"):
        assert row["loss"] > 0.0
        assert row["images_per_second"] == pytest.approx(40 / row["seconds"])  # 41 images, 5 full batches of 8
        assert 0.0 <= row["data_wait"] <= 1.0
        assert -1.0 <= row["positive_similarity"] <= 1.0
    for row in rows_of(finished_run, "knn"):
        assert (row["k"], row["layer"] in ("backbone", "projector")) == (5, True)
        assert row["top1"] * 16 == pytest.approx(round(row["top1"] * 16))  # 16 images
    # Cosine over the 4 SAGA epochs of 5 steps, constant before; the rate of an epoch's last step is reported.
    rates = [row["lr"] for row in rows_of(finished_run, "epoch")]
    expected = [0.03] + [0.01 * (1 + np.cos(np.pi * (e + 0.8) / 4)) for e in range(4)]
    assert rates == pytest.approx(expected)


def test_renewal_rows_describe_the_tables(finished_run: Path) -> None:
    for row in rows_of(finished_run, "renewal"):
        assert row["table"] == f"att/epoch_{row['epoch']:04d}.safetensors"
        table = BoxTable.open(finished_run / row["table"])
        assert len(table) == 41
        assert row["found_fraction"] == pytest.approx(table.found.mean())
        assert row["box_area"] == pytest.approx(float((table.boxes[:, 2] * table.boxes[:, 3]).mean()), rel=1e-6)
        assert (row["iou"], row["corloc"]) == (None, None)
        assert row["images_per_second"] == pytest.approx(41 / row["seconds"])
        assert table.metadata["epoch"] == str(row["epoch"])
        assert (table.metadata["delta"], table.metadata["size"]) == ("0.7", "16")


def test_table_is_the_networks_own(tiny_yaml: Path, tmp_path: Path) -> None:
    """The table of a renewal holds the boxes of the checkpoint it names."""
    run = tmp_path / "run"
    train(
        load_config(tiny_yaml, [f"out={run}", "saga.epochs=1", "checkpoint.keep_every=1", "attention.score=activation"])
    )
    table = BoxTable.open(run / "att/epoch_0001.safetensors")
    model = load_model(run / "epoch_0001.pt").to(memory_format=torch.channels_last)
    config = load_config(run / "config.yaml")
    loader = open_loader("folder", config.data.train, WholePlan(size=16), batch_size=8)
    again = build_box_table(model, loader, AttentionPass(size=16, score="activation", channels_last=True))
    for column in ("boxes", "found", "pseudo_label", "score"):
        np.testing.assert_array_equal(getattr(table, column), getattr(again, column))
    assert table.metadata["dataset"] == loader.source.fingerprint
    assert table.metadata["checkpoint"] == sha256(run / "epoch_0001.pt")  # written with last.pt, from the same state


def test_tensorboard_has_the_figures(finished_run: Path) -> None:
    board = EventAccumulator(str(finished_run))
    board.Reload()
    wanted = {
        *(f"epoch/{name}" for name in ("loss", "lr", "images_per_second", "data_wait", "positive_similarity")),
        *(f"renewal/{name}" for name in ("box_area", "found_fraction")),
        "knn/backbone_5",
        "knn/projector_5",
    }
    assert wanted <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Images("attention/boxes")] == [1, 3]  # a sheet at each renewal
    losses = {event.step: event.value for event in board.Scalars("epoch/loss")}
    assert losses == pytest.approx({row["epoch"]: row["loss"] for row in rows_of(finished_run, "epoch")}, rel=1e-6)


def test_keep_every(tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    last = train(load_config(tiny_yaml, [f"out={run}", "checkpoint.keep_every=2", "evaluate=null"]))
    assert last == run / "last.pt"
    kept = sorted(path.name for path in run.glob("*.pt"))
    assert kept == ["epoch_0000.pt", "epoch_0002.pt", "epoch_0004.pt", "last.pt"]
    assert [read_checkpoint(run / name)["epoch"] for name in kept] == [0, 2, 4, 5]
    assert rows_of(run, "knn") == []


# ---------------------------------------------------------------- what the views are cropped from


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[CropPlan]:
    """The plan of every epoch that is trained from here on."""
    seen: list[CropPlan] = []
    real = epoch.train_epoch

    def record(*arguments: Any, **options: Any) -> Any:
        (loader,) = (value for value in arguments if isinstance(value, FolderLoader))
        assert isinstance(loader.plan, CropPlan)
        seen.append(loader.plan)
        return real(*arguments, **options)

    monkeypatch.setattr(cycle, "train_epoch", record)
    return seen


@pytest.mark.parametrize("views", ["att", "mixed", "union"])
def test_attention_views(tiny_yaml: Path, tmp_path: Path, plans: list[CropPlan], views: str) -> None:
    run = tmp_path / "run"
    overrides = [f"out={run}", "evaluate=null", f"attention={{views: {views}, period: 2, share: 0.4, delta: 0.5}}"]
    train(load_config(tiny_yaml, overrides))
    assert [plan.table is not None for plan in plans] == [False, True, True, True, True]

    indices = np.arange(41)
    names = [None, *["att/epoch_0001.safetensors"] * 2, *["att/epoch_0003.safetensors"] * 2]
    whole = np.broadcast_to(np.array([0, 0, 1, 1], np.float32), (41, 4))
    for number, (plan, name) in enumerate(zip(plans, names, strict=True)):
        boxes = plan.boxes(number, indices)
        assert boxes.shape == (41, 2, 4)
        own = BoxTable.open(run / name).boxes if name else whole
        if views == "att" or name is None:
            expected = [own, own]
        elif views == "mixed":
            expected = [whole, own]
        else:
            as_crop = (boxes == own[:, None]).all((1, 2))
            as_whole = (boxes == whole[:, None]).all((1, 2))
            assert (as_crop | as_whole).all()  # both views, or none
            assert 0 < as_crop.sum() < 41
            continue
        np.testing.assert_array_equal(boxes, np.stack(expected, 1))
    assert not np.array_equal(BoxTable.open(run / "att/epoch_0001.safetensors").boxes, whole)


def test_crop_settings_reach_the_loader(tiny_yaml: Path, tmp_path: Path, plans: list[CropPlan]) -> None:
    overrides = [f"out={tmp_path / 'run'}", "evaluate=null", "saga.epochs=1", "seed=3", "crop.ratio=[0.5, 2.0]"]
    train(load_config(tiny_yaml, [*overrides, "attention={min_side: 0.6, share: 0.3, crop: centred}"]))
    for plan in plans:
        assert (plan.size, plan.seed, plan.num_views) == (16, 3, 2)
        assert (plan.scale, plan.ratio) == ((0.2, 1.0), (0.5, 2.0))
    assert (plans[0].crop, plans[1].crop) == ("inside", "centred")
    assert (plans[1].min_side, plans[1].share) == (0.6, 0.3)


def test_attention_null_is_fine_tuning(tiny_yaml: Path, tmp_path: Path, plans: list[CropPlan]) -> None:
    run = tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={run}", "attention=null", "evaluate=null"]))
    assert all(plan.table is None for plan in plans)
    assert not (run / "att").exists()
    assert [row["phase"] for row in rows_of(run, "epoch")] == ["plain"] + ["saga"] * 4
    state = read_checkpoint(run / "last.pt")
    assert state["box_table"] is None
    assert state["epoch"] == 5


def test_ckpt_starts_the_saga_phase(finished_run: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config(tiny_yaml, [f"out={run}", "saga.epochs=1", "checkpoint.keep_every=1"])
    train(config, ckpt=finished_run / "last.pt")
    start, given = read_checkpoint(run / "epoch_0001.pt"), read_checkpoint(finished_run / "last.pt")
    assert start["epoch"] == 1
    assert start["model"].keys() == given["model"].keys()
    assert all(torch.equal(tensor, given["model"][name]) for name, tensor in start["model"].items())
    assert start["optimizer"]["state"] == {}
    assert [(row["kind"], row["epoch"]) for row in figures(run) if row.get("layer") != "projector"] == [
        ("knn", 1),
        ("renewal", 1),
        ("epoch", 2),
        ("knn", 2),
    ]
    given_top1 = [row["top1"] for row in rows_of(finished_run, "knn") if row["epoch"] == 5]
    assert [row["top1"] for row in rows_of(run, "knn")[:2]] == given_top1
    with pytest.raises(SagaError, match="no such checkpoint"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'other'}"]), ckpt=tmp_path / "none.pt")


def test_ckpt_of_another_method_is_refused(finished_run: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    with pytest.raises(SagaError, match=r"last.pt lacks key_encoder"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", MOCO]), ckpt=finished_run / "last.pt")


def test_true_boxes_are_scored(tiny_yaml: Path, images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(images / "train", data)
    rng = np.random.default_rng(0)
    truth = {path: [*rng.uniform(0.0, 0.3, 2), *rng.uniform(0.4, 0.7, 2)] for path in ImageFolder(data).paths}
    (data / "boxes.json").write_text(json.dumps(truth))
    run = tmp_path / "run"
    train(
        load_config(
            tiny_yaml,
            [
                f"out={run}",
                f"data={{train: {data}, true_boxes: true}}",
                "evaluate=null",
                "saga.epochs=1",
                "attention.delta=0.3",
            ],
        )
    )
    (row,) = rows_of(run, "renewal")
    boxes = BoxTable.open(run / row["table"]).boxes.tolist()
    overlaps = [overlap(box, true) for box, true in zip(boxes, truth.values(), strict=True)]
    assert row["iou"] == pytest.approx(sum(overlaps) / 41, rel=1e-5)
    assert row["corloc"] == pytest.approx(sum(value >= 0.5 for value in overlaps) / 41)
    assert 0.0 < row["corloc"] < 1.0


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    sides = [max(min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]), 0.0) for i in (0, 1)]
    shared = sides[0] * sides[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


# ---------------------------------------------------------------- what is refused or left out


def test_loss_that_is_not_finite(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    crash_at(monkeypatch, renewal, "build_box_table", 1)
    config = load_config(tiny_yaml, [f"out={run}", "plain.epochs=3", "plain.lr=1e20", "evaluate=null"])
    with pytest.raises(SagaError, match=r"loss is not finite since step \d of epoch 1: .*1e\+20.*last.pt") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    state = read_checkpoint(run / "last.pt")
    assert state["epoch"] == 0
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())
    assert rows_of(run, "epoch") == []


def test_too_few_images_for_a_batch(tiny_yaml: Path, tmp_path: Path) -> None:
    with pytest.raises(SagaError, match="batch_size 42 is more than the 41 images"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", "batch_size=42"]))


def test_k_larger_than_the_data_set_is_left_out(
    tiny_yaml: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    overrides = [f"out={run}", "evaluate.k=[5, 41, 42]", "saga.epochs=0"]
    train(load_config(tiny_yaml, overrides))
    assert {row["k"] for row in rows_of(run, "knn")} == {5, 41}
    assert any("k > 41" in record.message for record in caplog.records)


def test_every_k_larger_than_the_data_set(tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    try:
        train(load_config(tiny_yaml, [f"out={run}", "evaluate.k=[200]", "saga.epochs=0"]))
    except SagaError as error:
        assert "200" in str(error)  # refused, or left out: either is clear
    else:
        assert rows_of(run, "knn") == []


def test_gpu_that_is_not_there(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SagaError, match="device cuda"):
        train(load_config(tiny_yaml, [f"out={tmp_path / 'run'}", "device=cuda"]))


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("method", ["method.name=simclr", MOCO], ids=["simclr", "mocov2"])
@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=bf16"],
        ["precision=bf16", "channels_last=false"],
        ["channels_last=false", "optimizer={name: lars, decay_norm_and_bias: false}"],
        ["optimizer={name: adamw}", "plain={epochs: 1, lr: 1.0e-3, warmup_epochs: 1}"],
        ["photometric={flip: 0.0, jitter: 0.0, grayscale: 0.0}"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_options(tiny_yaml: Path, finished_run: Path, tmp_path: Path, method: str, overrides: list[str]) -> None:
    run = tmp_path / "run"
    train(load_config(tiny_yaml, [f"out={run}", "saga.epochs=1", method, *overrides]))
    assert [row["phase"] for row in rows_of(run, "epoch")] == ["plain", "saga"]
    state = read_checkpoint(run / "last.pt")
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state["model"].values())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state["model"].values())
    if method != MOCO:  # the finished run is SimCLR's
        first, reference = rows_of(run, "epoch")[0], rows_of(finished_run, "epoch")[0]
        assert first["loss"] != reference["loss"]  # the option did something


def test_queue_takes_the_keys_of_every_step(tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = [f"out={run}", MOCO, "plain.epochs=0", "saga.epochs=1", "batch_size=6", "evaluate=null"]
    train(load_config(tiny_yaml, [*overrides, "checkpoint.keep_every=1"]))
    start, end = (read_checkpoint(run / f"epoch_000{number}.pt")["model"] for number in (0, 1))
    assert int(start["queue_pointer"]) == 0
    assert int(end["queue_pointer"]) == 6 * 6 % 20  # 6 full batches of 41 images
    assert not (start["queue"] == end["queue"]).all(1).any()


def test_channels_last_reaches_model_and_input(
    tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, set[bool]] = {True: set(), False: set()}
    for wanted in (True, False):
        real = nn.Conv2d.forward

        def forward(self: nn.Conv2d, x: Tensor, *, wanted: bool = wanted, real: Any = real) -> Tensor:
            # Where one side is 1, both formats describe the same memory; one image alone is the encoder's own probe.
            if min(x.shape) > 1 and self.kernel_size == (3, 3):
                for tensor in (x, self.weight):
                    seen[wanted].add(tensor.is_contiguous(memory_format=torch.channels_last))
            result: Tensor = real(self, x)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(nn.Conv2d, "forward", forward)
            overrides = [f"out={tmp_path / str(wanted)}", "saga.epochs=1", f"channels_last={wanted}"]
            train(load_config(tiny_yaml, overrides))
    assert seen == {True: {True}, False: {False}}


class OneConvolution(nn.Module):
    """What the encoder asks of a backbone, in one layer: a ResNet takes a minute to compile, and tests no more."""

    default_cfg: ClassVar = {"input_size": (3, 16, 16)}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.norm(self.conv(x)).relu()
        return features

    def forward_head(self, x: Tensor, *, pre_logits: bool) -> Tensor:
        assert pre_logits
        return x.mean((2, 3))


@register_model
def saga_fast_one_convolution(pretrained: bool = False, **_: Any) -> nn.Module:
    assert not pretrained
    return OneConvolution()


def test_compile(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile: true` trains to the same weights up to rounding, under names that an uncompiled model loads."""
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # no pool of processes for three small kernels
    compiled: list[nn.Module] = []
    real = nn.Module.compile

    def record(self: nn.Module) -> None:
        compiled.append(self)
        real(self)

    monkeypatch.setattr(nn.Module, "compile", record)
    states = []
    for wanted in (False, True):
        run = tmp_path / str(wanted)
        encoder = "encoder={name: saga_fast_one_convolution}"
        overrides = ["saga.epochs=1", "evaluate=null", "crop.size=32", f"compile={wanted}"]
        train(load_config(tiny_yaml, [f"out={run}", encoder, *overrides]))
        states.append(load_model(run / "last.pt").state_dict())
    assert len(compiled) == 1
    plain, other = states
    assert plain.keys() == other.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)
    assert BoxTable.open(tmp_path / "True/att/epoch_0001.safetensors").found.any()


def test_config_yaml_is_complete(finished_run: Path) -> None:
    """Every default is written out, so that a run does not change when a default does."""
    values = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert set(values) == {field.name for field in fields(TrainConfig)}
    assert values["attention"]["delta"] == 0.7
    assert values["method"] == {
        "name": "simclr",
        "temperature": 0.2,
        "projection_dim": 12,
        "hidden_dim": None,
        "projection_layers": 2,
        "projection_norm": "none",
    }


def test_config_yaml_is_in_the_order_of_the_fields(finished_run: Path) -> None:
    values = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert list(values) == [field.name for field in fields(TrainConfig)]
