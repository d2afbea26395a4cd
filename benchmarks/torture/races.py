"""Faults of the surroundings: a checkpoint that changes while it is read, two runs in one folder, too few resources."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from run_folders import assert_same_run

from benchmarks.torture.experiment import Undisturbed, make_images, train
from benchmarks.torture.processes import Ended, command, warm_up
from saga_fast.cli import main
from saga_fast.profile.figures import Row

EXHAUSTED = ("out of memory", "cannot start another thread", "Too many open files", "Cannot allocate memory")
"""What the one line of a command says that had too little memory, too few threads or too few file descriptors."""
ABORTED_BY_GLIBC = 127


def change_checkpoint(experiment: Undisturbed, folder: Path, *, faults: int, seed: int = 0) -> Row:
    """Replace a checkpoint by another one all the time, as a training does, while ``build-att`` reads it.

    Raises:
        AssertionError: a table that is not that of the checkpoint whose SHA-256 it names.
    """
    from saga_fast.loaders import BoxTable
    from saga_fast.runtime.files import sha256

    data, log, ckpt = make_images(folder / "images"), folder / "log.txt", folder / "last.pt"
    first, second = folder / "first.pt", _changed(experiment.run / "last.pt", folder / "second.pt")
    shutil.copy(experiment.run / "last.pt", first)
    expected = {}
    for path in (first, second):
        out = path.with_suffix(".safetensors")
        _succeeded(command(_build_att(path, data, out), log))
        expected[sha256(path)] = BoxTable.open(out)
    one, other = (table.boxes for table in expected.values())
    assert not np.array_equal(one, other)
    read = dict.fromkeys(expected, 0)
    out = folder / "att.safetensors"
    with _replacing_all_the_time(ckpt, (first, second), seed):
        for _ in range(faults):
            _succeeded(command(_build_att(ckpt, data, out), log))
            table = BoxTable.open(out)
            named = table.metadata["checkpoint"]
            read[named] += 1
            np.testing.assert_array_equal(table.boxes, expected[named].boxes)
            out.unlink()
    return _row("checkpoint changed", faults, read_of_each=sorted(read.values()))


def run_twice(experiment: Undisturbed, folder: Path, *, faults: int, seed: int = 0) -> Row:
    """Start two trainings into one folder, the second a random moment later.

    Raises:
        AssertionError: a run that differs from an undisturbed one, or a second training that is refused
            otherwise than in one line.
    """
    rng, run, refused = np.random.default_rng(seed), folder / "run", 0
    warm_up(folder / "log.txt")
    with ThreadPoolExecutor(2) as pool:
        for _ in range(faults):
            first = pool.submit(train, experiment.config, run, folder / "log0.txt")
            threading.Event().wait(experiment.seconds * float(rng.uniform(0.0, 0.5)))
            second = pool.submit(train, experiment.config, run, folder / "log1.txt")
            ended = [first.result(), second.result()]
            for each in ended:
                assert each.code == 0 or _is_one_line(each, ("another process trains into",)), each
            assert 0 in [each.code for each in ended], ended
            refused += sum(each.code != 0 for each in ended)
            assert_same_run(run, experiment.run)
            shutil.rmtree(run)
    return _row("two runs in one folder", faults, second_refused=refused)


def exhaust(experiment: Undisturbed, folder: Path, *, faults: int, seed: int = 0) -> Row:
    """Limit the memory, or the file descriptors, of ``build-att``.

    Native code of libraries may end the process when memory is short. No good image is listed as bad, and a table is
    whole.

    Raises:
        AssertionError: another table, an image that is listed as bad, or more than one line.
    """
    from saga_fast.loaders import BoxTable

    data, log = make_images(folder / "images"), folder / "log.txt"
    (data / "dog" / "zzzz.jpg").unlink()
    whole, out = folder / "whole.safetensors", folder / "att.safetensors"
    arguments = _build_att(experiment.run / "last.pt", data, whole)
    _succeeded(command(arguments, log))
    expected, bad_list = BoxTable.open(whole), folder / "att.bad_images.txt"
    rng, finished, ended_natively = np.random.default_rng(seed), 0, 0
    for number in range(faults):
        prepare: Callable[[], None]
        if number % 2:
            warm = [*arguments[:-1], str(folder / "warm.safetensors")]
            prepare = partial(_limit_memory, warm, int(rng.uniform(0, 4)) * 2**20)
        else:
            prepare = partial(_limit_files, int(rng.integers(0, 3)))
        ended = command([*arguments[:-1], str(out)], log, prepare=prepare)
        assert not bad_list.exists(), bad_list.read_text()
        is_native = ended.code < 0 or ended.code == ABORTED_BY_GLIBC
        assert ended.code == 0 or is_native or _is_one_line(ended, EXHAUSTED), ended
        finished += ended.code == 0
        ended_natively += is_native
        if out.exists():
            np.testing.assert_array_equal(BoxTable.open(out).boxes, expected.boxes)
            out.unlink()
    return _row("too few resources", faults, finished=finished, ended_by_native_code=ended_natively)


def _row(name: str, faults: int, **found: int | list[int]) -> Row:
    return {"name": name, "faults": faults, "survived": faults, "data_lost": 0} | found


def _build_att(ckpt: Path, data: Path, out: Path) -> list[str]:
    arguments = ["build-att", "--ckpt", str(ckpt), "--data", str(data), "--threads", "2", "--device", "cpu"]
    return [*arguments, "--max-bad-fraction", "0.1", "--out", str(out)]


def _changed(ckpt: Path, path: Path) -> Path:
    """A copy of a checkpoint whose weights, and so boxes, are others."""
    from saga_fast.checkpoint import read_checkpoint, save_checkpoint

    content = read_checkpoint(ckpt)
    for name, tensor in content["model"].items():
        if name.startswith("encoder") and tensor.ndim == 4:
            content["model"][name] = tensor.flip(0)
    save_checkpoint(path, content)
    return path


@contextmanager
def _replacing_all_the_time(path: Path, contents: tuple[Path, Path], seed: int) -> Iterator[None]:
    rng, done = np.random.default_rng(seed), threading.Event()
    shutil.copy(contents[0], path)

    def replace() -> None:
        while not done.wait(float(rng.uniform(0.0, 0.02))):
            temporary = path.with_suffix(".new")
            shutil.copy(contents[int(rng.integers(2))], temporary)
            temporary.replace(path)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _limit_memory(warm: list[str], more: int) -> None:
    """Limit the memory once a first command has loaded the kernels: without memory LLVM may end, or loop for ever."""
    assert main(warm) == 0
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def _limit_files(more: int) -> None:
    used = psutil.Process().num_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, used + more))


def _is_one_line(ended: Ended, reasons: tuple[str, ...]) -> bool:
    errors = [line for line in ended.text.splitlines() if line.startswith("saga-fast: error: ")]
    reason = len(errors) == 1 and any(reason in errors[0] for reason in reasons)
    return ended.code == 2 and reason and "Traceback" not in ended.text


def _succeeded(ended: Ended) -> Ended:
    assert ended.code == 0, ended
    return ended
