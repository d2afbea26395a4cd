"""``saga-fast pack --mode yuv420``: what planes keep of an image, and who reads them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_pack import READ_WITH_FFCV, folder, pack, pixels, stored

from saga_fast.errors import SagaError
from saga_fast.loaders import open_source
from saga_fast.loaders.decode import decode_image
from saga_fast.loaders.engines import require_engine

__all__ = ["folder"]  # test_pack's images


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    require_engine("ffcv")


def test_planes_take_half_of_raw_and_lose_nothing_of_most_jpegs(folder: Path, tmp_path: Path) -> None:
    for mode in ("raw", "yuv420"):
        assert pack(folder, tmp_path / f"{mode}.beton", "--mode", mode) == 0
    source, images = open_source("ffcv", tmp_path / "yuv420.beton"), stored(tmp_path / "yuv420.beton")
    for index, ((kind, data, (height, width)), expected) in enumerate(zip(images, pixels(folder), strict=True)):
        assert (kind, height, width, len(data)) == ("yuv420", 40, 61, 40 * 61 + 2 * 20 * 31)
        read = decode_image(source.read(index)).astype(int)
        if source.paths[index] in ("a/0.jpg", "a/2.jpg", "b/1.png", "b/2.jpg"):  # 4:2:0 or grey
            np.testing.assert_array_equal(read, expected)
        else:
            assert np.abs(read - expected).mean() < 3
    ratio = (tmp_path / "raw.beton").stat().st_size / (tmp_path / "yuv420.beton").stat().st_size
    assert 1.7 < ratio < 2.0  # the header and the records are the same


def test_ffcvs_own_loader_refuses_planes(folder: Path, tmp_path: Path) -> None:
    assert pack(folder, tmp_path / "x.beton", "--mode", "yuv420") == 0
    command = [sys.executable, "-c", READ_WITH_FFCV, str(tmp_path / "x.beton"), str(tmp_path / "read.npz")]
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "custom field image" in refused.stderr
    assert not (tmp_path / "read.npz").exists()


def test_planes_of_a_shrunk_image(folder: Path, tmp_path: Path) -> None:
    for mode in ("raw", "yuv420"):
        assert pack(folder, tmp_path / f"{mode}.beton", "--mode", mode, "--max-resolution", "30") == 0
    pixels_of = {mode: open_source("ffcv", tmp_path / f"{mode}.beton") for mode in ("raw", "yuv420")}
    for index in range(7):
        raw, planes = (decode_image(source.read(index)).astype(int) for source in pixels_of.values())
        assert raw.shape == planes.shape == (19, 30, 3)
        assert np.abs(raw - planes).mean() < 6


KILLED = """
import os, signal, sys
from pathlib import Path
from saga_fast.cli import main
from saga_fast.loaders.ffcv import pack, writer

def killing(function, calls):
    left = [calls]
    def then(*arguments, **options):
        result = function(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return then

moment, arguments = sys.argv[1], sys.argv[2:]
if moment == "an image": writer.BetonWriter.add = killing(writer.BetonWriter.add, 3)
if moment == "the records": writer.BetonWriter.finish = killing(writer.BetonWriter.finish, 1)
if moment == "the list": pack.write_sidecar = killing(pack.write_sidecar, 1)
if moment == "the first of two files": Path.replace = killing(Path.replace, 1)
main(["pack", *arguments])
"""


@pytest.mark.parametrize("moment", ["an image", "the records", "the list", "the first of two files"])
def test_a_kill_over_an_older_file_leaves_no_half_file(folder: Path, tmp_path: Path, moment: str) -> None:
    """As kill -9 after that was written."""
    out, other = tmp_path / "x.beton", tmp_path / "other.beton"
    assert pack(folder, out, "--mode", "raw") == 0
    before = out.read_bytes()
    arguments = [str(folder), str(out), "--force", "--mode", "yuv420"]
    command = [sys.executable, "-c", KILLED, moment, *arguments]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    assert out.read_bytes() == before
    if moment == "the first of two files":  # the new list is there already, and the old file is not taken for its own
        with pytest.raises(SagaError, match="pack again"):
            open_source("ffcv", out)
    else:
        assert len(open_source("ffcv", out)) == 7
    for path in (out, other):
        assert pack(folder, path, "--mode", "yuv420", "--force") == 0
    assert out.read_bytes() == other.read_bytes()
    names = {f"{name}.beton{end}" for name in ("x", "other") for end in ("", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == names  # the leftovers are gone


def test_a_kill_without_an_older_file_leaves_none(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.beton"
    command = [sys.executable, "-c", KILLED, "an image", str(folder), str(out), "--mode", "yuv420"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -9
    assert not out.exists()
    assert pack(folder, out, "--mode", "yuv420") == 0
