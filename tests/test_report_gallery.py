"""The report's gallery: which images it shows, and what it draws on them."""

import json
from pathlib import Path

import pytest
from report_runs import (
    make_images,
    make_run,
    make_table,
    make_three,
    renewal,
)

from saga_fast.report import gallery
from saga_fast.report.runs import Run, read_runs


@pytest.mark.parametrize(("classes", "per_class"), [(1, 1), (1, 100), (5, 20), (12, 3), (13, 2), (1000, 1)])
def test_choice_is_spread_over_the_classes(classes: int, per_class: int) -> None:
    paths = [f"{c:04d}/{i:03d}.jpg" for c in range(classes) for i in range(per_class)]
    chosen = gallery.choose(paths)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(12, len(paths))
    assert len({paths[i].split("/")[0] for i in chosen}) == min(classes, 12)
    assert gallery.choose(paths) == chosen


def test_choice_of_no_images() -> None:
    assert gallery.choose([]) == []


def saga_run(root: Path) -> Run:
    return read_runs([make_three(root)[2]])[0]


def test_gallery_without_images_is_a_note(tmp_path: Path) -> None:
    run = saga_run(tmp_path)
    make_table(run.folder / "att" / "epoch_0003.safetensors", 3)
    made = gallery.make_gallery(run)
    note = "No pictures: …/data/train is missing, or its images changed since the run."
    assert made and not made.tiles
    assert made.note == note
    (tmp_path / "data").rename(tmp_path / "gone")
    made = gallery.make_gallery(run)
    assert made and made.note == note
    for table in (run.folder / "att").iterdir():
        table.unlink()
    assert gallery.make_gallery(run) is None


def test_gallery_leaves_out_undecodable_images(tmp_path: Path) -> None:
    run = saga_run(tmp_path)
    (tmp_path / "data" / "train" / "cat" / "0.jpg").write_bytes(b"no image")
    made = gallery.make_gallery(run)
    assert made and [tile.caption for tile in made.tiles][:2] == ["cat/1.jpg", "cat/2.jpg"]


def test_gallery_draws_all_true_boxes_of_an_image(tmp_path: Path) -> None:
    """boxes.json may have one box, several boxes or no box for an image."""
    run = saga_run(tmp_path)
    two = [[0.0, 0.0, 0.1, 0.1], [0.25, 0.25, 0.5, 0.5]]
    boxes = {"cat/0.jpg": two, "cat/1.jpg": [0.25, 0.25, 0.5, 0.5], "cat/2.jpg": []}
    (tmp_path / "data" / "train" / "boxes.json").write_text(json.dumps(boxes))
    made = gallery.make_gallery(run)
    assert made
    counts = [sum(mark.style == "true" for mark in tile.marks) for tile in made.tiles]
    assert counts == [2, 1, 0, *[0] * (len(counts) - 3)]
    assert made.tiles[0].overlap == made.tiles[1].overlap == "IoU 0.33 → 1.00"  # IoU with the better of two true boxes
    assert "with true boxes and attention boxes" in made.tiles[0].alt


def test_gallery_draws_some_of_many_renewals(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images = make_images(root)
    folder = make_run(tmp_path / "saga", [renewal(at) for at in range(0, 90, 10)], data={"train": str(root)})
    for at in range(0, 90, 10):
        make_table(folder / "att" / f"epoch_{at:04d}.safetensors", len(images))
    made = gallery.make_gallery(read_runs([folder])[0])
    assert made
    assert [label for _, label in made.legend] == ["true box", *(f"epoch {at}" for at in (0, 20, 40, 60, 80))]
    assert made.note == "4 of 9 renewals are not drawn."
