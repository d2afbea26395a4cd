"""Box quality against numbers worked out by hand, from every form of true boxes; contact sheets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_fast.cli import main
from saga_fast.errors import SagaError
from saga_fast.evaluate.boxes import best_iou, box_quality, chance_agreement, drift, unhelpful
from saga_fast.loaders import BoxTable, ImageFolder
from saga_fast.loaders.true_boxes import read_true_boxes

IMAGES = ["a/0.jpg", "a/1.jpg", "b/2.jpg"]


def make_table(boxes: list[list[float]], **metadata: str) -> BoxTable:
    whole = BoxTable.whole(len(boxes))
    score = np.arange(len(boxes), dtype=np.float32)
    return BoxTable(np.array(boxes, np.float32), ~whole.found, whole.pseudo_label, score, metadata)


TABLE = make_table([[0, 0, 0.5, 1], [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]])
TRUTHS = {
    "a/0.jpg": np.array([[0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0.5]], np.float32),  # the better one: 0.25 / 0.5
    "b/2.jpg": np.array([[0.25, 0.5, 0.5, 0.5]], np.float32),  # 0.125 / 0.375
}


def test_quality() -> None:
    assert box_quality(TABLE, IMAGES, TRUTHS) == pytest.approx(
        {
            "images": 2,
            "iou": (1 / 2 + 1 / 3) / 2,
            "corloc": 0.5,
            "iou_whole": 0.25,
            "corloc_whole": 0.0,
            "area": (0.5 + 1 + 0.25) / 3,
            "found_fraction": 1.0,
            "true_area": 0.25,
        }
    )


def test_best_of_several() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.0, 0.5, (20, 4)).astype(np.float32)
    truths = [rng.uniform(0.1, 0.5, (n, 4)).astype(np.float32) for n in rng.integers(1, 4, 20)]
    single = [
        max(best_iou(box[None], [truth[None]])[0] for truth in many) for box, many in zip(boxes, truths, strict=True)
    ]
    np.testing.assert_allclose(best_iou(boxes, truths), single)


def test_drift() -> None:
    moved = make_table([[0, 0, 0.5, 1], [0, 0, 0.5, 1], [0, 0, 0.5, 0.5]])
    assert drift(TABLE, TABLE) == pytest.approx(0.0, abs=1e-6)
    assert drift(TABLE, moved) == pytest.approx(1 - (1 + 0.5 + 0) / 3)
    with pytest.raises(SagaError, match="3 rows"):
        drift(TABLE, make_table([[0, 0, 1, 1]]))


XML = """<annotation><size><width>200</width><height>100</height></size>
<object><name>n0</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>100</xmax><ymax>50</ymax></bndbox></object>
<object><name>n0</name><bndbox><xmin>100</xmin><ymin>0</ymin><xmax>200</xmax><ymax>50</ymax></bndbox></object>
</annotation>"""


def test_forms_of_true_boxes(tmp_path: Path) -> None:
    table = tmp_path / "b.csv"
    table.write_text("path,x_min,y_min,w,h\na/0.jpg,0,0,0.5,0.5\na/0.jpg,0.5,0,0.5,0.5\nother.jpg,0,0,1,1\n")
    (tmp_path / "b.json").write_text(json.dumps({"a/0.jpg": [[0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0.5]]}))
    (tmp_path / "xml" / "a").mkdir(parents=True)
    (tmp_path / "xml" / "a" / "0.xml").write_text(XML)
    for path in (table, tmp_path / "b.json", tmp_path / "xml"):
        found = read_true_boxes(path, IMAGES)
        assert list(found) == ["a/0.jpg"]
        np.testing.assert_allclose(found["a/0.jpg"], TRUTHS["a/0.jpg"])
    (tmp_path / "one.json").write_text(json.dumps({"a/0.jpg": [0, 0, 0.5, 0.5]}))
    assert read_true_boxes(tmp_path / "one.json", IMAGES)["a/0.jpg"].shape == (1, 4)


def test_an_image_with_an_empty_list_has_no_true_box(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps({"a/0.jpg": [[0, 0, 0.5, 0.5]], "a/1.jpg": [], "b/2.jpg": []}))
    found = read_true_boxes(tmp_path / "b.json", IMAGES)
    assert list(found) == ["a/0.jpg"]
    assert box_quality(TABLE, IMAGES, found)["images"] == 1


def test_xml_of_the_same_name_in_two_folders(tmp_path: Path) -> None:
    """The file at an image's path is its own; where neither is, nobody can tell."""
    images = ["a/0.jpg", "b/0.jpg"]
    for folder, side in (("a", 50), ("b", 100)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.xml").write_text(XML.replace("<ymax>50", f"<ymax>{side}"))
    found = read_true_boxes(tmp_path, images)
    assert [found[image][0, 3] for image in images] == [0.5, 1.0]
    with pytest.raises(SagaError, match=r"a/0\.xml and .*b/0\.xml both have the name of c/0\.jpg"):
        read_true_boxes(tmp_path, ["c/0.jpg"])


def test_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("path,x_min,y_min,w,h\na/0.jpg,0,0,1,1\n", encoding="utf-8-sig")  # a spreadsheet's
    assert list(read_true_boxes(tmp_path / "b.csv", IMAGES)) == ["a/0.jpg"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("b.json", "[1]", "must map paths"),
        ("b.json", '{"a/0.jpg": [30, 40, 120, 90]}', r"box \[30.0, 40.0, 120.0, 90.0\] of 'a/0.jpg' is"),
        ("b.json", '{"a/0.jpg": [0, 0, 1, NaN]}', "is not .x, y"),
        ("b.json", '{"a/0.jpg": [0.2, 0.2, 0, 0.3]}', "is not .x, y"),
        ("b.json", "{", "must map paths"),
        ("b.json", '{"c.jpg": [0, 0, 1, 1]}', "none of the 3 images"),
        ("b.csv", "path,x,y\n", "needs the columns path, x_min"),
        ("b.csv", "path,x_min,y_min,w,h\na/0.jpg,0,0,one,1\n", "line 2"),
        ("xml/0.xml", "<annotation>", "0.xml is not an annotation"),
        ("xml/0.xml", XML.replace("<width>200</width>", ""), "0.xml is not an annotation"),
    ],
)
def test_bad_true_boxes(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(SagaError, match=words):
        read_true_boxes(path.parent if path.suffix == ".xml" else path, IMAGES)
    with pytest.raises(SagaError, match="no such file"):
        read_true_boxes(tmp_path / "none.json", IMAGES)


@pytest.fixture(scope="module")
def boxed(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ with boxes.json, and two tables of them."""
    root = tmp_path_factory.mktemp("boxed")
    source = ImageFolder(make_images(root / "images"))
    (root / "images" / "boxes.json").write_text(json.dumps({path: [0.0, 0.0, 0.5, 0.5] for path in source.paths}))
    for epoch, box in ((1, [0.0, 0.0, 1.0, 0.5]), (2, [0.0, 0.0, 0.5, 0.5])):
        metadata = {"dataset": source.fingerprint, "epoch": str(epoch)}
        make_table([box] * (len(source) - 1) + [[0, 0, 1, 1]], **metadata).save(root / f"{epoch}.safetensors")
    return root


def test_command(boxed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = [str(boxed / f"{epoch}.safetensors") for epoch in (1, 2)]
    file = tmp_path / "boxes.json"
    assert main(["eval", "boxes", "--table", *tables, "--data", str(boxed / "images"), "--json", str(file)]) == 0
    first, second = json.loads(file.read_text())["rows"]
    assert (first["epoch"], first["drift"], second["epoch"]) == (1, None, 2)
    assert (first["iou"], second["iou"]) == pytest.approx(((15 * 0.5 + 0.25) / 16, (15 + 0.25) / 16))
    assert second["drift"] == pytest.approx(15 * 0.5 / 16)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1: IoU 0.484 (whole image 0.250), CorLoc 93.8 % (0.0 %)")
    assert lines[-1] == "over 16 of 16 images with a true box"


@pytest.mark.parametrize("sort", ["index", "area", "score", "drift"])
def test_sheet(boxed: Path, tmp_path: Path, sort: str, capsys: pytest.CaptureFixture[str]) -> None:
    table, other = (str(boxed / f"{epoch}.safetensors") for epoch in (2, 1))
    common: list[Any] = ["show-att", table, "--data", str(boxed / "images"), "--sort", sort, "--other", other]
    out = tmp_path / "sheet.png"
    assert main([*common, "--out", str(out), "--count", "6", "--columns", "4"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (4 * 132 + 4, 2 * 132 + 4)
        assert (255, 225, 77) in {colour for _, colour in picture.convert("RGB").getcolors(1 << 18) or ()}
    page = tmp_path / "sheet.html"
    assert main([*common, "--out", str(page), "--count", "3", "--first"]) == 0
    html = page.read_text()
    assert html.count("<img ") == html.count("alt=") == 3
    assert "http" not in html
    first = {"index": "cat/000.jpg", "area": "cat/000.jpg", "score": "dog/007.jpg", "drift": "cat/000.jpg"}[sort]
    assert html.index(first) < html.index("<figcaption>")
    assert capsys.readouterr().out.splitlines()[-1] == f"{page}: 3 of 16 images by {sort}"


def test_sheet_refuses(boxed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["show-att", str(boxed / "1.safetensors"), "--data", str(boxed / "images"), "--out"]
    for arguments, words in (
        ([*common, str(tmp_path / "sheet.gif")], ".png or .html"),
        ([*common, str(tmp_path / "sheet.png"), "--sort", "drift"], "needs --other"),
        ([*common, str(tmp_path / "sheet.png"), "--count", "0"], "--count must be positive"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_boxes_that_will_not_help() -> None:
    """Boxes as large as the image; boxes that move as if they were another image's; and boxes that hold an object."""
    rng = np.random.default_rng(1)

    def placed(side: float) -> BoxTable:
        corners = rng.uniform(0.0, 0.95 - side, (400, 2))
        return make_table(np.concatenate([corners, np.full((400, 2), side)], 1).tolist(), dataset="")

    def reason(earlier: BoxTable | None, later: BoxTable) -> str | None:
        agreement = None if earlier is None else 1.0 - drift(earlier, later)
        return unhelpful(later.mean_area, agreement, chance_agreement(later))

    found, wide = placed(0.5), placed(0.9)
    assert reason(None, found) is None
    assert reason(found, found) is None
    moved = make_table((found.boxes + np.array([0.05, 0.02, 0.0, 0.0])).tolist())
    assert reason(found, moved) is None
    assert "do not follow what is in an image" in (reason(found, placed(0.5)) or "")
    assert "like those of whole images" in (reason(None, wide) or "")
    assert "like those of whole images" in (reason(wide, wide) or "")
    same = make_table([[0.2, 0.2, 0.3, 0.3]] * 9, dataset="")
    assert reason(same, same) == "they are the same in all images"
    one = make_table([[0.2, 0.2, 0.3, 0.3]], dataset="")
    assert reason(one, one) is None


def test_chance_agreement_is_that_of_shuffled_boxes() -> None:
    rng = np.random.default_rng(2)
    boxes = np.concatenate([rng.uniform(0.0, 0.6, (3000, 2)), np.full((3000, 2), 0.4)], 1)
    shuffled = make_table(boxes[rng.permutation(3000)].tolist())
    table = make_table(boxes.tolist())
    assert abs(chance_agreement(table) - (1.0 - drift(table, shuffled))) < 0.02
