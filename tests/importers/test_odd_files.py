"""Checkpoints of other projects with odd entries and damage: refused in one line, or read."""

import copy
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from vit_layouts import VIT_LAYOUTS

from saga_fast.errors import SagaError
from saga_fast.importers.convert import import_checkpoint
from saga_fast.importers.reading import read_foreign


def one_line(error: pytest.ExceptionInfo[SagaError], *words: object) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert str(word) in str(error.value)


def classifier() -> dict[str, Tensor]:
    """A ResNet of blocks of width 8."""
    from timm import create_model

    torch.manual_seed(0)
    return create_model("resnet18", layers=[1] * 4, channels=[8] * 4, num_classes=3).state_dict()


@pytest.mark.parametrize("ending", [".pth", ".t7"])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_bit_of_a_foreign_checkpoint(tmp_path: Path, place: float, ending: str) -> None:
    path = tmp_path / f"theirs{ending}"
    torch.save(classifier(), path)
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(SagaError, match=r"damaged|cannot read") as error:
        import_checkpoint(path)
    one_line(error, path)


WEIGHT = "layer1.0.conv1.weight"
ODD: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda _: 5,
    "None": lambda _: None,
    "text": lambda _: "weights",
    "a list": lambda w: w.tolist(),
    "a tensor in a list": lambda w: [w],
    "meta": lambda w: w.to("meta"),
    "sparse": lambda w: w.to_sparse(),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "complex": lambda w: w.to(torch.complex64),
    "bool": lambda w: w > 0,
    "int8": lambda w: w.to(torch.int8),
    "nan": lambda w: torch.full_like(w, math.nan),
    "infinite": lambda w: torch.full_like(w, math.inf),
    "a scalar": lambda w: w.sum(),
    "empty": lambda w: w[:0],
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:.*[Qq]uant", "ignore:TypedStorage")
def test_odd_tensors_of_a_foreign_checkpoint(tmp_path: Path, name: str) -> None:
    state: dict[str, Any] = classifier()
    state[WEIGHT] = ODD[name](state[WEIGHT])
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    with pytest.raises(SagaError) as error:
        import_checkpoint(tmp_path / "theirs.pth")
    one_line(error, "theirs.pth")


