"""Whole runs in several processes: like one process's to rounding, and killed ones like undisturbed ones to the bit."""

import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run

from saga_fast.checkpoint import read_checkpoint
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.runtime.distributed import rank
from saga_fast.train import step
from saga_fast.train.cycle import train

sys.path.append(str(Path(__file__).parent.parent / "train"))
from run_folders import assert_same_run, figures

INSDIS = "method={name: insdis, projection_dim: 12, negatives: 16}"
Kill = tuple[int, int]
"""A rank, and the number of the step at which it dies."""


def run_folder(yaml: str, out: str, overrides: list[str], resume: bool, kill: Kill | None = None) -> str | None:
    """Train; the one line of an error, or ``exit N``."""
    real, calls = step.views_of_batch, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if kill is not None and (rank(), calls) == kill:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    setattr(step, "views_of_batch", dying)  # noqa: B010 - mypy
    try:
        train(load_config(Path(yaml), [f"out={out}", *overrides]), resume=resume)
    except SagaError as error:
        return str(error)
    except SystemExit as error:
        return f"exit {error.code}"
    finally:
        step.views_of_batch = real
    return None


def trained(
    world_size: int, yaml: Path, out: Path, *overrides: str, resume: bool = False, kill: Kill | None = None
) -> Any:
    """Train in so many processes and give what :func:`run_folder` gives, the same for all ranks."""
    results = run(world_size, run_folder, str(yaml), str(out), list(overrides), resume, kill)
    assert len(set(results)) == 1
    return results[0]


def assert_close_run(run: Path, reference: Path, *, rtol: float) -> None:
    """The same rows of figures and a checkpoint with the same names, all numbers alike."""
    own, expected = figures(run), figures(reference)
    assert [(row["kind"], row["epoch"]) for row in own] == [(row["kind"], row["epoch"]) for row in expected]
    for row, other in zip(own, expected, strict=True):
        if row["kind"] == "epoch":
            assert row["loss"] == pytest.approx(other["loss"], rel=rtol)
    state, other_state = (read_checkpoint(folder / "last.pt")["model"] for folder in (run, reference))
    assert state.keys() == other_state.keys()
    for name, tensor in state.items():
        if "running" not in name:
            torch.testing.assert_close(tensor, other_state[name], rtol=10 * rtol, atol=rtol, msg=name)


