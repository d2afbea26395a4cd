"""The shared attention pass: one table, bit for bit, whoever computes it and however often it is interrupted."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from processes import run

from saga_fast.attention import build as attention
from saga_fast.attention import build_box_table
from saga_fast.attention.parts import Parts, rows_of
from saga_fast.evaluate.features import FrozenModel, extract_features
from saga_fast.loaders import BadImages, BoxTable, ImageFolder, LoaderOptions, WholePlan, open_loader
from saga_fast.methods import METHODS, Method, build_method
from saga_fast.models.encoder import EncoderConfig
from saga_fast.runtime.distributed import rank

ENCODER = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
Columns = dict[str, NDArray[Any]]


class Killed(BaseException):
    """As kill -9 ends a process: nothing catches it."""


def make_model() -> Method:
    torch.manual_seed(0)
    return build_method(METHODS["simclr"].Config(name="simclr"), ENCODER)


def table_of(
    root: str, parts: str | None = None, resume: bool = False, kill: tuple[int, int] | None = None, **options: Any
) -> tuple[Columns, int, list[int]]:
    """The columns, how many batches this process computed, and the bad images; ``kill`` is a rank and a batch."""
    source = ImageFolder(root)
    bad = BadImages(source, max_fraction=0.5)
    loader = open_loader("folder", source, WholePlan(size=16), LoaderOptions(threads=1), batch_size=4, bad=bad)
    real, calls = attention.boxes_of_batch, 0

    def counting(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if kill == (rank(), calls):
            raise Killed
        return real(*arguments, **more)

    attention.boxes_of_batch = counting
    folder = Parts(Path(parts), resume=resume, seconds=0.0) if parts else None
    table = BoxTable.whole(1)
    try:
        table = build_box_table(make_model(), loader, parts=folder, delta=0.5, **options)
    except Killed:
        calls = -calls
    finally:
        attention.boxes_of_batch = real
    columns = {name: getattr(table, name) for name in ("boxes", "found", "pseudo_label", "score")}
    return columns, calls, bad.indices.tolist()


def assert_same(found: Columns, expected: Columns) -> None:
    for name, column in expected.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)


@pytest.fixture(scope="module")
def broken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 images, of which 8 cannot be decoded: a whole batch (4 to 7), one at its end, one that is alone in the last,
    and two others."""
    root = tmp_path_factory.mktemp("broken") / "images"
    shutil.copytree(images / "train", root)
    for index in (4, 5, 6, 7, 11, 22, 30, 40):
        path = root / ImageFolder(root).paths[index]
        path.write_bytes(path.read_bytes()[:80])
    return root


@pytest.fixture(scope="module")
def alone(broken: Path) -> Columns:
    ((columns, calls, bad),) = run(1, table_of, str(broken))
    assert (calls, bad) == (9, [4, 5, 6, 7, 11, 22, 30, 40])  # of 11 batches; nothing of two can be decoded
    assert columns["found"].sum() > 20
    return columns  # type: ignore[no-any-return]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_table_is_that_of_one_process(broken: Path, alone: Columns, world_size: int) -> None:
    results = run(world_size, table_of, str(broken))
    for columns, _, bad in results:
        assert_same(columns, alone)
        assert bad == [4, 5, 6, 7, 11, 22, 30, 40]
    assert sum(calls for _, calls, _ in results) == 9  # each batch once


def test_more_processes_than_missing_batches(broken: Path, alone: Columns, tmp_path: Path) -> None:
    run(1, table_of, str(broken), str(tmp_path / "parts"), False, (0, 9))
    for columns, _, _ in run(4, table_of, str(broken), str(tmp_path / "parts"), True):
        assert_same(columns, alone)


def killed(broken: Path, folder: Path) -> int:
    """A pass of one process that dies in its sixth batch; the number of parts that it leaves."""
    ((_, calls, _),) = run(1, table_of, str(broken), str(folder), False, (0, 6))
    assert calls == -6
    return len(list(folder.glob("part_*")))


