"""Files of the right kind and the wrong structure: refused at the door in one line that names file and fault."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_fast.errors import SagaError
from saga_fast.loaders import BadImages, LoaderOptions, WholePlan, open_loader, open_source
from saga_fast.loaders.engines import require_engine
from saga_fast.loaders.true_boxes import find_true_boxes
from saga_fast.report.runs import read_runs


def one_line(error: pytest.ExceptionInfo[SagaError], *words: object) -> None:
    assert "\n" not in str(error.value)
    for word in words:
        assert str(word) in str(error.value)


# ---------------------------------------------------------------- true boxes

IMAGE = "a/1.jpg"
WRONG_BOXES: dict[str, str | bytes] = {
    "a list.json": "[1, 2]",
    "a number.json": "7",
    "null.json": "null",
    "cut.json": '{"a/1.jpg": [0.1, 0.1',
    "deep.json": "[" * 10**5,
    "text.json": '{"a/1.jpg": "0 0 1 1"}',
    "three numbers.json": '{"a/1.jpg": [0.1, 0.1, 0.5]}',
    "eight numbers.json": '{"a/1.jpg": [0.1, 0.1, 0.5, 0.5, 0.1, 0.1, 0.5, 0.5]}',
    "a column.json": '{"a/1.jpg": [[0.1], [0.1], [0.5], [0.5]]}',
    "three dimensions.json": '{"a/1.jpg": [[[0.1, 0.1, 0.5, 0.5]]]}',
    "ragged.json": '{"a/1.jpg": [[0.1, 0.1, 0.5, 0.5], [0.1]]}',
    "an object.json": '{"a/1.jpg": {"x": 1}}',
    "null inside.json": '{"a/1.jpg": [0.1, null, 0.5, 0.5]}',
    "NaN.json": '{"a/1.jpg": [0.1, NaN, 0.5, 0.5]}',
    "infinity.json": '{"a/1.jpg": [0.1, 0.1, Infinity, 0.5]}',
    "huge.json": '{"a/1.jpg": [0.1, 0.1, 1%s, 0.5]}' % ("0" * 400),
    "outside.json": '{"a/1.jpg": [0.5, 0.5, 0.9, 0.9]}',
    "latin-1.json": b'{"a/\xe9.jpg": [0, 0, 1, 1]}',
    "no columns.csv": "path,x\na/1.jpg,1\n",
    "short.csv": "path,x_min,y_min,w,h\na/1.jpg,0.1\n",
    "words.csv": "path,x_min,y_min,w,h\na/1.jpg,a,b,c,d\n",
    "NaN.csv": "path,x_min,y_min,w,h\na/1.jpg,nan,0,1,1\n",
    "long.csv": "path,x_min,y_min,w,h\n" + "a" * 200_000 + ",0,0,1,1\n",
    "latin-1.csv": b"path,x_min,y_min,w,h\n\xe9.jpg,0,0,1,1\n",
}


@pytest.mark.parametrize("name", WRONG_BOXES)
def test_true_boxes_of_another_structure(tmp_path: Path, name: str) -> None:
    content = WRONG_BOXES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SagaError) as error:
        find_true_boxes(tmp_path / name, [IMAGE])
    one_line(error, tmp_path / name)


BOX = "<object><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>"
WRONG_XML = {
    "no XML": "hello",
    "no size": f"<a>{BOX}</a>",
    "a size of zero": f"<a><size><width>0</width><height>9</height></size>{BOX}</a>",
    "a negative size": f"<a><size><width>-9</width><height>9</height></size>{BOX}</a>",
    "an encoding": f'<?xml version="1.0" encoding="nonsense"?><a><size/>{BOX}</a>',
    "a word": f"<a><size><width>w</width><height>9</height></size>{BOX}</a>",
    "NaN": f"<a><size><width>9</width><height>9</height></size>{BOX.replace('5', 'nan')}</a>",
    "laughs": '<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx">'
    + "".join(f'<!ENTITY c{n} "{f"&c{n - 1};" * 10 if n else "&b;" * 10}">' for n in range(9))
    + "]><a>&c8;</a>",
}


@pytest.mark.parametrize("name", WRONG_XML)
def test_annotations_of_another_structure(tmp_path: Path, name: str) -> None:
    (tmp_path / "1.xml").write_text(WRONG_XML[name])
    with pytest.raises(SagaError, match=r"1\.xml is not an annotation") as error:
        find_true_boxes(tmp_path, [IMAGE])
    one_line(error)


def test_a_fifo_is_no_truth(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.xml")
    os.mkfifo(tmp_path / "boxes.json")
    with pytest.raises(OSError, match="not a regular file"):
        find_true_boxes(tmp_path, [IMAGE])
    with pytest.raises(SagaError, match="no such file"):
        find_true_boxes(tmp_path / "boxes.json", [IMAGE])


# ---------------------------------------------------------------- results of eval

KNN = {"protocol": "knn", "layer": "backbone", "epoch": 4, "k": 20, "temperature": 0.07, "top1": 0.5}
PAIRS = {"protocol": "pairs", "name": "last", "views": "plain", "epoch": 4, "mean": 0.5, "std": 0.1}
LINEAR = {"protocol": "linear", "probe": "moco", "epoch": 4, "probe_epochs": 9, "lr": 30.0, "top1": 0.5}
WRONG_ROWS = [
    {**KNN, "epoch": None},
    {**KNN, "epoch": "4"},
    {**KNN, "top1": math.nan},
    {**KNN, "top1": [0.5]},
    {**KNN, "top1": True},
    {**KNN, "k": None},
    {**KNN, "layer": 5},
    {**KNN, "top5": "x"},
    {**KNN, "top1": 10**400},
    {**LINEAR, "lr": "30"},
    {**LINEAR, "batch_size": "256"},
    {**LINEAR, "probe": None},
    {**PAIRS, "edges": [0.0, 1.0]},
    {**PAIRS, "edges": [0.0, 1.0], "counts": [1, 2]},
    {**PAIRS, "edges": "01", "counts": [1]},
    {**PAIRS, "edges": [0.0, math.inf], "counts": [1]},
    {"protocol": ["knn"]},
    {"protocol": None},
    ["knn"],
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "eval").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "epoch", "epoch": 1, "loss": 1.0}) + "\n")
    return folder


def test_good_results_are_read(run: Path) -> None:
    rows = [KNN, LINEAR, {**PAIRS, "edges": [0.0, 0.5, 1.0], "counts": [1, 2]}, {"protocol": "boxes", "epoch": None}]
    (run / "eval" / "x.json").write_text(json.dumps({"rows": rows}))
    assert list(read_runs([run])[0].evaluations) == rows


@pytest.mark.parametrize("row", WRONG_ROWS, ids=repr)
def test_results_of_another_structure(run: Path, row: Any) -> None:
    (run / "eval" / "x.json").write_text(json.dumps({"rows": [KNN, row]}))
    with pytest.raises(SagaError, match="no rows of `saga-fast eval`, or other ones") as error:
        read_runs([run])
    one_line(error, run / "eval" / "x.json")


@pytest.mark.parametrize("text", ["[" * 10**5, '{"rows": 5}', "7", '{"rows": [null]}', "\udcff", ""])
def test_results_that_are_none(run: Path, text: str) -> None:
    (run / "eval" / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SagaError) as error:
        read_runs([run])
    one_line(error, run / "eval" / "x.json")


def test_a_fifo_is_no_result(run: Path) -> None:
    os.mkfifo(run / "eval" / "x.json")
    with pytest.raises(SagaError, match="not a regular file") as error:
        read_runs([run])
    one_line(error, run / "eval" / "x.json")


# ---------------------------------------------------------------- .beton


@pytest.fixture
def beton(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    require_engine("ffcv")
    from saga_fast.cli import main

    make_images(tmp_path / "train", per_class=4, size=(40, 32))
    assert main(["pack", str(tmp_path / "train"), str(tmp_path / "x.beton")]) == 0
    return tmp_path / "x.beton"


def views_of(path: Path) -> tuple[dict[int, Any], list[int]]:
    source = open_source("ffcv", path)
    bad = BadImages(source, max_fraction=1.0)
    loader = open_loader("ffcv", source, WholePlan(size=16), LoaderOptions(threads=1), batch_size=4, bad=bad)
    views = {int(i): v.numpy() for batch in loader for i, v in zip(batch.index, batch.views, strict=True)}
    return views, bad.indices.tolist()


def test_noise_in_a_beton_file(beton: Path) -> None:
    """Noise of equal length anywhere: the file is refused, or the image is bad, or its own pixels are shown."""
    good, none = views_of(beton)
    assert none == []
    data, rng = beton.read_bytes(), np.random.default_rng(0)
    source = open_source("ffcv", beton)
    for begin in range(0, len(data), len(data) // 40):
        noisy = data[:begin] + rng.bytes(min(400, len(data) - begin)) + data[begin + 400 :]
        assert len(noisy) == len(data)
        beton.write_bytes(noisy)
        try:
            views, bad = views_of(beton)
        except SagaError as error:
            assert "\n" not in str(error)
            continue
        rows = source.row  # type: ignore[attr-defined]
        for index in views:
            first = int(source.begins[rows[index]])  # type: ignore[attr-defined]
            last = first + int(source.lengths[rows[index]])  # type: ignore[attr-defined]
            if last <= begin or first >= begin + 400:
                np.testing.assert_array_equal(views[index], good[index])
        assert len(bad) <= 4


def forge(beton: Path, change: Callable[[Any], None]) -> None:
    """Change the records, and the list's digest of them."""
    from saga_fast.loaders.ffcv.beton import RECORD, RECORDS_BEGIN, records_digest, sidecar_path

    count = len(open_source("ffcv", beton))
    records = np.fromfile(beton, RECORD, count=count, offset=RECORDS_BEGIN)
    change(records)
    data = beton.read_bytes()
    beton.write_bytes(data[:RECORDS_BEGIN] + records.tobytes() + data[RECORDS_BEGIN + records.nbytes :])
    about = json.loads(sidecar_path(beton).read_text())
    about["beton"]["records_sha256"] = records_digest(records)
    sidecar_path(beton).write_text(json.dumps(about))


