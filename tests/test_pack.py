"""``saga-fast pack``: what is stored, what is refused, and that files appear whole or not at all."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from saga_fast.cli import main
from saga_fast.loaders import BoxTable, ImageFolder, LoaderOptions, WholePlan, open_loader, open_source
from saga_fast.loaders.decode import decode_image
from saga_fast.loaders.engines import require_engine


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    require_engine("ffcv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of all kinds: colour JPEG, CMYK JPEG, grey, PNG with alpha, 16 bits, rotated by EXIF."""
    root = tmp_path_factory.mktemp("images") / "train"
    rng = np.random.default_rng(0)
    for name, mode, options in (
        ("a/0.jpg", "RGB", {"quality": 77}),
        ("a/1.jpg", "CMYK", {}),
        ("a/2.jpg", "L", {"progressive": True}),
        ("b/0.png", "RGBA", {}),
        ("b/1.png", "I;16", {}),
        ("b/2.jpg", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        ("b/3.webp", "RGB", {"lossless": True}),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((61, 40), Image.Resampling.BICUBIC)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 2**16, (40, 61), np.uint16))
        (image if mode == "I;16" else image.convert(mode)).save(root / name, **options)
    return root


def pack(folder: Path, out: Path, *options: str) -> int:
    return main(["pack", str(folder), str(out), "--workers", "2", "--chunk-size", "3", *options])


def stored(path: Path) -> list[tuple[str, bytes, tuple[int, int]]]:
    """Kind, bytes and size of each image in a file."""
    from saga_fast.loaders.ffcv.beton import Beton

    source, content, names = Beton(path), path.read_bytes(), ("jpg", "raw", "yuv420")
    return [
        (names[mode], content[begin : begin + length], (height, width))
        for mode, begin, length, (height, width) in zip(
            source.modes.tolist(), source.begins.tolist(), source.lengths.tolist(), source.sizes.tolist(), strict=True
        )
    ]


def pixels(folder: Path) -> list[npt.NDArray[np.uint8]]:
    return [decode_image((folder / path).read_bytes()) for path in ImageFolder(folder).paths]


def test_raw_stores_the_pixels_that_every_engine_sees(folder: Path, tmp_path: Path) -> None:
    assert pack(folder, tmp_path / "x.beton", "--mode", "raw") == 0
    images = stored(tmp_path / "x.beton")
    assert {kind for kind, _, _ in images} == {"raw"}
    assert [data for _, data, _ in images] == [image.tobytes() for image in pixels(folder)]
    assert {size for _, _, size in images} == {(40, 61)}  # EXIF turns nothing
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]


def test_jpegs_are_stored_as_they_are_and_the_rest_is_encoded(folder: Path, tmp_path: Path) -> None:
    for name, options in (("x", ()), ("y", ("--quality", "30"))):
        assert pack(folder, tmp_path / f"{name}.beton", *options) == 0
    source, images = ImageFolder(folder), stored(tmp_path / "x.beton")
    for path, (kind, data, size), (_, poor, _), image in zip(
        source.paths, images, stored(tmp_path / "y.beton"), pixels(folder), strict=True
    ):
        assert (kind, size) == ("jpg", (40, 61))
        if path in ("a/0.jpg", "a/2.jpg", "b/2.jpg"):
            assert data == poor == (folder / path).read_bytes()
        elif path != "b/1.png":  # noise of 16 bits, which JPEG does not keep
            assert np.abs(decode_image(data).astype(int) - image).mean() < 4
            assert len(poor) < len(data)


def test_larger_images_are_shrunk_as_ffcv_does(folder: Path, tmp_path: Path) -> None:
    from ffcv.fields.rgb_image import resizer

    assert pack(folder, tmp_path / "x.beton", "--mode", "raw", "--max-resolution", "30") == 0
    for (_, data, size), image in zip(stored(tmp_path / "x.beton"), pixels(folder), strict=True):
        expected = resizer(image, 30)
        assert size == expected.shape[:2] == (19, 30)
        assert data == expected.tobytes()
    assert pack(folder, tmp_path / "y.beton", "--max-resolution", "30") == 0
    assert {(kind, size) for kind, _, size in stored(tmp_path / "y.beton")} == {("jpg", (19, 30))}
    assert pack(folder, tmp_path / "z.beton", "--max-resolution", "61") == 0
    assert stored(tmp_path / "z.beton")[0][1] == (folder / "a/0.jpg").read_bytes()


def test_a_thin_image_keeps_a_pixel_when_it_is_shrunk(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (900, 1)).save(tmp_path / "images" / "thin.png")
    assert pack(tmp_path / "images", tmp_path / "x.beton", "--max-resolution", "30", "--mode", "raw") == 0
    assert stored(tmp_path / "x.beton")[0][2] == (1, 30)


