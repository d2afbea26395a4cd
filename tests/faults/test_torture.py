"""``make torture`` in short: the same faults, some of each."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.torture.experiment import Undisturbed, undisturbed
from benchmarks.torture.full_disk import can_mount, fill_train, limit_pack, limit_train
from benchmarks.torture.fuzz import fuzz, run_cases
from benchmarks.torture.kills import kill_build_att, kill_pack, kill_train
from benchmarks.torture.mutations import mutated
from benchmarks.torture.races import change_checkpoint, exhaust, run_twice
from saga_fast.loaders.engines import require_engine

CASES = {"folder": 6, "table": 300, "checkpoint": 300, "config": 120, "shards": 200, "beton": 40, "encoder": 80}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


def test_kill_9_of_train_and_resume(experiment: Undisturbed, tmp_path: Path) -> None:
    row = kill_train(experiment, tmp_path, kills=8)
    assert row["faults"] == row["survived"] == 8
    assert row["runs_compared"] >= 1


def test_kill_9_of_build_att_and_resume(experiment: Undisturbed, tmp_path: Path) -> None:
    row = kill_build_att(experiment, tmp_path, kills=12)
    assert row["faults"] == row["survived"] == 12
    assert row["tables_compared"] >= 1
    assert row["gone_on_from_parts"] >= 1


def test_kill_9_of_pack(tmp_path: Path) -> None:
    require_engine("ffcv")
    assert kill_pack(tmp_path, kills=2, images=60)["survived"] == 2


def test_a_disk_that_fills_up_while_training(experiment: Undisturbed, tmp_path: Path) -> None:
    # A file size limit is met by whoever runs the tests; a small file system takes root.
    assert limit_train(experiment, tmp_path, faults=2)["survived"] == 2


@pytest.mark.skipif(not can_mount(), reason="takes root, and a container that may mount")
def test_a_full_file_system_while_training(experiment: Undisturbed, tmp_path: Path) -> None:
    assert fill_train(experiment, tmp_path, faults=1)["survived"] >= 1


def test_a_disk_that_fills_up_while_packing(tmp_path: Path) -> None:
    require_engine("ffcv")
    assert limit_pack(tmp_path, faults=2)["survived"] == 2


def test_a_checkpoint_that_changes_while_it_is_read(experiment: Undisturbed, tmp_path: Path) -> None:
    assert change_checkpoint(experiment, tmp_path, faults=3)["survived"] == 3


def test_two_runs_in_one_folder(experiment: Undisturbed, tmp_path: Path) -> None:
    assert run_twice(experiment, tmp_path, faults=1)["survived"] == 1


def test_too_few_resources(experiment: Undisturbed, tmp_path: Path) -> None:
    assert exhaust(experiment, tmp_path, faults=10)["survived"] == 10


def test_fuzzed_images_in_a_process_of_their_own(tmp_path: Path) -> None:
    row = fuzz("decode", tmp_path, cases=1000)
    assert row["read"] + row["refused"] == 1000
    assert min(row["read"], row["refused"]) > 100  # or the damage is too little, or too much, to find anything


@pytest.mark.parametrize("target", CASES)
def test_fuzz(target: str, tmp_path: Path) -> None:
    if target == "beton":
        require_engine("ffcv")
    row = run_cases(target, tmp_path, cases=CASES[target])
    assert row["survived"] == CASES[target]
    assert target == "folder" or min(row["read"], row["refused"]) > 0


def test_a_crash_is_found_and_its_case_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.torture.targets.decode_image", lambda *_, **__: 1 / 0)
    monkeypatch.setattr("benchmarks.torture.fuzz.CASE_SECONDS", 0.5)
    with pytest.raises(ZeroDivisionError):
        run_cases("decode", tmp_path, cases=9)
    time.sleep(0.6)  # the hang's alarm, which ends the process, is off
    assert (tmp_path / "case").read_text() == "0\n"
    with pytest.raises(AssertionError, match=r"seed -1, case 0: exit 1"):
        fuzz("decode", tmp_path, cases=1, seed=-1)  # which NumPy refuses


def test_the_committed_figures_are_of_thousands_of_faults() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "torture.json"
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
    assert not [name for name, row in rows.items() if "error" in row]
    assert all(row["faults"] == row["survived"] and row["data_lost"] == 0 for row in rows.values())
    assert rows["train killed"]["faults"] + rows["build-att killed"]["faults"] >= 20
    assert rows["fuzz decode"]["faults"] >= 20_000


def test_mutations_are_a_function_of_the_seed() -> None:
    data = bytes(range(256)) * 4
    first, again, other = (mutated(data, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other
