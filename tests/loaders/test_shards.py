"""Shards: images in tar files, read where they lie, with the labels that come with them; nothing is extracted."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from remote_fixtures import folder
from same_batches import assert_same_batches
from tar_files import make_jpeg, write_tar

from saga_fast.errors import SagaError
from saga_fast.loaders import (
    BadImages,
    CropPlan,
    ImageFolder,
    LoaderOptions,
    Shards,
    WholePlan,
    open_loader,
    open_source,
)

__all__ = ["folder"]


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_a_tarred_folder_is_the_folder(folder: ImageFolder, tmp_path: Path, engine: str, style: int) -> None:
    members = {path: folder.read(index) for index, path in enumerate(folder.paths)}
    names = list(members)
    for number, part in enumerate((names[:10], names[10:11], names[11:])):
        write_tar(tmp_path / f"{number:05}.tar", {f"./{name}": members[name] for name in part}, style=style)
    source = open_source(engine, tmp_path)
    assert isinstance(source, Shards)
    assert (source.paths, source.classes, source.fingerprint) == (folder.paths, folder.classes, folder.fingerprint)
    assert source.labels.tolist() == folder.labels.tolist() and source.labels.dtype == np.int64
    plan = CropPlan(size=9, seed=0)
    ours = open_loader(engine, tmp_path, plan, LoaderOptions(threads=2), batch_size=5, shuffle=True)
    assert_same_batches(ours, open_loader("folder", folder, plan, batch_size=5, shuffle=True))


def test_labels_lie_beside_the_images(tmp_path: Path) -> None:
    members = {"b.cls": b"7", "b.jpg": b"B", "a.left.jpg": b"A", "a.json": b'{"label": 2}', "c.png": b"C", "note": b""}
    source = Shards(write_tar(tmp_path / "x.tar", members | {"c.json": b'{"caption": "no label"}'}))
    assert source.paths == ["b.jpg", "a.left.jpg", "c.png"]
    assert source.labels.tolist() == [7, 2, -1]
    assert source.classes == tuple("01234567")
    assert [source.read(index) for index in range(3)] == [b"B", b"A", b"C"]
    assert Shards(write_tar(tmp_path / "y.tar", {"a.jpg": b"", "cat/b.jpg": b""})).labels.tolist() == [-1, -1]


@pytest.mark.parametrize("label", [b"cat", b"", b"-1", b"1.5", b"true", b"99999999999", b"[" * 10**5])
def test_a_label_that_is_no_number_is_refused(tmp_path: Path, label: bytes) -> None:
    with pytest.raises(SagaError, match=r"x\.tar: a\.cls"):
        Shards(write_tar(tmp_path / "x.tar", {"a.jpg": b"", "a.cls": label}))


def test_names_are_names_and_no_places(tmp_path: Path) -> None:
    long = "very/" * 60 + "long.jpg"
    names = ["/etc/passwd.jpg", "../../outside.jpg", "a/../../b.jpg", "C:\\x.jpg", "line\nbreak.jpg", long]
    tar = write_tar(tmp_path / "in" / "x.tar", {name: make_jpeg(number) for number, name in enumerate(names)})
    with tarfile.open(tar, "a") as more:  # links out of the tar are no images of it
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            more.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    source = Shards(tar)
    assert source.paths == names
    assert [source.read(index) for index in range(len(names))] == [make_jpeg(number) for number in range(len(names))]
    batches = list(open_loader("folder", source, WholePlan(size=4), batch_size=4))
    assert sum(len(batch.index) for batch in batches) == len(names)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("engine", ["folder", "dali"])
def test_a_tar_that_shrank_has_bad_images(tmp_path: Path, engine: str) -> None:
    tar = write_tar(tmp_path / "x.tar", {f"{number}.jpg": make_jpeg(number) for number in range(6)})
    source = Shards(tar)
    content = tar.read_bytes()
    tar.write_bytes(content[: content.index(source.read(4)) + 5])
    loader = open_loader(engine, source, WholePlan(size=4), batch_size=2, bad=BadImages(source, max_fraction=0.5))
    assert [index for batch in loader for index in batch.index.tolist()] == [0, 1, 2, 3]
    assert loader.bad.indices.tolist() == [4, 5]


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", {f"{number}.jpg": make_jpeg(number) for number in range(3)})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "text.tar").write_text("no tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    write_tar(tmp_path / "packed.tar", {"a.jpg": b""}, mode="w:gz")
    write_tar(tmp_path / "none.tar", {"a.txt": b""})
    for name in ("cut", "text", "empty", "packed", "none", "missing"):
        with pytest.raises(SagaError, match=rf"{name}\.tar") as error:
            open_source("folder", tmp_path / f"{name}.tar")
        assert "\n" not in str(error.value)
    with pytest.raises(SagaError, match="class list"):
        open_source("folder", whole, classes=tmp_path / "classes.txt")


def test_a_folder_with_other_things_in_it_is_an_image_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.jpg": make_jpeg(0)})
    assert isinstance(open_source("folder", tmp_path), Shards)
    (tmp_path / "b.jpg").write_bytes(make_jpeg(1))
    assert open_source("folder", tmp_path).paths == ["b.jpg"]


def test_hidden_tars_are_skipped(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.jpg": make_jpeg(0)})
    (tmp_path / "._0.tar").write_bytes(b"\0\x05\x16\x07 of a Mac")
    assert open_source("folder", tmp_path).paths == ["a.jpg"]


def test_a_folder_of_img2dataset_is_its_tars(tmp_path: Path) -> None:
    for number in range(2):
        about = b'{"caption": "a cat", "url": "http://x", "key": "0", "status": "success"}'
        members = {f"{number}.jpg": make_jpeg(number), f"{number}.txt": b"a cat", f"{number}.json": about}
        write_tar(tmp_path / f"0000{number}.tar", members)
        (tmp_path / f"0000{number}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"0000{number}_stats.json").write_text("{}")
    source = open_source("folder", tmp_path)
    assert isinstance(source, Shards)
    assert (source.paths, source.classes, source.labels.tolist()) == (["0.jpg", "1.jpg"], (), [-1, -1])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the file open
@pytest.mark.parametrize("label", ["cls", "json"])
def test_shards_of_webdataset(folder: ImageFolder, tmp_path: Path, label: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "00000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for index, number in enumerate(folder.labels.tolist()):
            value = number if label == "cls" else {"label": number, "caption": "a cat"}
            writer.write({"__key__": f"part/sample {index:03}", "jpg": folder.read(index), label: value})
    source = Shards(path)
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert len(source) == len(samples) == len(folder)
    for index, sample in enumerate(samples):
        assert source.read(index) == sample["jpg"] == folder.read(index)
        read = json.loads(sample[label])
        assert source.labels[index] == (read if label == "cls" else read["label"]) == folder.labels[index]
    assert source.classes == ("0", "1", "2")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "X.TAR.GZ", "x.tar.bz2", "x.tar.zst"])
def test_compressed_tars_are_refused_with_the_mend(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / name, {"a.jpg": b""}, mode="w:gz")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(SagaError, match=r"is compressed, .* decompress it") as error:
            open_source("folder", path)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_a_folder_of_tars_and_other_files_says_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.jpg": b""})
    (tmp_path / "README.md").touch()
    with pytest.raises(SagaError, match=r"or tar files such as x\.tar alone"):
        open_source("folder", tmp_path)
