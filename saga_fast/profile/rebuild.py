"""How long a rebuild of D^att takes, from the rates of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga_fast.profile.figures import Row

ROW_BYTES = 33
"""Bytes of an image's row as it travels between processes: index, box, found, pseudo label and score."""


@dataclass(frozen=True)
class Prediction:
    """How long a rebuild takes, and what its images wait for."""

    seconds: float
    bottleneck: str
    images_per_second: float


def predict(
    rows: Sequence[Row], *, images: int, gpus: int = 1, nodes: int = 1, on_gpu: bool, gbit_per_second: float = 10.0
) -> Prediction:
    """The time of a rebuild from measured rates.

    The stages overlap, so the slowest sets the rate. On a GPU the network's rate grows with the number of GPUs, while a
    machine's loader feeds all of its own; without one, a pass is all on the processor, and a machine is one of ``gpus``
    or ``nodes``. What does not overlap is added: the loader's first batch, compiling, gathering the rows and writing.

    Args:
        rows: of :func:`saga_fast.profile.att.profile_att`.
        images: images of the data set.
        gpus: GPUs of a machine.
        nodes: machines.
        on_gpu: whether the rows were measured on one.
        gbit_per_second: of the network between machines, over which all rows travel to each; assumed, not measured.
    """
    rate = {row["name"]: row["images_per_second"] for row in rows if "images_per_second" in row}
    taken = {row["name"]: row["seconds"] for row in rows if "seconds" in row}
    write = next(row for row in rows if row["name"] == "write")
    if on_gpu:
        # What the pass takes beyond the forward loop is the GPU's work too.
        network = gpus * nodes * rate["network"] * min(rate["attention_pass"] / rate["forward"], 1.0)
        stages = {"decode": nodes * rate["decode"], "network": network, "upload": gpus * nodes * rate["upload"]}
    else:
        stages = {"the processor, which decodes and computes": gpus * nodes * rate["attention_pass"]}
    bottleneck = min(stages, key=lambda name: stages[name])
    writing = write["seconds"] * images / write["images"]
    gathering = images * ROW_BYTES * 8 / (gbit_per_second * 1e9) if nodes > 1 else 0.0
    more = taken.get("start", 0.0) + taken.get("compile", 0.0) + gathering + writing
    return Prediction(images / stages[bottleneck] + more, bottleneck, stages[bottleneck])
