"""``probe.pt``: the state of a linear probe after an epoch, from which a killed probe is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saga_fast.errors import SagaError
from saga_fast.runtime.files import replacing

FORMAT = "saga-fast/probe"


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
        with replacing(self.path) as temporary:
            torch.save({"format": FORMAT, "identity": self._identity, **state}, temporary)

    def read(self) -> dict[str, Any] | None:
        """The state of this probe; None if there is no file.

        Raises:
            SagaError: another program's file, or a probe whose identity differs; the message names what differs.
        """
        if not self.path.is_file():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make torch's reader raise anything
            raise SagaError(f"{self.path} is not a saga-fast probe: remove it, or choose another --out") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SagaError(f"{self.path} is not a saga-fast probe: remove it, or choose another --out")
        earlier, now = content["identity"], self._identity
        differing = sorted(key for key in now.keys() | earlier.keys() if now.get(key) != earlier.get(key))
        if differing:
            raise SagaError(
                f"{self.path} is a probe with another {', '.join(differing)}: choose another --out, or remove it"
            )
        return content
