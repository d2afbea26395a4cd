"""Streaming attention in several processes: what each has seen of its images becomes everybody's."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run
from test_train import trained

from saga_fast.attention_config import AttentionConfig
from saga_fast.checkpoint import read_checkpoint
from saga_fast.distributed import rank, world_size
from saga_fast.encoder import EncoderConfig
from saga_fast.loaders import BoxTable
from saga_fast.methods import METHODS, build_method
from saga_fast.streaming import StreamedMaps

sys.path.append(str(Path(__file__).parent.parent / "train"))
from run_folders import assert_same_run

STREAMING = ("attention.renew=streaming", "attention.period=1", "plain.epochs=1", "saga.epochs=2")
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


def common(_: None) -> dict[str, Any]:
    """Both processes see images 0 to 3, each in its own way, and image 0 twice at once."""
    torch.manual_seed(0)
    model = build_method(METHODS["simclr"].Config(name="simclr"), ENCODER).eval()
    stream = StreamedMaps(model, COUNT, size=SIZE, attention=AttentionConfig(renew="streaming", score="activation"))
    stream.sizes[:] = SIZE
    torch.manual_seed(rank())
    index = torch.tensor([0, 1, 0, 2, 3])
    stream.watch()
    with torch.no_grad():
        model.encoder(torch.rand(10, 3, SIZE, SIZE))
    windows = np.tile(np.array([0, 0, SIZE, SIZE], np.int32), (5, 2, 1))
    stream.add(index, windows, torch.zeros(5, 2, dtype=torch.bool))
    own = {name: rows.clone() for name, rows in stream.state().items()}
    stream.share()
    return {name: (own[name].numpy(), rows.numpy()) for name, rows in stream.state().items()}


def test_an_image_that_two_processes_have_seen() -> None:
    """As stand-in of a bad one, say: the last process's map counts, the same everywhere."""
    first, second = run(2, common, None)
    for name in first:
        np.testing.assert_array_equal(first[name][1], second[name][1])
        np.testing.assert_array_equal(second[name][1], second[name][0])
    assert (first["sums"][0][:4] != first["sums"][1][:4]).any()


def test_nobody_has_seen_anything() -> None:
    assert run(2, share_nothing) == [True, True]


def share_nothing() -> bool:
    model = build_method(METHODS["simclr"].Config(name="simclr"), ENCODER)
    stream = StreamedMaps(model, 4, size=SIZE, attention=AttentionConfig(renew="streaming"))
    stream.share()
    return not stream.seen.any()


def test_a_run_in_two_processes(tiny_yaml: Path, tmp_path: Path) -> None:
    """Every image of an epoch has left a map, whichever process saw it, and the tables are in everybody's hands."""
    out = tmp_path / "run"
    assert trained(2, tiny_yaml, out, *STREAMING) is None
    maps = read_checkpoint(out / "last.pt")["attention_maps"]
    assert (maps["weights"].sum((1, 2)) > 0).sum() >= 40
    assert BoxTable.open(out / "att/epoch_0002.safetensors").found.mean() > 0.5


def test_a_killed_run_goes_on_to_the_same_bits(tiny_yaml: Path, tmp_path: Path) -> None:
    """The projector has batch norms of each process's own, whose running statistics the maps of pseudo labels use."""
    reference, out = tmp_path / "reference", tmp_path / "run"
    norms = "method={name: simclr, temperature: 0.2, projection_dim: 12, projection_norm: hidden}"
    overrides = [*STREAMING, norms, "sync_batchnorm=false", "checkpoint.every_steps=2"]
    assert trained(2, tiny_yaml, reference, *overrides) is None
    assert trained(2, tiny_yaml, out, *overrides, kill=(1, 8)) == "exit 143"
    assert trained(2, tiny_yaml, out, *overrides, resume=True) is None
    assert_same_run(out, reference)