@pytest.mark.parametrize("change", [Tensor.double, Tensor.half, lambda w: torch.zeros(1).expand(w.shape)])
def test_other_precisions_are_read(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    state = classifier()
    state[WEIGHT] = change(state[WEIGHT])
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    model = import_checkpoint(tmp_path / "theirs.pth").model
    torch.testing.assert_close(model.state_dict()[f"encoder.backbone.{WEIGHT}"], state[WEIGHT].float())


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file(classifier(), path)
    data = path.read_bytes()
    for damaged in (b"", data[:100], data[:-1], b"\xff" * 8 + data[8:]):
        path.write_bytes(damaged)
        with pytest.raises(SagaError, match="cannot read the checkpoint") as error:
            read_foreign(path)
        one_line(error, path)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_fifo_is_no_checkpoint(tmp_path: Path, ending: str) -> None:
    os.mkfifo(tmp_path / f"pipe{ending}")
    with pytest.raises(SagaError, match="no such checkpoint"):
        read_foreign(tmp_path / f"pipe{ending}")


VALUES = [None, 7, -1, 10**30, 1.5, True, "text", [], {}, {"a": 1}, torch.zeros(3), torch.tensor(2), math.nan, [[1]]]
ENTRIES = {
    "cmc": ({"model": {"encoder.module.conv1.weight": 0}}, ("opt", "contrast", "model_ema", "epoch", "model")),
    "vissl": ({"classy_state_dict": {"base_model": {}}}, ("loss", "train_phase_idx", "classy_state_dict", "epoch")),
    "lemniscate": ({"state_dict": {"fc.weight": 0}}, ("lemniscate", "epoch", "state_dict")),
    "contrastivecrop": ({"simclr_state": {"fc.weight": 0}}, ("boxes", "epoch", "simclr_state", "moco_state")),
    "torchvision": ({"model": {"conv1.weight": 0}}, ("args", "arch", "epoch", "model", "format")),
    "timm": ({"arch": "test_convnext"}, ("args", "arch", "epoch", "state_dict")),
    "pycontrast": ({"model": {"encoder.conv1.weight": 0}}, ("contrast", "model_ema", "epoch", "model")),
    "lightly": ({}, ("state_dict", "epoch")),
    "solo-learn": ({}, ("state_dict", "epoch")),
    "moco": ({}, ("state_dict", "epoch")),
    "dino": ({}, ("student", "teacher", "dino_loss", "args", "epoch")),
    "vit": ({"model": {"patch_embed.proj.weight": 0, "cls_token": 0}}, ("model", "epoch")),
}


def contents(name: str) -> dict[str, Any]:
    """A good file of a format, whose networks have the tensors of :func:`classifier`."""
    state = classifier()
    trunk = {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}
    head = {"weight": state["fc.weight"], "bias": state["fc.bias"]}
    rows = torch.eye(3)

    def renamed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {prefix + key: tensor for key, tensor in tensors.items()}

    nce = {"params": torch.tensor([4.0, 0.1, 2.0, 0.5]), "memory": rows}
    model = {"trunk": renamed("_feature_blocks.", trunk), "heads": renamed("0.clf.0.", head)}
    projector = renamed("projector.", {"0.weight": torch.ones(4, 8), "0.bias": torch.ones(4)})
    projector |= renamed("projector.", {"2.weight": torch.ones(3, 4), "2.bias": torch.ones(3)})
    layers = {key.replace("projector.", "projection_head.layers."): tensor for key, tensor in projector.items()}
    files: dict[str, dict[str, Any]] = {
        "cmc": {"model": renamed("encoder.module.", state), "contrast": nce, "opt": {"softmax": False}},
        "vissl": {
            "classy_state_dict": {"base_model": {"model": model}},
            "loss": renamed("nce_average.", nce),
            "train_phase_idx": 3,
        },
        "lemniscate": {"state_dict": state, "lemniscate": nce},
        "contrastivecrop": {"simclr_state": state, "boxes": torch.full((2, 4), 0.5)},
        "torchvision": {"model": state, "args": None},
        "timm": {"arch": "test_convnext", "state_dict": {}},
        "pycontrast": {
            "model": renamed("encoder.", trunk) | renamed("head.0.", head),
            "contrast": {"memory": rows},
        },
        "lightly": {"state_dict": renamed("backbone.", trunk) | layers},
        "solo-learn": {"state_dict": renamed("backbone.", trunk) | projector},
        "moco": {"state_dict": renamed("module.encoder_q.", state)},
        "dino": VIT_LAYOUTS["dino resnet"]().content if name == "dino" else {},
        "vit": VIT_LAYOUTS["vit dinov2 registers"]().content if name == "vit" else {},
    }
    return files[name] | {"epoch": 3}


@pytest.mark.parametrize("name", ENTRIES)
def test_any_entry_of_a_foreign_checkpoint_may_be_odd(tmp_path: Path, name: str) -> None:
    """Refused in one line, or read: never another error."""
    path = tmp_path / "theirs.pth"
    torch.save(contents(name), path)
    if name != "timm":
        assert import_checkpoint(path).format == name
    for entry in ENTRIES[name][1]:
        for value in VALUES:
            torch.save({**contents(name), entry: value}, path)
            for options in ({}, {"format": name}):
                try:
                    import_checkpoint(path, **options)  # type: ignore[arg-type]
                except SagaError as error:
                    assert "\n" not in str(error) and str(path) in str(error)


def nested(values: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The places of all tensors in nested dictionaries."""
    for key, value in values.items():
        yield from nested(value, (*at, key)) if isinstance(value, dict) else [(*at, key)]


@pytest.mark.parametrize("name", sorted(set(ENTRIES) - {"timm"}))
def test_any_tensor_of_a_foreign_checkpoint_may_be_odd(tmp_path: Path, name: str) -> None:
    path, good = tmp_path / "theirs.pth", contents(name)
    places = [place for place in nested(good) if place[-1] != "epoch"]
    places = places[:: 1 + len(places) // 100]  # DINO has two networks
    for number, place in enumerate(places):
        for value in (VALUES[number % len(VALUES)], torch.full((2, 2), math.nan), torch.zeros(0), torch.tensor([1, 2])):
            content = copy.deepcopy(good)
            section = content
            for key in place[:-1]:
                section = section[key]
            section[place[-1]] = value
            torch.save(content, path)
            try:
                import_checkpoint(path)
            except SagaError as error:
                assert "\n" not in str(error) and str(path) in str(error)


def test_names_that_are_no_words(tmp_path: Path) -> None:
    state: dict[Any, Any] = classifier()
    for content in ({**state, 7: torch.zeros(1)}, {7: 1, None: 2}, {"state_dict": {**state, (1, 2): torch.zeros(2)}}):
        torch.save(content, tmp_path / "theirs.pth")
        with pytest.raises(SagaError) as error:
            import_checkpoint(tmp_path / "theirs.pth")
        one_line(error, "theirs.pth")
