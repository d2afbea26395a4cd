"""SIGKILL at random moments of ``train``, ``build-att`` and ``pack``; each is resumed until it finishes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from run_folders import assert_same_run

from benchmarks.torture.experiment import Undisturbed, make_images, train
from benchmarks.torture.processes import Ended, command, together, warm_up
from saga_fast.profile.figures import Row


def kill_train(experiment: Undisturbed, folder: Path, *, kills: int, seed: int = 0) -> Row:
    """Kill training ``kills`` times, resume each time, and compare finished runs with an undisturbed one, bit for bit.

    Raises:
        AssertionError: a run that cannot be resumed, or that has another result.
    """
    run, log = folder / "run", folder / "log.txt"
    rng = np.random.default_rng(seed)
    made = finished = attempts = 0
    while made < kills or run.exists():
        # The last run is not killed.
        moment = experiment.seconds * float(rng.uniform(0.0, 1.0)) if made < kills else None
        ended = train(experiment.config, run, log, kill_after=moment)
        attempts += 1
        if ended.code == -9:
            made += 1
            continue
        _succeeded(ended)
        assert_same_run(run, experiment.run)
        leftovers = [path.name for path in run.rglob(".*.tmp")]
        assert len(leftovers) <= 3, leftovers  # of names that were not written again
        shutil.rmtree(run)
        finished += 1
    return {"name": "train killed", "faults": made, "survived": made, "data_lost": 0, "runs_compared": finished}


def kill_build_att(experiment: Undisturbed, folder: Path, *, kills: int, seed: int = 0) -> Row:
    """Kill ``build-att``, or one of its two processes, ``kills`` times, and resume each time in one process or in two;
    then compare the tables with that of an undisturbed pass, bit for bit.

    Raises:
        AssertionError: a pass that cannot be resumed, another table, or more than one line of the surviving process.
    """
    from saga_fast.attention.parts import parts_folder
    from saga_fast.loaders import BoxTable

    out, whole = folder / "att.safetensors", folder / "whole.safetensors"
    arguments = ["build-att", "--ckpt", str(experiment.run / "last.pt"), "--data", str(make_images(folder / "images"))]
    arguments += ["--batch-size", "1", "--threads", "1", "--device", "cpu", "--max-bad-fraction", "0.1", "--resume"]
    logs, rng = [folder / f"log{rank}.txt" for rank in range(2)], np.random.default_rng(seed)
    warm_up(logs[0])
    (undisturbed,) = together([*arguments, "--out", str(whole)], logs[:1], prepare=_parts_at_once)
    seconds, expected = _succeeded(undisturbed).seconds, BoxTable.open(whole)
    made = finished = resumed = 0
    while made < kills or out.exists() or parts_folder(out).exists():
        count = int(rng.integers(1, 3))
        moment = count * seconds * float(rng.uniform(0.0, 1.0)) if made < kills else None
        before = len(list(parts_folder(out).glob("part_*")))
        ranks = together(
            [*arguments, "--out", str(out)],
            logs[:count],
            kill_after=moment,
            victim=int(rng.integers(count)),
            prepare=_parts_at_once,
        )
        resumed += before > 0
        if -9 in [ended.code for ended in ranks]:
            made += 1
            for ended in ranks:
                assert ended.code in (-9, -15, 143, 0) or _is_one_line(ended), ended
            continue
        for ended in ranks:
            _succeeded(ended)
        table = BoxTable.open(out)
        for column in ("boxes", "found", "pseudo_label", "score"):
            np.testing.assert_array_equal(getattr(table, column), getattr(expected, column))
        assert not parts_folder(out).exists()
        out.unlink()
        finished += 1
    row: Row = {"name": "build-att killed", "faults": made, "survived": made, "data_lost": 0}
    return row | {"gone_on_from_parts": resumed, "tables_compared": finished}


def _parts_at_once() -> None:
    """Make a process write a part for each batch instead of every 30 s."""
    from saga_fast.attention.parts import Parts

    defaults = Parts.__init__.__kwdefaults__
    assert defaults is not None
    defaults["seconds"] = 0.0


def _is_one_line(ended: Ended) -> bool:
    """Whether a process ended with the one line that another process has ended."""
    lines = [line for line in ended.text.splitlines() if line.startswith("saga-fast: error: another process")]
    return ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.text


def kill_pack(folder: Path, *, kills: int, images: int = 200, seed: int = 0) -> Row:
    """Kill ``saga-fast pack --force`` ``kills`` times; it leaves the old pair of files, the new one, or a refusal.

    Raises:
        AssertionError: a half-written file that is read as a whole one, or a pack with another result.
    """
    from saga_fast.errors import SagaError
    from saga_fast.loaders.ffcv.beton import Beton

    data, log = make_images(folder / "many", per_class=images // 2, size=(120, 90)), folder / "log.txt"
    out = folder / "x.beton"
    arguments = ["pack", str(data), str(out), "--workers", "2", "--max-bad-fraction", "0.1", "--force"]
    warm_up(log)
    seconds = _succeeded(command(arguments, log)).seconds
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
            except SagaError:  # between the two renames
                continue
            assert _digests(out) == expected
            opened += 1
    _succeeded(command(arguments, log))
    assert _digests(out) == expected
    leftovers = [path.name for path in folder.glob(".x.beton*")]
    assert not leftovers, leftovers
    return {"name": "pack killed", "faults": made, "survived": made, "data_lost": 0, "whole_files_found": opened}


def _succeeded(ended: Ended) -> Ended:
    assert ended.code == 0, ended
    return ended


def _digests(beton: Path) -> list[str]:
    files = (beton, beton.with_name(f"{beton.name}.json"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
