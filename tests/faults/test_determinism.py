"""One seed, one machine, the CPU: one result, whatever decodes and however many threads do."""

from pathlib import Path

import pytest
import torch
from run_folders import figures, leaves

from saga_fast.checkpoint import read_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.loaders import BoxTable
from saga_fast.loaders.engines import require_engine
from saga_fast.train.cycle import train


def assert_same_result(run: Path, reference: Path) -> None:
    assert figures(run) == figures(reference)
    own, expected = (read_checkpoint(folder / "last.pt")["model"] for folder in (run, reference))
    for (name, tensor), (_, other) in zip(leaves(own), leaves(expected), strict=True):
        assert torch.equal(tensor, other), name
    for table in sorted((reference / "att").glob("*")):
        boxes, others = (BoxTable.open(folder / "att" / table.name).boxes for folder in (run, reference))
        assert (boxes == others).all()


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (5, 7)])
def test_any_number_of_threads(
    finished_run: Path, tiny_yaml: Path, tmp_path: Path, threads: int, prefetch: int
) -> None:
    overrides = [f"out={tmp_path / 'run'}", f"data.threads={threads}", f"data.prefetch={prefetch}"]
    train(load_config(tiny_yaml, overrides))
    assert_same_result(tmp_path / "run", finished_run)


@pytest.mark.parametrize("engine", ["ffcv", "dali"])
def test_other_engines(finished_run: Path, tiny_yaml: Path, images: Path, tmp_path: Path, engine: str) -> None:
    """Raw pixels from a .beton file are those of the folder; DALI decodes JPEGs to the same levels."""
    require_engine(engine)
    overrides = [f"out={tmp_path / 'run'}", f"data.engine={engine}"]
    if engine == "ffcv":
        for split in ("train", "val"):
            beton = tmp_path / f"{split}.beton"
            assert main(["pack", str(images / split), str(beton), "--mode", "raw", "--workers", "2"]) == 0
            overrides.append(f"data.{split}={beton}")
    train(load_config(tiny_yaml, overrides))
    assert_same_result(tmp_path / "run", finished_run)
