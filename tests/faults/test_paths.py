"""Names in files are names: none of them leads out of the data folder or the run folder."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable, ImageFolder, LoaderOptions, Shards, WholePlan, open_loader, open_source
from saga_fast.loaders.engines import require_engine
from saga_fast.loaders.source import fingerprint
from saga_fast.runtime.files import sha256
from saga_fast.train.cycle import train

OUTSIDE = ["../secret", "/etc/passwd", "../../x", "a/../../secret", "..", ".", ".hidden", "a/b", "att/../../x"]


def with_entry(run: Path, tmp_path: Path, entry: object) -> Path:
    """A copy of a run whose last.pt names another box table."""
    state = read_checkpoint(run / "last.pt")
    copy = tmp_path / "run"
    content = {key: value for key, value in state.items() if key not in ("format", "version")}
    save_checkpoint(copy / "last.pt", content | {"box_table": entry})
    return copy


@pytest.mark.parametrize("name", [*OUTSIDE, "att/..", "att/a/b", "att", "/att/x", "", "att/\0", None, 5])
def test_a_checkpoints_box_table_lies_in_its_run(
    finished_run: Path, tiny_yaml: Path, tmp_path: Path, name: str | None
) -> None:
    table = BoxTable.whole(41)
    table.save(tmp_path / "x")  # which the hash fits
    run = with_entry(finished_run, tmp_path, {"name": name, "sha256": sha256(tmp_path / "x")})
    with pytest.raises(SagaError, match="names the box table"):
        train(load_config(tiny_yaml, [f"out={run}"]), resume=True)
    with pytest.raises(SagaError, match="names the box table"):
        read_checkpoint(with_entry(finished_run, tmp_path, [name]) / "last.pt")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_class_list_names_folders_of_the_data_set(
    make_images: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    make_images(tmp_path / "secret", classes=("x",), per_class=1)
    make_images(tmp_path / "data" / "set", per_class=1)
    (tmp_path / "classes.txt").write_text(f"cat\n{name}\n")
    with pytest.raises(SagaError, match="names of folders"):
        ImageFolder(tmp_path / "data" / "set", classes=tmp_path / "classes.txt")


def test_a_beton_files_paths_are_not_opened(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_engine("ffcv")
    beton = tmp_path / "x.beton"
    root = make_images(tmp_path / "images", per_class=1)
    assert main(["pack", str(root), str(beton), "--mode", "raw"]) == 0
    about = json.loads((tmp_path / "x.beton.json").read_text())
    about["paths"] = ["/etc/passwd", "../../secret"]
    about["fingerprint"] = fingerprint(about["paths"])
    (tmp_path / "x.beton.json").write_text(json.dumps(about))
    opened: list[str] = []
    loader = open_loader("ffcv", beton, WholePlan(size=4), LoaderOptions(threads=1), batch_size=2)
    real = Path.open

    def watched(self: Path, *arguments: Any) -> Any:
        opened.append(str(self))
        return real(self, *arguments)

    monkeypatch.setattr(Path, "open", watched)
    (batch,) = loader
    assert batch.index.tolist() == [0, 1]
    assert loader.source.read(1).startswith(b"P6")
    assert not opened


def test_a_tars_names_are_not_opened(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(buffer, "PNG")
    (tmp_path / "secret.png").write_bytes(b"not to be read")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("../secret.png", str(tmp_path / "secret.png"), "a/b.png"):
            member = tarfile.TarInfo(name)
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        tar.addfile(link)
    source = Shards(tmp_path / "x.tar")
    assert len(source) == 3  # a link is no image
    assert {source.read(index) for index in range(3)} == {buffer.getvalue()}


def test_a_box_tables_metadata_names_nothing_that_is_opened(tmp_path: Path) -> None:
    whole = BoxTable.whole(3)
    metadata = {"checkpoint": "/etc/passwd", "dataset": "../../x"}
    table = BoxTable(whole.boxes, whole.found, whole.pseudo_label, whole.score, metadata)
    table.save(tmp_path / "t.safetensors")
    assert BoxTable.open(tmp_path / "t.safetensors").metadata["checkpoint"] == "/etc/passwd"
    with pytest.raises(SagaError, match=r"made for data set \.\./\.\./x"):
        table.check("3-abc", 3)


@pytest.mark.parametrize("key", ["out", "data.train", "data.val", "data.classes"])
def test_a_path_with_a_zero_byte_is_refused(tiny_yaml: Path, key: str) -> None:
    with pytest.raises(SagaError, match=rf"{key} holds a zero byte"):
        load_config(tiny_yaml, [rf'{key}="a\0b"'])


def test_a_run_folder_that_is_not_utf8(
    tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorBoard cannot write there; without it the folder is as good as any."""
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--config", str(tiny_yaml), "--set", r'out="\udcff"']
    assert main(arguments) == 2
    assert "name is not UTF-8: choose another --out" in capsys.readouterr().err
    assert main([*arguments, "logger=[]"]) == 0
    assert (tmp_path / "\udcff" / "last.pt").exists()


def test_a_beton_list_with_impossible_names_is_refused(make_images: Callable[..., Path], tmp_path: Path) -> None:
    require_engine("ffcv")
    make_images(tmp_path / "data", per_class=1)
    assert main(["pack", str(tmp_path / "data"), str(tmp_path / "x.beton")]) == 0
    about = json.loads((tmp_path / "x.beton.json").read_text())
    for name in ("a\0b", "\ud800"):
        about["paths"][0] = name
        (tmp_path / "x.beton.json").write_text(json.dumps(about))
        with pytest.raises(SagaError, match="damaged"):
            open_source("ffcv", tmp_path / "x.beton")