@pytest.mark.parametrize(("height", "width"), [(64, 80), (33, 40), (32, 41), (16, 20), (65535, 65535)])
def test_a_record_of_another_size_than_its_jpeg(beton: Path, height: int, width: int) -> None:
    good, _ = views_of(beton)

    def change(records: Any) -> None:
        records["f0"]["height"][3], records["f0"]["width"][3] = height, width

    forge(beton, change)
    changed = int(open_source("ffcv", beton).row.tolist().index(3))  # type: ignore[attr-defined]
    views, bad = views_of(beton)
    assert bad == [changed]
    for index, view in views.items():
        np.testing.assert_array_equal(view, good[index])


def test_an_image_inside_another_is_refused(beton: Path) -> None:
    """It would show the pixels of another image."""
    from ffcv.types import ALLOC_TABLE_TYPE

    def change(records: Any) -> None:
        records["f0"]["data_ptr"][2] = records["f0"]["data_ptr"][5]

    count = len(open_source("ffcv", beton))
    forge(beton, change)
    data = beton.read_bytes()
    begin = len(data) - count * ALLOC_TABLE_TYPE.itemsize
    table = np.frombuffer(data[begin:], ALLOC_TABLE_TYPE).copy()
    table["ptr"][2], table["size"][2] = table["ptr"][5], table["size"][5]
    beton.write_bytes(data[:begin] + table.tobytes())
    with pytest.raises(SagaError, match="records do not fit") as error:
        open_source("ffcv", beton)
    one_line(error, beton)
