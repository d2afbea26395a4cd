"""``probe.pt``: the state of a linear probe after an epoch, from which a killed probe is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.runtime.files import named, read_file, replacing
from saga_fast.runtime.tensors import load_tensors

FORMAT = "saga-fast/probe"
MAX_BYTES = 2**34
HISTORY = {"epoch", "top1", "top5", "images", "loss"}


class ProbeFile:
    """The file of one probe.

    Args:
        path: the file.
        identity: what tells this probe from others, in JSON's types: the checkpoint's hash, the images, the protocol.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity: dict[str, Any] = json.loads(json.dumps(dict(identity)))

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state, nested tensors, numbers and strings: whole or not at all."""
        with replacing(self.path) as temporary, named(self.path), temporary.open("wb") as file:
            torch.save({"format": FORMAT, "identity": self._identity, **state}, file)

    def read(self, classifier: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """The state of this probe; None if there is no file.

        Args:
            classifier: a state dict with the names and shapes of the probe's.

        Raises:
            SagaError: another program's file, a damaged one, or a probe whose identity differs; the message names what
                differs.
        """
        if not self.path.is_file():
            return None
        try:
            content = load_tensors(read_file(self.path, MAX_BYTES))
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make torch's reader raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SagaError(
                f"{self.path} is not a saga-fast probe ({reason}): remove it, or choose another --out"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SagaError(f"{self.path} is not a saga-fast probe: remove it, or choose another --out")
        if (wrong := _find_wrong(content, classifier)) is not None:
            raise SagaError(f"{self.path} has no valid {wrong}: remove it, or choose another --out")
        earlier, now = content["identity"], self._identity
        differing = sorted(key for key in now.keys() | earlier.keys() if now.get(key) != earlier.get(key))
        if differing:
            raise SagaError(
                f"{self.path} is a probe with another {', '.join(differing)}: choose another --out, or remove it"
            )
        return content


def _find_wrong(content: Mapping[str, Any], classifier: Mapping[str, Tensor]) -> str | None:
    """The first entry that :meth:`ProbeFile.save` would not have written, None if there is none."""
    history, bad, weights = content.get("history"), content.get("bad"), content.get("classifier")
    is_valid = {
        "identity": isinstance(content.get("identity"), dict),
        "epoch": _is_count(content.get("epoch")),
        "list of bad images": isinstance(bad, list) and all(map(_is_count, bad)),
        "history": isinstance(history, list) and all(map(_is_test, history)),
        "classifier": isinstance(weights, dict)
        and weights.keys() == classifier.keys()
        and all(_fits(weights[name], tensor) for name, tensor in classifier.items()),
        "optimizer": _is_optimizer(content.get("optimizer"), list(classifier.values())),
    }
    return next((name for name, valid in is_valid.items() if not valid), None)


def _is_optimizer(state: Any, parameters: list[Tensor]) -> bool:
    """Whether it is the state of SGD with momentum, or of SGD without a step yet."""
    groups, buffers = (state.get(key) for key in ("param_groups", "state")) if isinstance(state, dict) else (None, None)
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], dict):
        return False
    options = {key: value for key, value in groups[0].items() if key != "params"}
    are_numbers = all(value is None or isinstance(value, bool | int | float) for value in options.values())
    has_options = {"lr", "momentum", "weight_decay", "nesterov", "dampening"} <= options.keys()
    return (
        groups[0].get("params") == list(range(len(parameters)))
        and are_numbers
        and has_options
        and isinstance(buffers, dict)
        and all(_is_buffer(entry, parameters, number) for number, entry in buffers.items())
    )


def _is_buffer(entry: Any, parameters: list[Tensor], number: Any) -> bool:
    is_known = _is_count(number) and number < len(parameters) and isinstance(entry, dict)
    if not is_known or entry.keys() != {"momentum_buffer"}:
        return False
    buffer = entry["momentum_buffer"]
    return buffer is None or _fits(buffer, parameters[number])


def _fits(value: Any, like: Tensor) -> bool:
    """Whether a value is a plain finite tensor of the type and shape of ``like``."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and (value.dtype, value.shape) == (like.dtype, like.shape)
        and bool(value.isfinite().all())
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_test(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == HISTORY
        and all(type(value) in (int, float) or (value is None and key == "top5") for key, value in row.items())
    )
