"""A .beton file as a source: the packed folder's paths, labels and fingerprint, or a refusal before garbage is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_fast.cli import main
from saga_fast.errors import SagaError
from saga_fast.loaders import ENGINES, BoxTable, CropPlan, ImageFolder, LoaderOptions, Source, open_loader, open_source
from saga_fast.loaders.engines import require_engine

CROPS = CropPlan(size=8, seed=0)


@pytest.fixture(scope="module")
def packed(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_engine("ffcv")
    root = tmp_path_factory.mktemp("beton")
    make_images(root / "train", classes=("ant", "bee", "cat"), per_class=5)
    assert main(["pack", str(root / "train"), str(root / "x.beton")]) == 0
    return root


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """The file and its list, to be changed."""
    for name in ("x.beton", "x.beton.json"):
        shutil.copy(packed / name, tmp_path)
    return tmp_path / "x.beton"


def open_ffcv(path: Path, *, classes: Path | None = None) -> Source:
    return open_source("ffcv", path, classes=classes)


def test_it_is_the_folder_it_was_packed_from(packed: Path) -> None:
    ours, folder = open_ffcv(packed / "x.beton"), ImageFolder(packed / "train")
    assert (len(ours), ours.paths, ours.classes) == (15, folder.paths, folder.classes)
    assert ours.fingerprint == folder.fingerprint
    np.testing.assert_array_equal(ours.labels, folder.labels)
    assert ours.labels.dtype == np.int64
    assert "15 images" in repr(ours)


def test_a_box_table_of_the_folder_fits_and_another_does_not(packed: Path) -> None:
    own = BoxTable.whole(15)
    for metadata, fits in ((ImageFolder(packed / "train").fingerprint, True), ("15-0123456789abcdef", False)):
        table = BoxTable(own.boxes, own.found, own.pseudo_label, own.score, {"dataset": metadata})
        plan = CropPlan(size=8, seed=0, table=table)
        if fits:
            loader = open_loader("ffcv", packed / "x.beton", plan, LoaderOptions(threads=1), batch_size=15)
            assert len(list(loader)) == 1
        else:
            with pytest.raises(SagaError, match=r"15-0123456789abcdef"):
                open_loader("ffcv", packed / "x.beton", plan, batch_size=15)


def test_each_engine_names_what_it_reads(packed: Path) -> None:
    with pytest.raises(SagaError, match=r"saga-fast pack"):
        open_ffcv(packed / "train")
    with pytest.raises(SagaError, match=r"saga-fast pack"):
        open_loader("ffcv", ImageFolder(packed / "train"), CROPS, batch_size=1)
    beton = open_ffcv(packed / "x.beton")
    for engine in (name for name in ENGINES if name != "ffcv"):
        for source in (packed / "x.beton", str(packed / "x.beton"), beton):
            with pytest.raises(SagaError, match=r"x\.beton is for --engine ffcv"):
                open_loader(engine, source, CROPS, batch_size=1)
        with pytest.raises(SagaError, match=r"x\.beton is for --engine ffcv"):
            open_source(engine, packed / "x.beton")
    with pytest.raises(SagaError, match=r"no such file.*y\.beton"):
        open_ffcv(packed / "y.beton")


def test_a_missing_engine_names_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ffcv", None)
    for call in (lambda: require_engine("ffcv"), lambda: open_source("ffcv", "x.beton")):
        with pytest.raises(SagaError, match=r"apt install libopencv-dev .* pip install 'saga-fast\[ffcv\]'"):
            call()


def test_a_class_list_has_to_be_the_one_it_was_packed_with(packed: Path, tmp_path: Path) -> None:
    listed = tmp_path / "classes.txt"
    listed.write_text("bee\nant\ncat\n")
    assert len(open_ffcv(packed / "x.beton", classes=listed)) == 15
    listed.write_text("bee\nant\n")
    with pytest.raises(SagaError, match=r"other classes.*--classes"):
        open_ffcv(packed / "x.beton", classes=listed)


@pytest.mark.parametrize("kept", [0, 10, 24, 3000, -1, -500])
def test_a_file_that_was_cut_short_is_refused(copy: Path, kept: int) -> None:
    content = copy.read_bytes()
    copy.write_bytes(content[:kept])
    with pytest.raises(SagaError, match=rf"{len(content[:kept])} bytes.*says {len(content)}.*cut short"):
        open_ffcv(copy)


def rewrite(beton: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = beton.with_name("x.beton.json")
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "other format": (lambda about: about.update(format="other/format"), "not the list"),
    "newer version": (lambda about: about.update(version=3), "version 3"),
    "a path renamed": (lambda about: about["paths"].__setitem__(3, "ant/other.jpg"), "fingerprint"),
    "a path too few": (lambda about: about["paths"].pop(), "fingerprint"),
    "a label too few": (lambda about: about["labels"].pop(), "damaged"),
    "no file": (lambda about: about.pop("beton"), "damaged"),
    "of another file": (lambda about: about["beton"].update(records_sha256="0" * 64), "another file"),
    "of a longer file": (lambda about: about["beton"].update(bytes=10**9), "1000000000"),
    "a bad image too many": (lambda about: about["bad"].append([4, "noise"]), "digest"),
    "another label": (lambda about: about["labels"].__setitem__(0, 1), "digest"),
    "another class": (lambda about: about["classes"].__setitem__(0, "aunt"), "digest"),
    "bad without digest": (lambda about: (about["bad"].append([4, "x"]), about.pop("contents_sha256")), "do not fit"),
    "label without digest": (
        lambda about: (about["labels"].__setitem__(0, 1), about.pop("contents_sha256")),
        "records do not fit",
    ),
    "a label of no class": (lambda about: about["labels"].__setitem__(0, 99), "damaged"),
    "a label that is no number": (lambda about: about["labels"].__setitem__(0, 0.5), "damaged"),
    "a path that is no text": (lambda about: about["paths"].__setitem__(0, 5), "damaged"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_a_list_that_does_not_fit_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    rewrite(copy, change)
    with pytest.raises(SagaError, match=named) as error:
        open_ffcv(copy)
    assert "\n" not in str(error.value)


def test_a_list_that_is_missing_or_no_list_is_refused(copy: Path) -> None:
    beside = copy.with_name("x.beton.json")
    for content in (b"", b"\xff\xfe", b"[1, 2]", b'{"paths"'):
        beside.write_bytes(content)
        with pytest.raises(SagaError, match=r"x\.beton\.json"):
            open_ffcv(copy)
    beside.unlink()
    with pytest.raises(SagaError, match=r"x\.beton\.json is missing.*pack again"):
        open_ffcv(copy)


def test_another_files_list_is_refused(copy: Path, make_images: Callable[..., Path], tmp_path: Path) -> None:
    # Of as many bytes: the same images under other names.
    make_images(tmp_path / "other", classes=("ant", "bee", "dog"), per_class=5)
    assert main(["pack", str(tmp_path / "other"), str(tmp_path / "other.beton")]) == 0
    assert (tmp_path / "other.beton").stat().st_size == copy.stat().st_size
    opened = open_ffcv(tmp_path / "other.beton")
    assert opened.classes == ("ant", "bee", "dog")
    make_images(tmp_path / "third", classes=("ant", "bee", "cat"), per_class=5, seed=1)
    assert main(["pack", str(tmp_path / "third"), str(tmp_path / "third.beton")]) == 0
    shutil.copy(tmp_path / "third.beton.json", copy.with_name("x.beton.json"))
    with pytest.raises(SagaError, match=r"pack again"):
        open_ffcv(copy)


@pytest.mark.parametrize("at", [0, 2, 8, 16])
def test_a_header_of_another_kind_is_refused(copy: Path, at: int) -> None:
    content = bytearray(copy.read_bytes())
    content[at] ^= 0x5A
    copy.write_bytes(content)
    with pytest.raises(SagaError, match=r"damaged|not a file"):
        open_ffcv(copy)


def test_damaged_records_are_refused(copy: Path) -> None:
    from saga_fast.loaders.ffcv.beton import RECORDS_BEGIN

    content = bytearray(copy.read_bytes())
    content[RECORDS_BEGIN + 6] ^= 1  # of the first image's place
    copy.write_bytes(content)
    with pytest.raises(SagaError, match=r"damaged"):
        open_ffcv(copy)


def test_records_that_point_outside_are_refused(copy: Path) -> None:
    # By a writer that signs what it wrote.
    from saga_fast.loaders.ffcv.beton import RECORD, RECORDS_BEGIN, records_digest

    original = copy.read_bytes()
    for field, value in (("data_ptr", 10**12), ("height", 0), ("mode", 1), ("mode", 2), ("mode", 7)):
        content = bytearray(original)
        records = np.frombuffer(content, RECORD, count=15, offset=RECORDS_BEGIN)
        records["f0"][field][4] = value
        copy.write_bytes(content)
        digest = records_digest(records)
        rewrite(copy, lambda about, digest=digest: about["beton"].update(records_sha256=digest))  # type: ignore[misc]
        with pytest.raises(SagaError, match=r"records do not fit"):
            open_ffcv(copy)
        del records


@pytest.mark.parametrize(("changed", "accepted"), [(0, True), (1, False), (3, True)])
def test_a_file_holds_planes_or_other_images(tmp_path: Path, changed: int, accepted: bool) -> None:
    # As planes, the bytes of a raw image are those of one twice as high.
    from saga_fast.loaders.ffcv.beton import RECORD, RECORDS_BEGIN, records_digest
    from saga_fast.loaders.ffcv.decoder import PLANES

    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    path = tmp_path / "x.beton"
    assert main(["pack", str(tmp_path / "images"), str(path), "--mode", "raw"]) == 0
    content = bytearray(path.read_bytes())
    records = np.frombuffer(content, RECORD, count=3, offset=RECORDS_BEGIN)
    records["f0"]["mode"][:changed] = PLANES
    records["f0"]["height"][:changed] = 12
    path.write_bytes(content)
    rewrite(path, lambda about: about["beton"].update(records_sha256=records_digest(records)))
    if accepted:
        assert len(open_ffcv(path)) == 3
    else:
        with pytest.raises(SagaError, match=r"records do not fit"):
            open_ffcv(path)


def test_a_file_that_is_cut_while_in_use_is_refused_at_the_next_iteration(copy: Path) -> None:
    loader = open_loader("ffcv", copy, CROPS, LoaderOptions(threads=1), batch_size=4)
    assert len(list(loader)) == 4
    with copy.open("r+b") as file:
        file.truncate(4000)
    with pytest.raises(SagaError, match=r"cut from \d+ to 4000 bytes"):
        next(iter(loader))
