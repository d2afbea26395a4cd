"""The demo data: its layout, its true boxes against the pixels, and its manners towards other people's folders."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageChops

from saga_fast.demo import data as demo_data
from saga_fast.demo.data import CLASSES, demo_boxes, make_demo_data
from saga_fast.errors import SagaError
from saga_fast.loaders.config import DemoDataConfig

Kind = Literal["photos", "digits"]
KINDS: tuple[Kind, ...] = ("photos", "digits")


def config_of(kind: Kind, **changes: Any) -> DemoDataConfig:
    return DemoDataConfig(**{"kind": kind, "num_train": 25, "num_val": 12, "side": 40, **changes})


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def jpegs(root: Path) -> dict[str, bytes]:
    return {path: data for path, data in content(root).items() if path.endswith(".jpg")}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoDataConfig]:
    config = config_of(request.param)
    root = tmp_path_factory.mktemp("made") / "new" / "demo"
    make_demo_data(root, config)
    return root, config


def test_layout_is_image_folder(made: tuple[Path, DemoDataConfig]) -> None:
    root, config = made
    assert sorted(path.name for path in root.iterdir()) == ["demo_data.json", "train", "val"]
    assert [path.name for path in root.parent.iterdir()] == ["demo"]  # the scratch folder is gone
    for split, number in (("train", config.num_train), ("val", config.num_val)):
        # The order of CLASSES is that of the labels, which ImageFolder takes from the sorted names.
        assert sorted(path.name for path in (root / split).iterdir() if path.is_dir()) == list(CLASSES[config.kind])
        files = jpegs(root / split)
        assert len(files) == number
        assert list(json.loads((root / split / "boxes.json").read_text())) == sorted(
            files, key=lambda path: (path.split("/")[1], path)
        )
        for path in files:
            with Image.open(root / split / path) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (config.side, config.side))


def test_classes_are_balanced(made: tuple[Path, DemoDataConfig]) -> None:
    root, config = made
    for split in ("train", "val"):
        counts = Counter(path.split("/")[0] for path in jpegs(root / split))
        assert len(counts) == len(CLASSES[config.kind])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_image_is_degenerate_or_repeated(made: tuple[Path, DemoDataConfig]) -> None:
    root, _ = made
    files = jpegs(root)
    assert len(set(files.values())) == len(files)
    for path in files:
        with Image.open(root / path) as image:
            assert np.asarray(image, dtype=np.float64).std() > 12, path


def test_boxes_are_the_pasted_rectangles(made: tuple[Path, DemoDataConfig]) -> None:
    root, config = made
    sources = demo_data._load_sources(config)
    paths = list(json.loads((root / "train" / "boxes.json").read_text()))
    boxes = demo_boxes(root / "train", paths)
    assert boxes.dtype == np.float32
    assert boxes.shape == (config.num_train, 4)
    low, high = config.object_side
    half_pixel = 0.5 / config.side + 1e-6
    longer = boxes[:, 2:].max(axis=1)
    assert ((longer >= low - half_pixel) & (longer <= high + half_pixel)).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all()
    for index, box in enumerate(boxes):
        background = demo_data._background(sources.textures, config.side, demo_data._rng(config, "train", index))
        image, _ = demo_data._render(sources, config, "train", index)
        changed = np.asarray(ImageChops.difference(image, background)).max(axis=2) > 0
        left, top, width, height = np.rint(box * config.side).astype(int)
        inside = np.zeros_like(changed)
        inside[top : top + height, left : left + width] = True
        assert not changed[~inside].any()
        # A pixel of a photograph can equal the texture by chance, but not a row or column of them. Ink's outermost row
        # may be fainter than one level.
        slack = 0 if config.kind == "photos" else 1
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert abs(rows[0] - top) <= slack and abs(rows[-1] - (top + height - 1)) <= slack
        assert abs(columns[0] - left) <= slack and abs(columns[-1] - (left + width - 1)) <= slack
        # What is on disk is this image, to JPEG's rounding.
        with Image.open(root / "train" / paths[index]) as stored:
            error = np.abs(np.asarray(stored, dtype=np.float64) - np.asarray(image, dtype=np.float64))
        assert error.mean() < 15


def test_same_seed_same_files_and_a_larger_set_begins_with_the_smaller(
    made: tuple[Path, DemoDataConfig], tmp_path: Path
) -> None:
    root, config = made
    make_demo_data(tmp_path / "again", config)
    assert content(tmp_path / "again") == content(root)
    make_demo_data(tmp_path / "larger", config_of(config.kind, num_train=40))
    larger = jpegs(tmp_path / "larger")
    assert len(larger) == config.num_val + 40
    assert jpegs(root).items() <= larger.items()
    make_demo_data(tmp_path / "other", config_of(config.kind, seed=1))
    assert not set(jpegs(root).values()) & set(jpegs(tmp_path / "other").values())


def test_train_and_val_share_no_digit() -> None:
    objects = demo_data._load_digits()
    for train, val in zip(objects["train"], objects["val"], strict=True):
        assert len(val) > 40
        assert len(train) > 2 * len(val)
    assert sum(len(same) for split in objects.values() for same in split) == 1797
    assert np.asarray(objects["train"][0][0]).shape == (8, 8)
    assert max(np.asarray(digit).max() for same in objects["train"] for digit in same) == 255


def test_turned_patches_come_from_inside_the_photograph() -> None:
    # Outside a photograph transform() yields 0, which a white one with the tint's least high level would betray.
    white = Image.new("RGB", (200, 150), (255, 255, 255))
    for seed in range(50):
        patch = demo_data._photo_patch(white, 30, np.random.default_rng(seed))
        assert patch.size == (30, 30)
        assert all(low == high >= 150 for low, high in patch.getextrema())  # type: ignore[misc]


def test_second_call_returns_at_once(made: tuple[Path, DemoDataConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    root, config = made
    before = content(root)
    monkeypatch.setattr(demo_data, "_load_sources", lambda _: pytest.fail("made it again"))
    make_demo_data(root, config)
    assert content(root) == before


def test_other_config_is_refused(made: tuple[Path, DemoDataConfig]) -> None:
    root, config = made
    before = content(root)
    with pytest.raises(SagaError, match=r"demo holds demo data of another config: delete it or name another folder"):
        make_demo_data(root, config_of(config.kind, quality=80))
    assert content(root) == before


@pytest.mark.parametrize("name", ["photo.jpg", "demo_data.json"])
def test_foreign_folder_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / name).write_bytes(b"\xff precious")
    with pytest.raises(SagaError, match=r"mine .*name another folder"):
        make_demo_data(mine, config_of("photos"))
    assert content(tmp_path) == {f"mine/{name}": b"\xff precious"}
    with pytest.raises(SagaError, match="is not demo data"):
        make_demo_data(mine / name, config_of("photos"))


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    make_demo_data(tmp_path, config_of("digits", num_train=10, num_val=10))
    assert len(jpegs(tmp_path)) == 20


def test_two_processes_may_make_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("digits", num_train=10, num_val=10)
    load = demo_data._load_sources

    def overtaken(config: DemoDataConfig) -> demo_data._Sources:
        monkeypatch.undo()
        make_demo_data(tmp_path / "demo", config)
        return load(config)

    monkeypatch.setattr(demo_data, "_load_sources", overtaken)
    make_demo_data(tmp_path / "demo", config)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert len(jpegs(tmp_path)) == 20


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(demo_data, "_render", fail)
    with pytest.raises(OSError, match="No space left"):
        make_demo_data(tmp_path / "demo", config_of("photos"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["skimage", "sklearn"])
def test_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what find_spec reads as "not installed"
    with pytest.raises(SagaError, match=rf"{package}/.* pip install 'saga-fast\[demo\]'"):
        make_demo_data(tmp_path / "demo", config_of("digits"))
    assert list(tmp_path.iterdir()) == []


def test_demo_boxes_keeps_order_and_names_what_is_missing(made: tuple[Path, DemoDataConfig]) -> None:
    root, _ = made
    stored = json.loads((root / "val" / "boxes.json").read_text())
    paths = sorted(stored, reverse=True)
    expected = np.array([stored[path] for path in paths], dtype=np.float32)
    np.testing.assert_array_equal(demo_boxes(root / "val", paths), expected)
    assert demo_boxes(root / "val", []).shape == (0, 4)
    for wrong in (["cat/9.jpg"], [paths[0], "cat/9.jpg"]):
        with pytest.raises(SagaError, match=rf"0 boxes for 'cat/9\.jpg', not one \(1 of {len(wrong)} images\)"):
            demo_boxes(root / "val", wrong)
    with pytest.raises(SagaError, match="no such file or folder of true boxes"):
        demo_boxes(root, paths)


def test_demo_boxes_refuses_several_boxes_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"a.jpg": [[0, 0, 1, 1], [0, 0, 0.5, 0.5]]}))
    with pytest.raises(SagaError, match=r"2 boxes for 'a\.jpg', not one"):
        demo_boxes(tmp_path, ["a.jpg"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cats"}, "'cats'"),
        ({"num_train": 11}, "num_train must be 12, .*, got 11"),
        ({"num_val": 0}, "num_val .*, got 0"),
        ({"kind": "digits", "num_val": 9}, "num_val must be 10, one image per class"),
        ({"object_side": (0.0, 0.5)}, "object_side"),
        ({"object_side": (0.6, 0.5)}, "object_side"),
        ({"object_side": (0.5, 1.1)}, "object_side"),
        ({"side": 20}, "at least 8 pixels, got 20"),
        ({"quality": 101}, "quality must be 1 to 100, got 101"),
        ({"kind": "digits", "distractor": True}, "distractor is for photos"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoDataConfig(**changes)


@pytest.mark.parametrize("kind", KINDS)
def test_object_may_fill_the_image(kind: Kind) -> None:
    config = config_of(kind, object_side=(1.0, 1.0))
    image, box = demo_data._render(demo_data._load_sources(config), config, "val", 3)
    assert image.size == (40, 40)
    assert max(box[2:]) == 40


def test_distractor_stands_beside_the_object() -> None:
    """The labelled object, its box and the texture are those of the plain image; a second object changes the rest."""
    plain = config_of("photos", side=72, num_train=48)
    config = config_of("photos", side=72, num_train=48, distractor=True)
    sources = demo_data._load_sources(config)
    areas = []
    for index in range(config.num_train):
        without, box = demo_data._render(sources, plain, "train", index)
        image, same = demo_data._render(sources, config, "train", index)
        assert same == box
        changed = np.asarray(ImageChops.difference(image, without)).max(axis=2) > 0
        left, top, width, height = box
        assert not changed[top : top + height, left : left + width].any()
        areas.append(float(changed.mean()))
    low, high = config.object_side
    assert max(areas) <= (0.6 * high + 0.5 / config.side) ** 2
    assert np.mean(np.array(areas) > 0.5 * (0.6 * low) ** 2) > 0.9  # seldom covered by the object


def test_images_without_distractor_keep_their_stamp(tmp_path: Path) -> None:
    """Folders that were made before there were any are recognised."""
    make_demo_data(tmp_path / "demo", config_of("photos"))
    assert "distractor" not in (tmp_path / "demo" / "demo_data.json").read_text()
    with pytest.raises(SagaError, match="another config"):
        make_demo_data(tmp_path / "demo", config_of("photos", distractor=True))