def test_smart_and_proportion_choose_per_image(folder: Path, tmp_path: Path) -> None:
    def kinds(name: str, *options: str) -> list[str]:
        assert pack(folder, tmp_path / f"{name}.beton", "--force", *options) == 0
        return [kind for kind, _, _ in stored(tmp_path / f"{name}.beton")]

    size = 40 * 61 * 3
    assert kinds("a", "--mode", "smart", "--smart-threshold", str(size)) == ["raw"] * 7
    assert kinds("a", "--mode", "smart", "--smart-threshold", str(size - 1)) == ["jpg"] * 7
    assert kinds("a", "--mode", "proportion", "--compress-probability", "0") == ["raw"] * 7
    assert kinds("a", "--mode", "proportion", "--compress-probability", "1") == ["jpg"] * 7
    assert set(kinds("a", "--mode", "proportion")) == {"raw", "jpg"}
    assert kinds("b", "--mode", "proportion", "--workers", "1") == kinds("a", "--mode", "proportion")
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    (batch,) = open_loader("ffcv", tmp_path / "a.beton", WholePlan(size=4), LoaderOptions(threads=1), batch_size=7)
    assert batch.index.tolist() == list(range(7))


def test_an_image_larger_than_a_page_and_a_file_of_several_pages(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    sizes = [(1200, 900), (2000, 1500), (1000, 1000), (1500, 1500), (10, 10)]  # 3.2, 9, 3, 6.8 MB and 300 bytes
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number, 50, 100)).save(root / f"{number}.bmp")
    assert pack(root, tmp_path / "x.beton", "--mode", "raw") == 0
    loader = open_loader("ffcv", tmp_path / "x.beton", WholePlan(size=2), LoaderOptions(threads=2), batch_size=5)
    (batch,) = loader
    assert batch.views[:, 0, 0, 0].tolist() == [[number, 50, 100] for number in range(5)]
    assert batch.label.tolist() == [-1] * 5
    from saga_fast.loaders.ffcv.beton import Beton

    source = Beton(tmp_path / "x.beton")
    page = 2**24  # the smallest that holds the largest image
    assert (source.begins // page == (source.begins + source.lengths - 1) // page).all()


READ_WITH_FFCV = """
import sys
import numpy as np
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor

pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder()], "index": [IntDecoder()]}
loader = Loader(sys.argv[1], batch_size=4, num_workers=1, os_cache=False, order=OrderOption.SEQUENTIAL,
                drop_last=False, pipelines=pipelines)
parts = [[np.array(column) for column in batch] for batch in loader]
np.savez(sys.argv[2], **{name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(pipelines)})
"""


def test_ffcvs_own_loader_reads_the_file(folder: Path, tmp_path: Path) -> None:
    # By its process cache, which takes pages for granted. Apart from this process, whose numbers of threads it changes.
    assert pack(folder, tmp_path / "x.beton", "--mode", "raw") == 0
    command = [sys.executable, "-c", READ_WITH_FFCV, str(tmp_path / "x.beton"), str(tmp_path / "read.npz")]
    subprocess.run(command, check=True)
    read = np.load(tmp_path / "read.npz")
    np.testing.assert_array_equal(read["image"], pixels(folder))
    assert read["label"].ravel().tolist() == [0] * 3 + [1] * 4
    assert read["index"].ravel().tolist() == list(range(7))


def add_bad(root: Path, count: int) -> Path:
    """25 good images in class a and bad ones among and behind them."""
    (root / "a").mkdir(parents=True)
    for number in range(25):
        Image.new("RGB", (9, 7), (number, 0, 0)).save(root / "a" / f"{number:02}.png")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    contents = [b"", b"<html>404</html>", buffer.getvalue()[:300]]
    for number in range(count):
        (root / "a" / f"{number * 9:02}x.jpg").write_bytes(contents[number])
    return root


def test_bad_images_are_listed_and_shift_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = add_bad(tmp_path / "images", 3)
    assert pack(root, tmp_path / "x.beton", "--max-bad-fraction", "0.2", "--mode", "raw") == 0
    said = capsys.readouterr()
    assert "25 of 28 images" in said.out
    assert "3 images cannot be decoded, see" in said.out
    source, original = open_source("ffcv", tmp_path / "x.beton"), ImageFolder(root)
    assert source.paths == original.paths
    assert source.fingerprint == original.fingerprint
    rows = [line.split("\t") for line in (tmp_path / "x.beton.bad.txt").read_text().splitlines()]
    bad = [index for index, path in enumerate(original.paths) if "x.jpg" in path]
    assert [(int(index), path) for index, path, _ in rows] == [(index, original.paths[index]) for index in bad]
    assert all(reason for _, _, reason in rows)
    from saga_fast.loaders import BadImages

    listed = BadImages(source, max_fraction=0.2)
    (batch,) = open_loader("ffcv", source, WholePlan(size=1), LoaderOptions(threads=1), batch_size=99, bad=listed)
    assert batch.index.tolist() == [index for index in range(28) if index not in bad]
    assert batch.views[:, 0, 0, 0, 0].tolist() == list(range(25))
    # Packed again from mended files: the old list of bad ones goes.
    for index in bad:
        Image.new("RGB", (9, 7)).save(root / original.paths[index])
    assert pack(root, tmp_path / "x.beton", "--force") == 0
    assert not (tmp_path / "x.beton.bad.txt").exists()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_too_many_bad_images_are_an_error_that_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = add_bad(tmp_path / "images", 1)
    assert pack(root, tmp_path / "x.beton") == 2
    assert "1 of 26 images" in capsys.readouterr().err
    assert names(tmp_path) == ["images"]
    for path in (root / "a").glob("*.png"):
        path.write_bytes(b"noise")
    assert pack(root, tmp_path / "x.beton", "--max-bad-fraction", "1") == 2
    assert "none of the 26 images" in capsys.readouterr().err
    assert names(tmp_path) == ["images"]


MISTAKES: list[tuple[list[str], str]] = [
    (["{tmp}/missing", "{tmp}/x.beton"], "missing"),
    (["{images}", "{tmp}/x.bin"], "OUT.beton"),
    (["{images}", "{tmp}"], "is a folder"),
    (["{images}", "{tmp}/x.beton", "--max-resolution", "0"], "max_resolution"),
    (["{images}", "{tmp}/x.beton", "--quality", "101"], "quality"),
    (["{images}", "{tmp}/x.beton", "--compress-probability", "1.5"], "compress_probability"),
    (["{images}", "{tmp}/x.beton", "--mode", "smart"], "smart_threshold"),
    (["{images}", "{tmp}/x.beton", "--smart-threshold", "5"], "smart_threshold"),
    (["{images}", "{tmp}/x.beton", "--workers", "0"], "workers"),
    (["{images}", "{tmp}/x.beton", "--chunk-size", "0"], "chunk_size"),
    (["{images}", "{tmp}/x.beton", "--max-bad-fraction", "2"], "--max-bad-fraction"),
    (["{images}", "{tmp}/x.beton", "--classes", "{tmp}/missing.txt"], "missing.txt"),
    (["{images}", "/dev/null/x.beton"], "/dev/null"),
]


@pytest.mark.parametrize(("arguments", "named"), MISTAKES, ids=[" ".join(mistake[0][1:]) for mistake in MISTAKES])
def test_a_users_mistake_is_one_line(
    folder: Path, tmp_path: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", *(part.format(images=folder, tmp=tmp_path) for part in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("saga-fast: error:")
    assert named in line
    assert names(tmp_path) == []


def test_an_existing_file_is_replaced_only_by_force(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(folder, tmp_path / "x.beton") == 0
    before = (tmp_path / "x.beton").read_bytes()
    assert pack(folder, tmp_path / "x.beton", "--mode", "raw") == 2
    assert "--force" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "x.beton").read_bytes() == before
    assert pack(folder, tmp_path / "x.beton", "--mode", "raw", "--force") == 0
    assert {kind for kind, _, _ in stored(tmp_path / "x.beton")} == {"raw"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_pack_that_is_stopped_leaves_the_old_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    from saga_fast.loaders.ffcv.writer import BetonWriter

    assert pack(folder, tmp_path / "x.beton") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    add: Any = BetonWriter.add

    def fail(self: BetonWriter, *, index: int, **arguments: Any) -> None:
        if index == 4:
            raise error
        add(self, index=index, **arguments)

    monkeypatch.setattr(BetonWriter, "add", fail)
    assert pack(folder, tmp_path / "x.beton", "--force") in (2, 130)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_class_lists_and_names_that_are_not_utf8(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(tmp_path / "images", classes=("ant", "bee", "cat"), per_class=2)
    os.rename(root / "bee" / "001.jpg", os.fsencode(root / "bee") + b"/\xff.jpg")  # noqa: PTH104 - bytes
    (tmp_path / "classes.txt").write_text("cat\nbee\n")
    assert pack(root, tmp_path / "x.beton", "--classes", str(tmp_path / "classes.txt")) == 0
    source = open_source("ffcv", tmp_path / "x.beton", classes=tmp_path / "classes.txt")
    original = ImageFolder(root, classes=tmp_path / "classes.txt")
    assert source.paths == original.paths
    assert source.classes == ("bee", "cat")
    assert source.fingerprint == original.fingerprint
    assert "4 of 4 images" in capsys.readouterr().out


def test_build_att_gives_the_table_of_the_folder(finished_run: Path, images: Path, tmp_path: Path) -> None:
    assert pack(images / "train", tmp_path / "x.beton") == 0
    tables = []
    for engine, data in (("folder", images / "train"), ("ffcv", tmp_path / "x.beton")):
        out = tmp_path / f"{engine}.safetensors"
        arguments = ["--ckpt", str(finished_run / "last.pt"), "--data", str(data), "--out", str(out), "--device", "cpu"]
        assert main(["build-att", "--engine", engine, *arguments]) == 0
        tables.append(BoxTable.open(out))
    assert tables[0].metadata["dataset"] == tables[1].metadata["dataset"]
    for column in ("boxes", "found", "pseudo_label", "score"):
        np.testing.assert_array_equal(getattr(tables[0], column), getattr(tables[1], column))
