"""Streaming attention in several processes: what each has seen of its images becomes everybody's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run
from test_train import run_folder

from saga_fast.attention_config import AttentionConfig
from saga_fast.checkpoint import read_checkpoint
from saga_fast.distributed import rank, world_size
from saga_fast.encoder import EncoderConfig
from saga_fast.loaders import BoxTable
from saga_fast.methods import METHODS, build_method
from saga_fast.streaming import StreamedMaps

COUNT, SIZE = 22, 32
ENCODER = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})


def streamed(idle: int | None) -> dict[str, Any]:
    """Two visits of images that are drawn alike everywhere, each by one process; ``idle`` has none the second time."""
    torch.manual_seed(0)
    model = build_method(METHODS["simclr"].Config(name="simclr"), ENCODER).eval()
    stream = StreamedMaps(model, COUNT, size=SIZE, attention=AttentionConfig(renew="streaming", score="activation"))
    stream.sizes[:] = SIZE
    for visit in range(2):
        images = torch.rand(COUNT, 2, 3, SIZE, SIZE)
        order = torch.randperm(COUNT)[:20]
        workers = [number for number in range(world_size()) if visit == 0 or number != idle]
        if rank() in workers:
            own = order[workers.index(rank()) :: len(workers)]
            stream.watch()
            with torch.no_grad():
                model.encoder(images[own].flatten(0, 1))
            windows = np.tile(np.array([0, 4 * visit, SIZE, SIZE - 8], np.int32), (len(own), 2, 1))
            stream.add(own, windows, torch.zeros(len(own), 2, dtype=torch.bool))
        stream.share()
    table = stream.table({}, others=None)
    return {**{name: rows.numpy() for name, rows in stream.state().items()}, "boxes": table.boxes}


@pytest.mark.parametrize("idle", [None, 1])
def test_maps_are_those_of_one_process(idle: int | None) -> None:
    (alone,) = run(1, streamed, None)
    for found in run(2, streamed, idle):
        for name, rows in alone.items():
            np.testing.assert_allclose(found[name], rows, rtol=1e-5, atol=1e-5, err_msg=name)


def test_nobody_has_seen_anything() -> None:
    assert run(2, share_nothing) == [True, True]


def share_nothing() -> bool:
    model = build_method(METHODS["simclr"].Config(name="simclr"), ENCODER)
    stream = StreamedMaps(model, 4, size=SIZE, attention=AttentionConfig(renew="streaming"))
    stream.share()
    return not stream.seen.any()


def test_a_run_in_two_processes(tiny_yaml: Path, tmp_path: Path) -> None:
    """Every image of an epoch has left a map, whichever process saw it, and the tables are in everybody's hands."""
    overrides = ["attention.renew=streaming", "attention.period=1", "plain.epochs=1", "saga.epochs=2"]
    assert run(2, run_folder, str(tiny_yaml), str(tmp_path / "run"), overrides, False) == [None, None]
    maps = read_checkpoint(tmp_path / "run/last.pt")["attention_maps"]
    assert (maps["weights"].sum((1, 2)) > 0).sum() >= 40
    table = BoxTable.open(tmp_path / "run/att/epoch_0002.safetensors")
    assert table.found.mean() > 0.5
