"""Refused configs, and the options of a run, in tiny runs."""

from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch._inductor.config
import yaml
from run_folders import MOCO, crash_at, rows_of
from timm.models import register_model
from torch import Tensor, nn

from saga_fast import load_model
from saga_fast.checkpoint import read_checkpoint
from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable
from saga_fast.train import renewal
from saga_fast.train.cycle import train


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


@pytest.mark.parametrize("parts", [1, 2])
def test_compile(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """`compile: true` trains to the same weights up to rounding, under names that an uncompiled model loads."""
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
        overrides = ["saga.epochs=1", "data.val=null", "crop.size=32", f"compile={wanted}", f"accumulate={parts}"]
        with torch._inductor.config.patch(compile_threads=1):  # no pool of processes for three small kernels
            train(load_config(tiny_yaml, [f"out={run}", encoder, *overrides]))
        states.append(load_model(run / "last.pt").state_dict())
    assert len(compiled) == 1
    plain, other = states
    assert plain.keys() == other.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)
    assert BoxTable.open(tmp_path / "True/att/epoch_0001.safetensors").found.any()
    first, second = (read_checkpoint(tmp_path / name / "last.pt")["online_probe"] for name in ("False", "True"))
    torch.testing.assert_close(first["classifier"], second["classifier"], rtol=1e-3, atol=1e-4)


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
