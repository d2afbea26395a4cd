"""ImageFolder: torchvision's order and labels, what is listed, and the fingerprint that box tables belong to."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from saga_fast.errors import SagaError
from saga_fast.loaders import ImageFolder


def touch(root: Path, *names: str) -> Path:
    """Empty files: listing never opens an image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def assert_as_torchvision(root: Path) -> None:
    ours, theirs = ImageFolder(root), TorchvisionFolder(str(root), allow_empty=True)
    assert ours.paths == [Path(path).relative_to(root).as_posix() for path, _ in theirs.samples]
    assert ours.labels.tolist() == theirs.targets
    assert ours.labels.dtype == np.int64
    assert list(ours.classes) == theirs.classes


def one_line(error: pytest.ExceptionInfo[SagaError], *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def test_order_and_labels_are_torchvisions(tmp_path: Path) -> None:
    names = [
        "n02/9.jpg",
        "n02/10.jpg",  # text order, not the number's: 10 before 9
        "n02/A.JPEG",
        "n02/a.png",
        "n02/é 1.webp",
        "n02/notes.txt",
        "n02/jpg",
        "n01/deep/er/1.bmp",
        "n01/deep/2.tif",
        "n01/zero.pgm",
        "n01/folder.jpg/3.ppm",  # a folder whose name looks like an image
        "N03/x.tiff",
        "b class/1.jpg",
        "outside.jpg",
    ]
    touch(tmp_path, *reversed(names))
    (tmp_path / "empty").mkdir()  # keeps its number: the other labels do not shift
    assert_as_torchvision(tmp_path)
    assert len(ImageFolder(tmp_path)) == 11
    assert ImageFolder(tmp_path).classes == ("N03", "b class", "empty", "n01", "n02")


def test_order_is_torchvisions_where_a_folders_name_continues_anothers(tmp_path: Path) -> None:
    # "b-c" sorts before "b/d" as text, though folder b comes before folder b-c.
    assert_as_torchvision(touch(tmp_path, "x/b/1.jpg", "x/b-c/1.jpg", "x/b/d/1.jpg", "x/b d/1.jpg", "x/b0/1.jpg"))


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.jpg", "sub/2.jpg")
    root = touch(tmp_path / "root", "a/0.jpg")
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a" / "c").symlink_to(tmp_path / "elsewhere" / "sub", target_is_directory=True)
    (root / "a" / "9.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    assert_as_torchvision(root)
    assert ImageFolder(root).paths == ["a/0.jpg", "a/9.jpg", "a/c/2.jpg", "b/1.jpg", "b/sub/2.jpg"]


def test_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.PNG", "10.webp", "notes.txt", "texts/readme.md")
    folder = ImageFolder(str(tmp_path))
    assert folder.paths == ["10.webp", "a.PNG", "b.jpg"]
    assert folder.labels.tolist() == [-1, -1, -1]
    assert folder.labels.dtype == np.int64
    assert folder.classes == ()


def test_class_list_takes_the_listed_classes(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "n1/a.jpg", "n2/a.jpg", "n3/a.jpg", "n3/b.jpg", "n4/a.jpg")
    listed = tmp_path / "classes.txt"
    listed.write_text("n3 tabby cat\n\nn1\n", encoding="utf-8")
    folder = ImageFolder(root, classes=listed)
    assert folder.classes == ("n1", "n3")
    assert folder.paths == ["n1/a.jpg", "n3/a.jpg", "n3/b.jpg"]
    assert folder.labels.tolist() == [0, 1, 1]
    assert folder.fingerprint != ImageFolder(root).fingerprint


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"n1\nn9 dog\n", "'n9'"), (b"", "root"), (None, "classes.txt"), (b"\xff\xd8\xff\xe0 an image", "classes.txt")],
    ids=["class without folder", "empty", "missing", "not text"],
)
def test_class_list_that_does_not_fit_is_refused(tmp_path: Path, content: bytes | None, named: str) -> None:
    root = touch(tmp_path / "root", "n1/a.jpg")
    if content is not None:
        (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(SagaError) as error:
        ImageFolder(root, classes=tmp_path / "classes.txt")
    one_line(error, named)


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("a/notes.txt", "b/readme"), ("a/.hidden.jpg", ".b.jpg")])
def test_folder_without_images_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(SagaError) as error:
        ImageFolder(touch(tmp_path, *names))
    one_line(error, tmp_path, ".jpg")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", touch(tmp_path, "file.jpg") / "file.jpg"):
        with pytest.raises(SagaError) as error:
            ImageFolder(path)
        one_line(error, path)


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/._1.jpg", "a/.jpg", ".thumbnails/1.jpg", ".2.jpg")
    folder = ImageFolder(tmp_path)
    assert folder.paths == ["a/1.jpg"]
    assert folder.classes == ("a",)
    assert ImageFolder(touch(tmp_path / "flat", "1.jpg", "._1.jpg", ".thumbnails/1.jpg")).paths == ["1.jpg"]


def test_files_in_hidden_folders_are_not_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg")
    assert ImageFolder(tmp_path).paths == ["a/1.jpg"]


NAMES = ("n1/a.jpg", "n1/b.jpg", "n2/é.png")


def test_fingerprint_is_the_same_on_every_machine(tmp_path: Path) -> None:
    folder = ImageFolder(touch(tmp_path, *reversed(NAMES)))
    assert folder.fingerprint == "3-" + hashlib.sha256("n1/a.jpg\0n1/b.jpg\0n2/é.png\0".encode()).hexdigest()[:16]
    # As computed once, elsewhere: tables outlive versions of this package.
    assert folder.fingerprint == "3-ed50593a760187d4"


def test_fingerprint_stays_when_the_root_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path / "here", *NAMES)
    before = ImageFolder(root).fingerprint
    root.rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert ImageFolder("there").fingerprint == before
    (tmp_path / "there" / NAMES[0]).write_bytes(b"other content")
    touch(tmp_path / "there", "n1/notes.txt", ".cache/x.jpg")
    assert ImageFolder("there").fingerprint == before


@pytest.mark.parametrize(
    "names",
    [
        (*NAMES, "n1/c.jpg"),
        NAMES[:-1],
        ("n1/a.jpg", "n1/B.jpg", "n2/é.png"),
        ("n1/a.jpg", "n1/b.jpeg", "n2/é.png"),
        ("n1/a.jpg", "n2/b.jpg", "n2/é.png"),
        ("n0/a.jpg", "n0/b.jpg", "n2/é.png"),
    ],
    ids=["add", "remove", "rename", "suffix", "other class", "class name"],
)
def test_fingerprint_changes_with_the_list(tmp_path: Path, names: tuple[str, ...]) -> None:
    before = ImageFolder(touch(tmp_path / "before", *NAMES)).fingerprint
    assert ImageFolder(touch(tmp_path / "after", *names)).fingerprint != before


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xe9t\xe9.jpg"))).write_bytes(b"content")
    touch(tmp_path, "a/z.jpg")
    listed = ImageFolder(tmp_path)
    assert [os.fsencode(path) for path in listed.paths] == [b"a/z.jpg", b"a/\xe9t\xe9.jpg"]
    assert_as_torchvision(tmp_path)
    assert (tmp_path / listed.paths[1]).read_bytes() == b"content"
    assert listed.fingerprint == "2-" + hashlib.sha256(b"a/z.jpg\0a/\xe9t\xe9.jpg\0").hexdigest()[:16]
