"""Checkpoints: read without running code, refused with the reason, and models that give back what they gave."""

import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import saga_fast
from saga_fast.checkpoint import checkpoint_config, load_model, load_weights, read_checkpoint, save_checkpoint
from saga_fast.config_file import config_to_dict, load_config
from saga_fast.errors import SagaError
from saga_fast.methods import build_method
from saga_fast.methods.mocov2 import MoCoV2
from saga_fast.methods.simclr import SimCLR
from saga_fast.train.cycle import train

MOCO = "method={name: mocov2, projection_dim: 12, queue_size: 20}"


def save_method(path: Path, tiny_yaml: Path, *overrides: str, **changes: torch.Tensor | None) -> nn.Module:
    """A checkpoint of a network with random batch-norm statistics; the network. None takes a tensor out."""
    config = load_config(tiny_yaml, [*overrides])
    model = build_method(config.method, config.encoder)
    with torch.no_grad():
        model.encoder(torch.randn(8, 3, 16, 16))
    state = {**model.state_dict(), **changes}
    weights = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_checkpoint(path, {"config": config_to_dict(config), "model": weights})
    return model


def refusal(path: Path, read: Callable[[Path], Any] = load_model) -> str:
    with pytest.raises(SagaError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("overrides", "kind"), [([], SimCLR), ([MOCO], MoCoV2)], ids=["simclr", "mocov2"])
@pytest.mark.parametrize("as_text", [True, False])
def test_load_model_gives_the_same_z(
    tiny_yaml: Path, tmp_path: Path, overrides: list[str], kind: type[nn.Module], as_text: bool
) -> None:
    path = tmp_path / "a.pt"
    model = save_method(path, tiny_yaml, *overrides).eval()
    loaded = saga_fast.load_model(str(path) if as_text else path)
    assert type(loaded) is kind
    assert loaded.method == kind.__name__.lower()
    assert not any(module.training for module in loaded.modules())
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded.encoder(x), model.get_submodule("encoder")(x))
        z = loaded.projector(loaded.encoder(x))
        assert torch.equal(z, model.get_submodule("projector")(model.get_submodule("encoder")(x)))
    assert z.shape == (3, 12)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_load_model_of_a_run(finished_run: Path) -> None:
    state = read_checkpoint(finished_run / "last.pt")
    loaded = load_model(finished_run / "last.pt").state_dict()
    assert loaded.keys() == state["model"].keys()
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in loaded.items())
    assert checkpoint_config(state, finished_run / "last.pt") == load_config(finished_run / "config.yaml")