@pytest.fixture(scope="module")
def runs(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SimCLR with synchronised batch norm, and InsDis without, alone and in two processes."""
    folder = tmp_path_factory.mktemp("runs")
    simclr = ["saga.epochs=2", "attention=null", "sync_batchnorm=true"]
    assert trained(1, tiny_yaml, folder / "alone", *simclr) is None
    assert trained(2, tiny_yaml, folder / "two", *simclr) is None
    assert trained(2, tiny_yaml, folder / "insdis", INSDIS, "saga.epochs=3") is None
    return {path.name: path for path in folder.iterdir()}


def test_two_processes_train_like_one(runs: dict[str, Path]) -> None:
    assert_close_run(runs["two"], runs["alone"], rtol=2e-3)
    assert (runs["two"] / "config.yaml").exists()
    assert len(list(runs["two"].glob("events.out.tfevents.*"))) == 1


def test_two_processes_evaluate_like_one(runs: dict[str, Path]) -> None:
    """kNN of the untrained network, whose weights are equal, and then the same layers and k."""
    (two, one) = ([row for row in figures(runs[name]) if row["kind"] == "knn"] for name in ("two", "alone"))
    assert two[:2] == one[:2]
    assert [(row["epoch"], row["layer"]) for row in two[:3]] == [(0, "backbone"), (0, "projector"), (2, "backbone")]
    assert {row["k"] for row in two} == {5}


def test_steps_take_the_same_images_for_any_number_of_processes(images: Path) -> None:
    def order(rank: int = 0, world_size: int = 1) -> Loader:
        options = LoaderOptions(batch_size=12, shuffle=True, seed=3, threads=1, rank=rank, world_size=world_size)
        return open_loader("folder", images / "train", WholePlan(size=8), options)

    whole = order().epoch_order().indices()
    for world_size in (2, 3, 4):
        parts = [order(rank=number, world_size=world_size) for number in range(world_size)]
        assert {len(part) for part in parts} == {4}  # 41 images in batches of 12, the last of 5
        size = 12 // world_size
        orders = [np.concatenate(list(part.index_batches())) for part in parts]
        for number in range(4):
            batch = torch.cat([torch.from_numpy(each[number * size : (number + 1) * size]) for each in orders])
            assert batch.tolist() == whole[number * 12 : (number + 1) * 12].tolist()
        for part, full in zip(parts, orders, strict=True):
            part.set_epoch(0, 2)
            assert np.concatenate(list(part.index_batches())).tolist() == full[2 * size :].tolist()
            assert [batch.index.tolist() for batch in part] == [
                full[at : at + size].tolist() for at in range(2 * size, len(full), size)
            ]


def test_batch_size_has_to_be_split_evenly(images: Path) -> None:
    with pytest.raises(SagaError, match="batch_size 8 cannot be split evenly among 3 processes"):
        open_loader("folder", images / "train", WholePlan(size=8), LoaderOptions(rank=0, world_size=3), batch_size=8)


@pytest.mark.parametrize("kill", [(0, 3), (1, 12)])
def test_sigterm_of_one_rank_stops_all_at_the_next_step(
    runs: dict[str, Path], tiny_yaml: Path, tmp_path: Path, kill: Kill
) -> None:
    """In the middle of an epoch, at the third and at the second step; the second is that of a renewal."""
    out, options = tmp_path / "run", [INSDIS, "saga.epochs=3"]
    assert trained(2, tiny_yaml, out, *options, kill=kill) == "exit 143"
    state = read_checkpoint(out / "last.pt")
    # The step itself, and one more, in which the ranks agree.
    assert 5 * state["epoch"] + state["so_far"]["done"] == kill[1] + 1
    assert trained(2, tiny_yaml, out, *options, resume=True) is None
    assert_same_run(out, runs["insdis"])


def test_resume_with_another_number_of_processes(runs: dict[str, Path], tiny_yaml: Path, tmp_path: Path) -> None:
    options = ["saga.epochs=2", "attention=null", "sync_batchnorm=true"]
    out = tmp_path / "run"
    assert trained(2, tiny_yaml, out, *options, kill=(0, 7)) == "exit 143"
    assert trained(1, tiny_yaml, out, *options, resume=True, kill=(0, 4)) == "exit 143"
    assert trained(4, tiny_yaml, out, *options, resume=True) is None
    assert_close_run(out, runs["alone"], rtol=2e-3)


def test_parts_have_to_be_even_in_each_process(tiny_yaml: Path, tmp_path: Path) -> None:
    said = trained(2, tiny_yaml, tmp_path / "run", "accumulate=8")
    assert said == "batch_size 8 cannot be split evenly into accumulate 8 parts of 2 processes: set a multiple of 16"
    assert not (tmp_path / "run").exists()


def test_parts_in_two_processes_are_resumed(tiny_yaml: Path, tmp_path: Path) -> None:
    options = ["saga.epochs=1", "attention=null", "sync_batchnorm=true", "accumulate=2"]
    assert trained(2, tiny_yaml, tmp_path / "whole", *options) is None
    assert trained(2, tiny_yaml, tmp_path / "run", *options, kill=(1, 3)) == "exit 143"
    assert trained(2, tiny_yaml, tmp_path / "run", *options, resume=True) is None
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def run_on_folders(yaml: str, out: str, folders: list[str], resume: bool) -> str | None:
    return run_folder(yaml, out, [f"data.train={folders[rank()]}", "evaluate=null"], resume)


def test_machines_with_other_images_are_refused(images: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    """A copy of the data set that lacks an image would shift all others, in some processes."""
    copy = tmp_path / "copy"
    shutil.copytree(images / "train", copy)
    (copy / "cat" / "003.jpg").unlink()
    folders = [str(images / "train"), str(copy)]
    first, second = run(2, run_on_folders, str(tiny_yaml), str(tmp_path / "run"), folders, False)
    assert first == second
    assert first.startswith("the data set is 41-") and "for rank 0, 40-" in first
    assert not (tmp_path / "run").exists()


def run_with_a_limit(yaml: str, out: str) -> None:
    if rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    train(load_config(Path(yaml), [f"out={out}", "evaluate=null"]))


def test_full_disk_of_rank_0_ends_all(tiny_yaml: Path, tmp_path: Path) -> None:
    """No process waits for half an hour: ``run`` has the results of both before it looks at them."""
    with pytest.raises(AssertionError, match=r"rank 0:[\s\S]*File too large"):
        run(2, run_with_a_limit, str(tiny_yaml), str(tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.tmp"))
