"""``saga-fast build-att``: its table, its list of bad images, and what it refuses in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from saga_fast.cli import main
from saga_fast.loaders import BoxTable, ImageFolder
from saga_fast.runtime.files import sha256

Refuses = Callable[..., None]


def tables_equal(first: Path, second: Path) -> bool:
    a, b = BoxTable.open(first), BoxTable.open(second)
    return all(np.array_equal(getattr(a, c), getattr(b, c)) for c in ("boxes", "found", "pseudo_label", "score"))


def test_build_att(ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "deep" / "a.safetensors", tmp_path / "b.safetensors"
    data = str(images / "train")
    assert main(["build-att", "--ckpt", str(ckpt), "--data", data, "--out", str(first)]) == 0
    out = capsys.readouterr().out
    # The default images and options are those of the checkpoint's config.
    assert main(["build-att", "--ckpt", str(ckpt), "--out", str(second), "--batch-size", "64"]) == 0
    assert tables_equal(first, second)

    table = BoxTable.open(first)
    found, area = 100 * table.found_fraction, table.mean_area
    assert out.startswith(f"{first}: 41 images, found {found:.1f} %, mean box area {area:.3f}, ")
    assert out.endswith(" images/s\n")
    assert len(table) == 41
    assert table.metadata["dataset"] == ImageFolder(data).fingerprint
    assert table.metadata["checkpoint"] == sha256(ckpt)
    assert (table.metadata["epoch"], table.metadata["delta"], table.metadata["size"]) == ("5", "0.7", "16")
    assert [path.name for path in first.parent.iterdir()] == ["a.safetensors"]


def test_build_att_options(ckpt: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    options = ["--delta", "0.4", "--score", "activation", "--normalize", "max", "--size", "24", "--threads", "1"]
    assert main(["build-att", "--ckpt", str(ckpt), "--out", str(out), *options]) == 0
    metadata = BoxTable.open(out).metadata
    assert [metadata[key] for key in ("delta", "attention_score", "normalize", "size")] == [
        "0.4",
        "activation",
        "max",
        "24",
    ]
    assert metadata["mirror"] == "False"
    mirrored = ["--score", "background", "--mirror", "--threads", "1"]
    assert main(["build-att", "--ckpt", str(ckpt), "--out", str(out), *mirrored]) == 0
    metadata = BoxTable.open(out).metadata
    assert (metadata["attention_score"], metadata["mirror"]) == ("background", "True")


def spoil(root: Path) -> dict[int, str]:
    """Break five files of a folder in five ways, and return their indices and paths."""
    paths = ImageFolder(root).paths
    broken = {index: paths[index] for index in (0, 7, 20, 33, 40)}
    contents = [b"", b"not an image", None, b"\xff\xd8\xff\xe0" + bytes(40), (root / paths[33]).read_bytes()[:90]]
    for path, content in zip(broken.values(), contents, strict=True):
        (root / path).unlink()
        if content is None:
            (root / path).symlink_to("nowhere.jpg")
        else:
            (root / path).write_bytes(content)
    return broken


def test_build_att_lists_undecodable_images(
    ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, table_path = tmp_path / "clean.safetensors", tmp_path / "out" / "a.safetensors"
    data = tmp_path / "data"
    shutil.copytree(images / "train", data)
    common = ["build-att", "--ckpt", str(ckpt), "--batch-size", "8"]
    assert main([*common, "--data", str(data), "--out", str(clean)]) == 0
    broken = spoil(data)
    capsys.readouterr()
    options = ["--data", str(data), "--out", str(table_path), "--max-bad-fraction", "0.2"]
    assert main([*common, *options]) == 0

    listed = tmp_path / "out" / "a.bad_images.txt"
    assert capsys.readouterr().out.splitlines()[1] == f"5 images cannot be decoded, see {listed}"
    rows = [line.split("\t") for line in listed.read_text().splitlines()]
    assert {int(index): path for index, path, _ in rows} == broken
    assert [index for index, _, _ in rows] == [str(index) for index in sorted(broken)]
    assert all(len(row) == 3 and row[2] for row in rows)

    table, whole = BoxTable.open(table_path), BoxTable.open(clean)
    bad, good = list(broken), np.setdiff1d(np.arange(41), list(broken))
    np.testing.assert_array_equal(table.boxes[bad], BoxTable.whole(5).boxes)
    assert not table.found[bad].any()
    np.testing.assert_array_equal(table.pseudo_label[good], whole.pseudo_label[good])
    np.testing.assert_allclose(table.score[good], whole.score[good], rtol=1e-4)
    np.testing.assert_allclose(table.boxes[good], whole.boxes[good], atol=1.01 / 16)  # one pixel, for rounding
    assert table.metadata["dataset"] == whole.metadata["dataset"]


def test_build_att_refuses_too_many_bad_images(ckpt: Path, images: Path, tmp_path: Path, refuses: Refuses) -> None:
    data, out = tmp_path / "data", tmp_path / "a.safetensors"
    shutil.copytree(images / "train", data)
    spoil(data)
    refuses(["build-att", "--ckpt", ckpt, "--data", data, "--out", out], "of 41 images", "max_bad_fraction 0.01")
    assert not out.exists()


def test_build_att_removes_an_old_list_of_bad_images(ckpt: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    for name in ("a.bad_images.txt", "bad_images.txt"):
        (tmp_path / name).write_text("3\tcat/003.jpg\tbroken\n")
    assert main(["build-att", "--ckpt", str(ckpt), "--data", str(images / "train"), "--out", str(out)]) == 0
    assert not (tmp_path / "a.bad_images.txt").exists()
    assert (tmp_path / "bad_images.txt").exists()  # another command's


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--delta", "1.5"], ["--delta", "[0, 1)", "1.5"]),
        (["--delta", "-0.1"], ["--delta", "-0.1"]),
        (["--delta", "nan"], ["--delta", "nan"]),
        (["--size", "0"], ["--size", "0"]),
        (["--engine", "dalli"], ["no such engine", "'dalli'"]),
        (["--batch-size", "0"], ["batch_size", "0"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--data", "/nonexistent/images"], ["no such image folder", "/nonexistent/images"]),
    ],
)
def test_build_att_refuses_values(
    ckpt: Path, tmp_path: Path, refuses: Refuses, options: list[str], words: list[str]
) -> None:
    out = tmp_path / "a.safetensors"
    refuses(["build-att", "--ckpt", ckpt, "--out", out, *options], *words)
    assert not out.exists()


def test_build_att_refuses_paths(ckpt: Path, tmp_path: Path, refuses: Refuses) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("mine")
    refuses(["build-att", "--ckpt", ckpt, "--data", empty, "--out", tmp_path / "a"], "no image in", empty)
    refuses(["build-att", "--ckpt", ckpt, "--out", tmp_path], "cannot write to", tmp_path, "folder")
    refuses(["build-att", "--ckpt", ckpt, "--out", file / "a.safetensors"], file)
    assert file.read_text() == "mine"
    assert list(empty.iterdir()) == []


def test_build_att_leaves_an_existing_table_when_it_fails(ckpt: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    BoxTable.whole(3).save(out)
    before = out.read_bytes()
    data = tmp_path / "data"
    shutil.copytree(images / "train", data)
    spoil(data)
    assert main(["build-att", "--ckpt", str(ckpt), "--data", str(data), "--out", str(out)]) == 2
    assert out.read_bytes() == before
