"""The predicted time of a rebuild of D^att, from the rates of its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga_fast.profile.figures import Row

ROW_BYTES = 33
"""Bytes per image that are sent between processes: index, box, found, pseudo label and score."""


@dataclass(frozen=True)
class Prediction:
    """Predicted time of a rebuild, and the stage that limits it."""

    seconds: float
    bottleneck: str
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines of a rebuild.

    Attributes:
        gpus: GPUs per machine.
        nodes: machines.
        on_gpu: whether the rates were measured on a GPU.
        gbit_per_second: network between machines, over which all rows are sent to each machine: assumed, not measured.
    """

    gpus: int = 1
    nodes: int = 1
    on_gpu: bool
    gbit_per_second: float = 10.0


def predict(rows: Sequence[Row], *, images: int, cluster: Cluster) -> Prediction:
    """The predicted time of a rebuild, from measured rates.

    The stages overlap, so the slowest sets the rate. On GPUs the network's rate grows with the number of GPUs, while
    the GPUs of a machine share one loader. On CPUs each of the ``gpus * nodes`` machines runs the whole pass. Serial
    parts are added: the loader's first batch, compiling, gathering the rows and writing.

    Args:
        rows: the rows of :func:`saga_fast.profile.att.profile_att`.
        images: number of images of the data set.
        cluster: the machines.
    """
    gpus, nodes = cluster.gpus, cluster.nodes
    rate = {row["name"]: row["images_per_second"] for row in rows if "images_per_second" in row}
    seconds = {row["name"]: row["seconds"] for row in rows if "seconds" in row}
    write = next(row for row in rows if row["name"] == "write")
    if cluster.on_gpu:
        # The pass is slower than the forward loop because of further work on the GPU.
        network = gpus * nodes * rate["network"] * min(rate["attention_pass"] / rate["forward"], 1.0)
        stages = {"decode": nodes * rate["decode"], "network": network, "upload": gpus * nodes * rate["upload"]}
    else:
        stages = {"the CPU, which decodes and computes": gpus * nodes * rate["attention_pass"]}
    bottleneck = min(stages, key=lambda name: stages[name])
    writing = write["seconds"] * images / write["images"]
    gathering = images * ROW_BYTES * 8 / (cluster.gbit_per_second * 1e9) if nodes > 1 else 0.0
    serial = seconds.get("start", 0.0) + seconds.get("compile", 0.0) + gathering + writing
    return Prediction(images / stages[bottleneck] + serial, bottleneck, stages[bottleneck])
