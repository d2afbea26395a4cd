"""``probe.pt``: a linear probe after an epoch, so that one that was killed goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from saga_fast.errors import SagaError
from saga_fast.files import replacing

FORMAT = "saga-fast/probe"


def save_probe(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a probe: whole or not at all.

    Args:
        path: the file.
        identity: everything that decides the probe's result, in JSON's types.
        state: tensors, numbers, strings, nested.
    """
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, "identity": _plain(identity), **state}, temporary)


def read_probe(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state of the same probe, None where there is no file.

    Raises:
        SagaError: another program's file, or a probe whose identity differs; the message names what differs.
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch's reader raise anything
        raise SagaError(f"{path} is not a saga-fast probe: remove it, or choose another --out") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SagaError(f"{path} is not a saga-fast probe: remove it, or choose another --out")
    earlier, now = content["identity"], _plain(identity)
    differing = sorted(key for key in now.keys() | earlier.keys() if now.get(key) != earlier.get(key))
    if differing:
        raise SagaError(f"{path} is a probe with another {', '.join(differing)}: choose another --out, or remove it")
    return content


def _plain(identity: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain
