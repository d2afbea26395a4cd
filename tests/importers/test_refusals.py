"""What an import refuses: always one line that names the tensor, the object or the file."""

import argparse
import pickle
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from import_runs import refusal, run_import, written
from layouts import LAYOUTS
from torch import Tensor, nn

from saga_fast.checkpoint import read_checkpoint
from saga_fast.importers.reading import read_foreign

Capture = pytest.CaptureFixture[str]


def state_dicts(content: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """The dictionaries of tensors that a network is made from."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        yield content
    for key, value in content.items():
        if isinstance(value, dict) and not key.startswith(("optim", "callbacks", "contrast", "lemniscate")):
            yield from state_dicts(value)


def optional(name: str) -> bool:
    """Tensors that a file may lack or that are dropped, whatever their shape."""
    unused = ("num_batches_tracked", "classifier", "head_jig", "momentum_encoder", "predictor", "mask_token")
    return any(part in name for part in unused)


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_too_many_too_few_and_of_another_shape(name: str, tmp_path: Path, capsys: Capture) -> None:
    """One of each, another tensor for each layout; all were tried once."""
    choice = list(LAYOUTS).index(name)
    content = LAYOUTS[name]().content
    for state in state_dicts(content):
        tensors = [tensor for tensor in state if not optional(tensor)]
        first, second = tensors[(7 * choice) % len(tensors)], tensors[(11 * choice + 3) % len(tensors)]

        kept = state.pop(first)
        error = refusal(content, tmp_path, capsys)
        assert " lacks " in error
        assert first.split(".")[-2:][0] in error
        state[first] = kept

        kept = state[second]
        state[second] = torch.zeros(*kept.shape, 2)
        assert second in refusal(content, tmp_path, capsys)
        state[second] = kept

        surplus = f"{first.rpartition('.')[0]}.surplus"
        state[surplus] = torch.zeros(2)
        assert surplus in refusal(content, tmp_path, capsys)
        del state[surplus]


def test_no_tensor_at_all(tmp_path: Path, capsys: Capture) -> None:
    content = LAYOUTS["moco v2"]().content
    content["state_dict"]["module.encoder_q.bn1.weight"] = [1.0]
    assert "module.encoder_q.bn1.weight is not a tensor but a list" in refusal(content, tmp_path, capsys)


# ---------------------------------------------------------------- pickled objects


@pytest.fixture
def their_module(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """An object of a class that a file names and this machine happens to have."""
    module = types.ModuleType("lib_of_lemniscate")

    class NCEAverage(nn.Module):
        pass

    NCEAverage.__module__, NCEAverage.__qualname__ = module.__name__, "NCEAverage"
    module.NCEAverage = NCEAverage  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    return NCEAverage()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # of the class, which old torch stored too
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_module_is_refused(tmp_path: Path, capsys: Capture, their_module: nn.Module, zipped: bool) -> None:
    content = LAYOUTS["lemniscate"]().content | {"lemniscate": their_module}
    torch.save(content, tmp_path / "theirs.pth", _use_new_zipfile_serialization=zipped)
    error = refusal(tmp_path / "theirs.pth", tmp_path, capsys)
    assert "pickled lib_of_lemniscate.NCEAverage" in error
    assert "state_dict() in its place" in error


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.dumps(1),)


def test_code_does_not_run(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(LAYOUTS["moco v2"]().content | {"optimizer": Evil()}, tmp_path)
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("the file's code ran"))
    assert "reading that would run code" in refusal(path, tmp_path, capsys)


def test_options_and_numbers_are_read(tmp_path: Path) -> None:
    content = {
        "opt": argparse.Namespace(lr=0.1, epochs=[1, 2], nested=argparse.Namespace(a=None)),
        "best": np.float64(0.5),
        "small": np.float32(2.5),
        "count": np.int64(7),
        "flag": np.bool_(True),
    }
    assert read_foreign(written(content, tmp_path)) == content


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kept", [0.99, 0.6, 0.01])
def test_cut_file(tmp_path: Path, capsys: Capture, kept: float) -> None:
    path = written(LAYOUTS["moco v1 released"]().content, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert "cannot read the checkpoint" in refusal(path, tmp_path, capsys)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02", b"PK\x03\x04 no archive", b"model: resnet50\n"], ids=repr)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_no_checkpoint(tmp_path: Path, capsys: Capture, data: bytes, ending: str) -> None:
    path = tmp_path / f"file{ending}"
    path.write_bytes(data)
    assert str(path) in refusal(path, tmp_path, capsys)


def test_other_content(tmp_path: Path, capsys: Capture, finished_run: Path) -> None:
    assert "no such checkpoint" in refusal(tmp_path / "none.pth", tmp_path, capsys)
    assert "expected a dictionary, got list" in refusal(_saved([1, 2], tmp_path), tmp_path, capsys)
    assert "keys begin weights, lr" in refusal({"weights": 1, "lr": 2}, tmp_path, capsys)
    assert "saga-fast checkpoint already" in refusal(finished_run / "last.pt", tmp_path, capsys)
    assert "lacks state_dict" in refusal({"model": {}}, tmp_path, capsys, "--format", "moco")


def _saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "list.pth")
    return folder / "list.pth"


# ---------------------------------------------------------------- options


def test_a_bank_belongs_to_its_images(tmp_path: Path, capsys: Capture, images: Path) -> None:
    content = LAYOUTS["pycontrast insdis"]().content
    data = ["--data", images / "val"]
    error = refusal(content, tmp_path, capsys, *data)
    assert "contrast.memory has 41 rows" in error
    assert "16 images" in error
    out = run_import(content, tmp_path, *data, "--fresh-memory")
    assert read_checkpoint(out)["model"]["bank.rows"].shape == (16, 12)
    assert "bank: random rows" in capsys.readouterr().out


def test_outputs(tmp_path: Path, capsys: Capture, images: Path) -> None:
    ckpt = written(LAYOUTS["moco v2"]().content, tmp_path)
    before = ckpt.read_bytes()
    assert "the command reads it" in refusal(ckpt, tmp_path, capsys, "--config-out", ckpt)
    assert "a folder" in refusal(ckpt, tmp_path, capsys, "--config-out", tmp_path)
    assert "needs --data" in refusal(ckpt, tmp_path, capsys, "--boxes-out", tmp_path / "b")
    assert "contains no boxes" in refusal(
        ckpt, tmp_path, capsys, "--boxes-out", tmp_path / "b", "--data", images / "train"
    )
    assert "no such image folder" in refusal(ckpt, tmp_path, capsys, "--data", tmp_path / "none")
    assert "unknown key method.tau" in refusal(ckpt, tmp_path, capsys, "--set", "method.tau=1")
    assert "temperature must be positive" in refusal(ckpt, tmp_path, capsys, "--set", "method.temperature=0")
    assert ckpt.read_bytes() == before


def test_networks_that_have_no_counterpart(tmp_path: Path, capsys: Capture) -> None:
    cmc = LAYOUTS["cmc cmc"]().content
    cmc["opt"].view = "YCbCr"
    assert "YCbCr" in refusal(cmc, tmp_path, capsys)
    cmcv2 = LAYOUTS["pycontrast cmc"]().content
    assert "CMCv2" in refusal(cmcv2 | {"model_ema": cmcv2["model"]}, tmp_path, capsys)
    one_channel = LAYOUTS["torchvision"]().content
    one_channel["conv1.weight"] = one_channel["conv1.weight"][:, :1]
    assert "conv1.weight has shape (64, 1, 7, 7)" in refusal(one_channel, tmp_path, capsys)
    five = LAYOUTS["torchvision"]().content
    five["conv1.weight"] = torch.zeros(64, 3, 5, 5)
    assert "7x7 or 3x3" in refusal(five, tmp_path, capsys)
