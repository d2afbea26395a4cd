"""Folders that hold what is no image: nothing hangs, nothing is listed twice, the rest is read."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saga_fast.cli import main
from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, ImageFolder, LoaderOptions, Shards, WholePlan, open_loader


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A hang ends the test, not the suite."""
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture
def root(make_images: Callable[..., Path], tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", per_class=4)


def read(root: Path, *, shuffle: bool = False) -> tuple[list[str], dict[str, str]]:
    """Paths that the folder engine yields, and why it does not yield the others."""
    source = ImageFolder(root)
    bad = BadImages(source, max_fraction=0.9)
    loader = open_loader(
        "folder", source, WholePlan(size=4), LoaderOptions(threads=2), batch_size=4, bad=bad, shuffle=shuffle
    )
    good = [source.paths[index] for batch in loader for index in batch.index.tolist()]
    listed = root.parent / "bad.txt"
    bad.write(listed)
    rows = [line.split("\t") for line in listed.read_text().splitlines()] if len(bad) else []
    return good, {path: reason for _, path, reason in rows}


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_no_file_is_a_bad_image(root: Path, shuffle: bool) -> None:
    expected = {f"{name}/{number:03}.jpg" for name in ("cat", "dog") for number in range(4)}
    os.mkfifo(root / "cat" / "a.jpg")
    for name, target in (("b", "/dev/zero"), ("c", "c.jpg"), ("d", "missing.jpg"), ("e", "/dev/full")):
        (root / "cat" / f"{name}.jpg").symlink_to(target)
    (root / "cat" / "f.jpg").write_bytes(b"")
    with (root / "cat" / "g.jpg").open("wb") as file:
        file.truncate(2**40)  # takes no space, and reading it would take all memory
    (root / "cat" / "h\ni.jpg").write_bytes(b"noise")
    (root / "cat" / "j.jpg").mkdir()
    shutil.copy(root / "dog/000.jpg", root / "cat" / "j.jpg" / "x.jpg")
    good, bad = read(root, shuffle=shuffle)
    assert set(good) == expected | {"cat/j.jpg/x.jpg"}
    assert set(bad) == {f"cat/{name}.jpg" for name in "abcdefg"} | {"cat/h\\ni.jpg"}
    assert all("not a regular file" in bad[f"cat/{name}.jpg"] for name in "abe")
    assert "symbolic links" in bad["cat/c.jpg"]
    assert "more than" in bad["cat/g.jpg"]


def test_links_back_are_left_out_and_other_links_are_followed(
    root: Path, tmp_path: Path, make_images: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = make_images(tmp_path / "elsewhere", classes=("fox",), per_class=2)
    expected = ImageFolder(root).paths
    (root / "fox").symlink_to(elsewhere / "fox")
    (root / "dog" / "z.jpg").symlink_to(elsewhere / "fox" / "000.jpg")
    (root / "cat" / "up").symlink_to("..")  # each of these would be followed forty times,
    (root / "cat" / "here").symlink_to(".")  # and all of them 3 ** 40 times
    (root / "dog" / "cat").symlink_to("../cat")
    paths = ImageFolder(root).paths
    through = [f"dog/cat/{number:03}.jpg" for number in range(4)]
    assert paths == [*expected, "dog/z.jpg", *through, "fox/000.jpg", "fox/001.jpg"]
    assert any("is a link to a folder that contains it" in record.message for record in caplog.records)
    assert read(root) == (paths, {})


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.scandir

    def scandir(path: str | Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="dog"):
        ImageFolder(root)
    assert main(["pack", str(root), str(tmp_path / "x.beton")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("saga-fast: error: Permission denied")


def test_files_and_folders_that_vanish_while_they_are_read_are_bad(root: Path) -> None:
    source = ImageFolder(root)
    bad = BadImages(source, max_fraction=0.9)
    loader = open_loader(
        "folder", source, WholePlan(size=4), LoaderOptions(threads=1, prefetch=0), batch_size=1, bad=bad
    )
    seen = []
    for batch in loader:
        seen += batch.index.tolist()
        if len(seen) == 2:
            (root / "cat" / "003.jpg").unlink()
            os.mkfifo(root / "cat" / "003.jpg")  # replaced by what nobody writes to
            shutil.rmtree(root / "dog")
    assert seen == [0, 1, 2]
    assert bad.indices.tolist() == [3, 4, 5, 6, 7]


def test_a_fifo_for_a_tar_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(SagaError, match=r"x\.tar"):
        Shards(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop"])
def test_what_is_no_file_is_refused_wherever_a_file_is_read(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    for command in (["build-att", "--ckpt", str(path)], ["eval", "knn", "--ckpt", str(path), "--data", "."]):
        assert main(command) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("x.pt" in line for line in errors)