def test_killed_pass_goes_on_where_it_was(broken: Path, alone: Columns, tmp_path: Path) -> None:
    """Five batches that could be decoded were computed, and the sixth had come."""
    assert killed(broken, tmp_path / "parts") == 5
    for world_size in (1, 3):  # the first takes one of the two copies
        shutil.copytree(tmp_path / "parts", tmp_path / f"parts{world_size}")
        results = run(world_size, table_of, str(broken), str(tmp_path / f"parts{world_size}"), True)
        assert sum(calls for _, calls, _ in results) == 4
        for columns, _, bad in results:
            assert_same(columns, alone)
            assert bad == [4, 5, 6, 7, 11, 22, 30, 40]  # those found by the earlier process, too


def test_finished_parts_leave_nothing_to_compute(broken: Path, alone: Columns, tmp_path: Path) -> None:
    arguments = str(broken), str(tmp_path / "parts")
    run(2, table_of, *arguments)
    ((columns, calls, _),) = run(1, table_of, *arguments, True)
    assert_same(columns, alone)
    assert calls <= 2  # each rank's last batch went into the table at once


def test_without_resume_parts_are_not_taken(broken: Path, tmp_path: Path) -> None:
    killed(broken, tmp_path / "parts")
    ((_, calls, _),) = run(1, table_of, str(broken), str(tmp_path / "parts"))
    assert calls == 9


@pytest.mark.parametrize(
    ("options", "named"),
    [({"delta": "0.3"}, "delta"), ({"checkpoint": "another"}, "checkpoint"), ({"batch_size": "8"}, "batch_size")],
)
def test_parts_of_another_pass_are_not_taken(
    tmp_path: Path, options: dict[str, str], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    origin = {"delta": "0.5", "checkpoint": "one", "batch_size": "4"}
    table, index = BoxTable.whole(5), np.arange(4)
    parts = Parts(tmp_path / "parts", resume=True)
    parts.begin()
    parts.write(rows_of(table, index), np.array([0]), origin)
    rows, batches = parts.read(origin)
    assert (rows["index"].tolist(), batches.tolist()) == ([0, 1, 2, 3], [0])
    assert not caplog.records
    rows, batches = parts.read(origin | options)
    assert (len(rows["index"]), len(batches)) == (0, 0)
    assert f"was computed from another {named}: computing its images again" in caplog.text


def test_damaged_parts_are_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = Parts(tmp_path / "parts")
    parts.begin()
    parts.write(rows_of(BoxTable.whole(5), np.arange(4)), np.array([1]), {})
    parts.write(rows_of(BoxTable.whole(5), np.arange(4)), np.array([2]), {})
    path = parts.folder / "part_000000001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    assert parts.read({})[1].tolist() == [2]
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # a good box, but another
    assert parts.read({})[1].tolist() == [2]
    path.write_bytes(whole)
    assert parts.read({})[1].tolist() == [1, 2]
    assert "cannot be read" in caplog.text
    parts.remove()
    assert not parts.folder.exists()


def features_of(root: str) -> Any:
    source = ImageFolder(root)
    loader = open_loader(
        "folder",
        source,
        WholePlan(size=16),
        LoaderOptions(threads=1),
        batch_size=16,
        bad=BadImages(source, max_fraction=0.5),
    )
    return extract_features(FrozenModel(model=make_model()), loader)


def test_features_are_those_of_one_process_in_order(broken: Path) -> None:
    ((features, labels),) = run(1, features_of, str(broken))
    assert len(labels) == 33
    for world_size in (2, 4):  # 3 batches, so that one has none
        for own, own_labels in run(world_size, features_of, str(broken)):
            assert torch.equal(own_labels, labels)
            for layer, rows in features.items():
                assert torch.equal(own[layer], rows), layer
