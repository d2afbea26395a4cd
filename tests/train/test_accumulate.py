"""`accumulate: N` in whole runs: losses of the whole batch, resuming, 16 bits, profiling, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from run_folders import MOCO, Crash, assert_same_run, crash_at, rows_of

from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import Batch
from saga_fast.methods import build_method
from saga_fast.optim import build_optimizer
from saga_fast.train import step
from saga_fast.train.cycle import train
from saga_fast.train.step import Training, backward_step, update_step

GROUP_NORM = "encoder.args.norm_layer=groupnorm1"
SIMCLR = "method={name: simclr, temperature: 0.2, projection_dim: 12, projection_norm: all}"
INSDIS = "method={name: insdis, projection_dim: 12, negatives: 16, loss: nce}"
METHODS = {"simclr": SIMCLR, "moco": MOCO, "insdis": INSDIS}
SHORT = ["saga.epochs=1", "attention={period: 1, views: paste}", "evaluate=null"]


@pytest.mark.parametrize("method", [SIMCLR.replace("all", "none"), MOCO, INSDIS.replace("nce", "softmax")], ids=METHODS)
def test_run_is_the_whole_batchs(tiny_yaml: Path, tmp_path: Path, method: str) -> None:
    """Without batch norm, to rounding; the figures are the step's, and so is what the online probe learns from."""
    shown, probes = [], []
    for parts in (1, 4):
        overrides = [f"out={tmp_path / str(parts)}", method, GROUP_NORM, f"accumulate={parts}", *SHORT[:-1]]
        train(load_config(tiny_yaml, overrides))
        rows = rows_of(tmp_path / str(parts), "epoch")
        shown.append([(row["loss"], row["positive_similarity"], row["lr"]) for row in rows])
        probe = read_checkpoint(tmp_path / str(parts) / "last.pt")["online_probe"]
        probes.append(probe["classifier"]["weight"])
    torch.testing.assert_close(*probes, rtol=1e-2, atol=1e-4)
    assert len(shown[0]) == 2
    for row, expected in zip(*shown, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_killed_after_some_steps(tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """With batch norm and random depth, whose draws must go on from the checkpoint."""
    options = [method, "encoder.args.drop_path_rate=0.3", "accumulate=4", "checkpoint.every_steps=2", *SHORT]
    train(load_config(tiny_yaml, [f"out={tmp_path / 'reference'}", *options]))
    config = load_config(tiny_yaml, [f"out={tmp_path / 'run'}", *options])
    for kill, position in ((4, (0, 2)), (6, (1, 2))):
        with monkeypatch.context() as patch:
            crash_at(patch, step, "sample_photometrics", kill)
            with pytest.raises(Crash):
                train(config, resume=True)
        state = read_checkpoint(tmp_path / "run" / "last.pt")
        assert (state["epoch"], (state["so_far"] or {"done": 0})["done"]) == position
    train(config, resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "reference")


def test_checkpoint_without_the_key_is_of_whole_batches(tiny_yaml: Path, tmp_path: Path) -> None:
    """As those of earlier versions are. A run goes on with its number of parts: batch norm depends on it."""
    out = tmp_path / "run"
    options = [f"out={out}", "saga.epochs=0", "evaluate=null"]
    train(load_config(tiny_yaml, options))
    state = read_checkpoint(out / "last.pt")
    assert state["config"].pop("accumulate") == 1
    save_checkpoint(out / "last.pt", {key: state[key] for key in state if key not in ("format", "version")})
    train(load_config(tiny_yaml, options), resume=True)
    with pytest.raises(SagaError, match=r"cannot resume .* with another accumulate"):
        train(load_config(tiny_yaml, [*options, "accumulate=2"]), resume=True)


def make_training(yaml: Path, precision: str, parts: int, *, scale: float = 1024.0) -> Training:
    config = load_config(yaml, [f"precision={precision}", f"accumulate={parts}", GROUP_NORM, "channels_last=false"])
    torch.manual_seed(0)
    model = build_method(config.method, config.encoder, parts=parts).train()
    optimizer = build_optimizer(config.optimizer, model)
    optimizer.param_groups[0]["lr"] = 0.01
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=precision == "fp16")
    return Training(config=config, model=model, network=model, optimizer=optimizer, scaler=scaler)


def weights_after_a_step(training: Training) -> torch.Tensor:
    views = torch.randint(256, (8, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backward_step(training, Batch(views, torch.arange(8), torch.full((8,), -1)), 0)
    update_step(training)
    return torch.nn.utils.parameters_to_vector(training.model.parameters()).detach()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_update_in_16_bits(tiny_yaml: Path, precision: str) -> None:
    start = torch.nn.utils.parameters_to_vector(make_training(tiny_yaml, "fp32", 1).model.parameters()).detach()
    whole = weights_after_a_step(make_training(tiny_yaml, "fp32", 1)) - start
    parted = weights_after_a_step(make_training(tiny_yaml, precision, 4)) - start
    assert float(torch.cosine_similarity(parted, whole, dim=0)) > 0.99


def test_overflow_in_16_bits_skips_the_step(tiny_yaml: Path) -> None:
    training = make_training(tiny_yaml, "fp16", 4, scale=2.0**60)
    start = torch.nn.utils.parameters_to_vector(training.model.parameters()).detach()
    assert torch.equal(weights_after_a_step(training), start)
    assert training.scaler.get_scale() == 2.0**59


def test_profile(tiny_yaml: Path, tmp_path: Path) -> None:
    arguments = ["profile", "train", "--config", tiny_yaml, "--seconds", "0.05", "--json", tmp_path / "t.json"]
    assert main([*map(str, arguments), "--set", "accumulate=4"]) == 0
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["loader", "step", "train"]


@pytest.mark.parametrize("parts", [3, 0, -1, 16])
def test_number_is_checked(tiny_yaml: Path, parts: int) -> None:
    with pytest.raises(SagaError, match=f"accumulate must divide batch_size 8, got {parts}"):
        load_config(tiny_yaml, [f"accumulate={parts}"])