def test_global_generator_is_untouched(finished_run: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(finished_run / "last.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.pt") == f"no such checkpoint: {tmp_path / 'none.pt'}"
    assert refusal(tmp_path) == f"no such checkpoint: {tmp_path}"


class Evil:
    """Runs code when an ordinary pickle reader meets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.dumps(1),)


def torch_bytes(content: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_with_code_is_refused(tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evil.pt"
    path.write_bytes(torch_bytes({"format": "saga-fast/checkpoint", "version": 1, "model": Evil()}, legacy=legacy))
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("the checkpoint's code ran"))
    assert "pickle code" in refusal(path)


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.ones(3)}}, [1, 2], {"format": "other"}], ids=str)
def test_another_programs_file_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(torch_bytes(content))
    assert refusal(path) == f"{path} is not a saga-fast checkpoint"


def test_checkpoint_without_a_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"config": {}, "epoch": 1})
    with pytest.raises(SagaError, match=r"a.pt holds no model: saga-fast train did not write it"):
        load_model(tmp_path / "a.pt")


@pytest.mark.parametrize("wrong", [{3: torch.ones(2)}, {"a": 5}], ids=["number as a name", "number as a tensor"])
def test_state_that_is_none_is_refused(tiny_yaml: Path, tmp_path: Path, wrong: dict[Any, Any]) -> None:
    save_method(tmp_path / "a.pt", tiny_yaml)
    content = read_checkpoint(tmp_path / "a.pt")
    content["model"] |= wrong
    save_checkpoint(tmp_path / "a.pt", content)
    assert "its model holds" in refusal(tmp_path / "a.pt")


def test_training_on_from_a_checkpoint_without_a_model(tiny_yaml: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"config": {}, "epoch": 1})
    config = load_config(tiny_yaml, [f"out={tmp_path / 'run'}"])
    with pytest.raises(SagaError, match=r"a.pt holds no model"):
        train(config, ckpt=tmp_path / "a.pt")


def test_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.pt"
    path.write_bytes(torch_bytes({"format": "saga-fast/checkpoint", "version": 99}))
    assert "version 99" in refusal(path)


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.01])
def test_cut_file_is_refused(finished_run: Path, tmp_path: Path, kept: float) -> None:
    data = (finished_run / "last.pt").read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(kept * len(data))])
    assert refusal(path).startswith("cannot read the checkpoint")


@pytest.mark.parametrize("text", ["out: runs/demo\nseed: 0\n", "{}", "\x89PNG\r\n"])
def test_text_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert "not a saga-fast checkpoint" in refusal(path)


@pytest.mark.parametrize("data", [b"", b"seed: 0\n", b"hello world\n", b"\x80\x02", b"batch_size: 8\n"], ids=str)
def test_bytes_that_begin_like_a_pickle_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    refusal(path)


def test_flipped_bits_are_refused_or_harmless(tmp_path: Path) -> None:
    good = torch_bytes({"format": "saga-fast/checkpoint", "version": 1, "model": {"a": torch.ones(3)}, "epoch": 3})
    rng = random.Random(0)
    for number in range(400):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good) // 2)] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}.pt"
        path.write_bytes(damaged)
        try:
            read_checkpoint(path)
        except SagaError as error:
            assert "\n" not in str(error)


def test_missing_tensor_is_named(tiny_yaml: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_method(path, tiny_yaml, **{"encoder.backbone.conv1.weight": None})
    assert refusal(path) == f"{path} lacks encoder.backbone.conv1.weight"


def test_tensor_too_many_is_named(tiny_yaml: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_method(path, tiny_yaml, head=torch.ones(3))
    assert refusal(path) == f"{path} has a tensor that the model lacks: head"


def test_shape_mismatch_is_named(tiny_yaml: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_method(path, tiny_yaml, **{"projector.0.bias": torch.ones(17)})
    assert refusal(path) == f"{path}: projector.0.bias has shape (17,), the model (16,)"


def test_weights_that_do_not_fit_leave_the_model_alone(tiny_yaml: Path, tmp_path: Path) -> None:
    config = load_config(tiny_yaml)
    model = build_method(config.method, config.encoder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    other["projector.2.weight"] = torch.zeros(5, 5)
    with pytest.raises(SagaError, match=r"projector.2.weight has shape \(5, 5\), the model \(12, 16\)"):
        load_weights(model, other, tmp_path / "a.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_config_of_another_version_is_named(tiny_yaml: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    config = config_to_dict(load_config(tiny_yaml)) | {"gpus": 8}
    save_checkpoint(path, {"config": config, "model": {}})
    assert "unknown key gpus" in refusal(path)


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, {"epoch": 2, "function": lambda: None})
    assert read_checkpoint(path)["epoch"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_round_trip_of_nested_content(tmp_path: Path) -> None:
    content = {"a": {"b": [torch.arange(3), {"c": 1.5}]}, "s": "text", "n": None, "t": torch.ones(2, 2).bool()}
    save_checkpoint(tmp_path / "deep" / "a.pt", content)
    read = read_checkpoint(tmp_path / "deep" / "a.pt")
    assert torch.equal(read["a"]["b"][0], torch.arange(3))
    assert (read["a"]["b"][1], read["s"], read["n"]) == ({"c": 1.5}, "text", None)
    assert torch.equal(read["t"], content["t"])  # type: ignore[arg-type]
