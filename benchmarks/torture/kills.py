"""SIGKILL at random moments of ``train`` and of ``pack``, then once more from what is left, until it is done."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from run_folders import assert_same_run

from benchmarks.torture.experiment import Undisturbed, make_images, train
from benchmarks.torture.processes import Ended, command, warm_up
from saga_fast.profile.figures import Row


def kill_train(experiment: Undisturbed, folder: Path, *, kills: int, seed: int = 0) -> Row:
    """Kill training ``kills`` times, resume each time, and compare what finishes with an undisturbed run, bit for bit.

    Raises:
        AssertionError: a run that does not go on, or ends otherwise.
    """
    run, log = folder / "run", folder / "log.txt"
    rng = np.random.default_rng(seed)
    made = finished = attempts = 0
    while made < kills or run.exists():
        # The last run is let go to its end.
        moment = experiment.seconds * float(rng.uniform(0.0, 1.0)) if made < kills else None
        ended = train(experiment.config, run, log, kill_after=moment)
        attempts += 1
        if ended.code == -9:
            made += 1
            continue
        _good(ended)
        assert_same_run(run, experiment.run)
        leftovers = [path.name for path in run.rglob(".*.tmp")]
        assert len(leftovers) <= 3, leftovers  # of names that were not written again since
        shutil.rmtree(run)
        finished += 1
    return {"name": "train killed", "faults": made, "survived": made, "data_lost": 0, "runs_compared": finished}


def kill_pack(folder: Path, *, kills: int, images: int = 200, seed: int = 0) -> Row:
    """Kill ``saga-fast pack --force`` ``kills`` times; an old pair of files, or the new one, or a refusal is left.

    Raises:
        AssertionError: a half-written file that is taken for a whole one, or a pack that ends otherwise.
    """
    from saga_fast.errors import SagaError
    from saga_fast.loaders.ffcv.beton import Beton

    data, log = make_images(folder / "many", per_class=images // 2, size=(120, 90)), folder / "log.txt"
    out = folder / "x.beton"
    arguments = ["pack", str(data), str(out), "--workers", "2", "--max-bad-fraction", "0.1", "--force"]
    warm_up(log)
    seconds = _good(command(arguments, log)).seconds
    expected = _digests(out)
    rng = np.random.default_rng(seed)
    made = opened = 0
    while made < kills:
        if rng.random() < 0.5:
            for path in folder.glob("x.beton*"):
                path.unlink()
        if command(arguments, log, kill_after=seconds * float(rng.uniform(0.0, 1.0))).code != -9:
            continue
        made += 1
        if out.exists():
            try:
                Beton(out)
            except SagaError:  # between the two files' changes of names
                continue
            assert _digests(out) == expected
            opened += 1
    _good(command(arguments, log))
    assert _digests(out) == expected
    leftovers = [path.name for path in folder.glob(".x.beton*")]
    assert not leftovers, leftovers
    return {"name": "pack killed", "faults": made, "survived": made, "data_lost": 0, "whole_files_found": opened}


def _good(ended: Ended) -> Ended:
    assert ended.code == 0, ended
    return ended


def _digests(beton: Path) -> list[str]:
    files = (beton, beton.with_name(f"{beton.name}.json"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
