"""Images that could not be packed, and images of a packed file that cannot be decoded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packed_images import OPTIONS, PLACES, N, joined, make_folder, open_beton

from saga_fast.cli import main
from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, Place
from saga_fast.loaders.engines import require_engine


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    require_engine("ffcv")


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[int]]:
    """A file of which two images could not be packed, and in which a third was overwritten since."""
    from saga_fast.loaders.ffcv.beton import Beton

    root = tmp_path / "images"
    make_folder(root, (".jpg",))
    for number, content in ((3, b""), (41, b"<html>404</html>")):
        (root / f"class {number % 3}" / f"{number:02}.jpg").write_bytes(content)
    path = tmp_path / "damaged.beton"
    assert main(["pack", str(root), str(path), "--max-bad-fraction", "0.1"]) == 0
    source = Beton(path)
    missing = sorted(source.bad)
    assert [source.paths[index][-6:-4] for index in missing] == ["03", "41"]
    later = 30
    row = source.row[later]
    with path.open("r+b") as file:
        file.seek(int(source.begins[row]))
        file.write(b"\0" * 20)
    return path, [*missing, later]


def test_images_that_were_not_packed_are_bad_from_the_start(damaged: tuple[Path, list[int]]) -> None:
    from saga_fast.loaders.ffcv.beton import Beton

    path, bad = damaged
    with pytest.raises(SagaError, match=r"1 of 60 images.*damaged\.beton.*03.jpg"):
        open_beton(path)  # one percent is the default
    beton = Beton(path)
    listed = BadImages(beton, max_fraction=0.1)
    loader = open_beton(beton, bad=listed, batch_size=10)
    assert listed.indices.tolist() == sorted(bad[:2])
    assert len(loader) == 6
    seen = joined(loader)[1].tolist()  # in sequence: the third is found on the way and left out
    assert seen == [index for index in range(N) if index not in bad]
    assert listed.indices.tolist() == sorted(bad)
    listed.write(path.parent / "bad_images.txt")
    reasons = [line.split("\t")[2] for line in (path.parent / "bad_images.txt").read_text().splitlines()]
    assert sum("not an image" in reason for reason in reasons) == 2
    assert sum("damaged JPEG in damaged.beton" in reason for reason in reasons) == 1


@pytest.mark.parametrize("crop", PLACES)
def test_a_damaged_images_place_is_taken_in_training(damaged: tuple[Path, list[int]], crop: Place) -> None:
    from saga_fast.loaders.ffcv.beton import Beton

    path, bad = damaged
    beton = Beton(path)
    options = replace(OPTIONS, batch_size=58, shuffle=True, crop=crop)
    loader = open_beton(beton, options=options, bad=BadImages(beton, max_fraction=0.1))
    views, index, _ = joined(loader)
    assert len(index) == 58
    assert not set(bad) & set(index.tolist())
    doubled = next(i for i in range(N) if index.tolist().count(i) == 2)  # 58 places, 57 good images
    first, second = np.flatnonzero(index == doubled)
    np.testing.assert_array_equal(views[first], views[second])
    assert len(loader) == 1
    assert sorted(joined(loader)[1].tolist()) == [i for i in range(N) if i not in bad]
