"""The command line: its output, and that a user's mistake is one line on stderr and exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saga_fast import __version__
from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.loaders import BoxTable, ImageFolder
from saga_fast.runtime.files import sha256
from saga_fast.train import cycle
from saga_fast.train.cycle import train

COMMANDS = [
    ["demo"],
    ["train"],
    ["build-att"],
    ["eval"],
    ["eval", "knn"],
    ["eval", "linear"],
    ["eval", "boxes"],
    ["show-att"],
    ["eval", "pairs"],
    ["report"],
    ["import"],
    ["export"],
]

Refuses = Callable[..., None]


def tables_equal(first: Path, second: Path) -> bool:
    a, b = BoxTable.open(first), BoxTable.open(second)
    return all(np.array_equal(getattr(a, c), getattr(b, c)) for c in ("boxes", "found", "pseudo_label", "score"))


# ---------------------------------------------------------------- help and usage


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["usage: saga-fast", *command]))
    assert err == ""


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command[0] in out for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"saga-fast {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train"], ["build-att"], ["eval"], ["eval", "knn"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: saga-fast" in capsys.readouterr().err


def test_interrupt(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saga_fast.cli.train.train", interrupt)
    assert main(["train", "--config", str(tiny_yaml)]) == 130
    assert capsys.readouterr().err == "saga-fast: interrupted\n"


def test_internal_error_is_raised(tiny_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("internal")

    monkeypatch.setattr("saga_fast.cli.train.train", fail)
    with pytest.raises(RuntimeError, match="internal"):
        main(["train", "--config", str(tiny_yaml)])


# ---------------------------------------------------------------- train


def test_train_prints_the_checkpoint(tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    overrides = ["--set", "saga.epochs=1", "evaluate=null", "--set", "plain.epochs=0"]
    assert main(["train", "--config", str(tiny_yaml), "--out", str(run), *overrides]) == 0
    assert capsys.readouterr().out == f"{run / 'last.pt'}\n"
    assert read_checkpoint(run / "last.pt")["epoch"] == 1
    assert load_config(run / "config.yaml").out == str(run)


def test_train_from_a_checkpoint(ckpt: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", "--config", str(tiny_yaml), "--out", str(run), "--ckpt", str(ckpt)]
    assert main([*arguments, "--set", "saga.epochs=1", "evaluate=null"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["epoch"]) for row in rows] == [("renewal", 1), ("epoch", 2)]


def test_train_refuses_missing_files(tiny_yaml: Path, tmp_path: Path, refuses: Refuses) -> None:
    run, none = tmp_path / "run", tmp_path / "none"
    refuses(["train", "--config", none], none, "No such file")
    refuses(["train", "--config", tiny_yaml, "--out", run, "--set", f"data.train={none}"], "image folder", none)
    refuses(["train", "--config", tiny_yaml, "--out", run, "--set", f"data.val={none}"], "image folder", none)
    refuses(["train", "--config", tiny_yaml, "--out", run, "--ckpt", none], "no such checkpoint", none)
    none.mkdir()
    refuses(["train", "--config", tiny_yaml, "--out", run, "--set", f"data.train={none}"], "no image in", none)
    assert not run.exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("crop.sise=3", ["unknown key crop.sise"]),
        ("epochs=3", ["unknown key epochs"]),
        ("batch_size=some", ["batch_size", "'some'"]),
        ("batch_size=100", ["batch_size 100", "41 images"]),
        ("attention.delta=1.5", ["delta", "1.5"]),
        ("method.name=swav", ["'swav'", "simclr, moco"]),
        ("encoder.name=renset18", ["'renset18'", "resnet18"]),
        ("encoder={name: test_vit}", ["'test_vit'", "no convolutional map"]),
        ("data.engine=dalli", ["no such engine", "'dalli'", "folder"]),
        ("data.threads=0", ["threads", "0"]),
        ("data.prefetch=-1", ["prefetch", "-1"]),
        ("data.classes=none.txt", ["none.txt"]),
        ("nonsense", ["key=value", "'nonsense'"]),
    ],
)
def test_train_refuses_values(
    tiny_yaml: Path, tmp_path: Path, refuses: Refuses, override: str, words: list[str]
) -> None:
    refuses(["train", "--config", tiny_yaml, "--out", tmp_path / "run", "--set", override], *words)


def test_train_refuses_a_run_in_use(finished_run: Path, tiny_yaml: Path, refuses: Refuses) -> None:
    arguments = ["train", "--config", tiny_yaml, "--out", finished_run]
    refuses(arguments, finished_run, "--resume")
    refuses([*arguments, "--resume", "--set", "seed=4"], finished_run, "another seed")


def test_train_refuses_output_that_cannot_be_written(tiny_yaml: Path, tmp_path: Path, refuses: Refuses) -> None:
    """A folder inside a regular file: even root cannot write there."""
    file = tmp_path / "file"
    file.write_text("mine")
    refuses(["train", "--config", tiny_yaml, "--out", file / "run"], file, "Not a directory")
    assert file.read_text() == "mine"


def test_train_refuses_a_loss_that_is_not_finite(tiny_yaml: Path, tmp_path: Path, refuses: Refuses) -> None:
    arguments = ["train", "--config", tiny_yaml, "--out", tmp_path / "run", "--set", "plain.lr=1e20", "evaluate=null"]
    refuses(arguments, "not finite", "1e+20")


@pytest.fixture
def interrupted(tiny_yaml: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A run that was interrupted before its first SAGA epoch was saved, and its copy of the images."""
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(images / "train", data)
    saved = 0

    def stop(*arguments: Any) -> None:
        nonlocal saved
        saved += 1
        real(*arguments)
        if saved == 3:
            raise KeyboardInterrupt

    real = save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(cycle, "save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            train(load_config(tiny_yaml, [f"out={run}", f"data.train={data}", "evaluate=null"]))
    return run, data


def test_resume_refuses_a_missing_table(interrupted: tuple[Path, Path], refuses: Refuses) -> None:
    run, _ = interrupted
    (run / "att" / "epoch_0001.safetensors").unlink()
    refuses(["train", "--config", run / "config.yaml", "--resume"], run / "att" / "epoch_0001.safetensors", "missing")


def test_resume_refuses_another_data_set(interrupted: tuple[Path, Path], refuses: Refuses) -> None:
    run, data = interrupted
    before = ImageFolder(data).fingerprint
    shutil.copy(data / "cat" / "000.jpg", data / "cat" / "new.jpg")
    refuses(["train", "--config", run / "config.yaml", "--resume"], before, ImageFolder(data).fingerprint)


def test_resume_refuses_a_broken_checkpoint(interrupted: tuple[Path, Path], refuses: Refuses) -> None:
    run, _ = interrupted
    data = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(data[:1000])
    refuses(["train", "--config", run / "config.yaml", "--resume"], "cannot read the checkpoint", run / "last.pt")


# ---------------------------------------------------------------- build-att


def test_build_att(ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "deep" / "a.safetensors", tmp_path / "b.safetensors"
    data = str(images / "train")
    assert main(["build-att", "--ckpt", str(ckpt), "--data", data, "--out", str(first)]) == 0
    out = capsys.readouterr().out
    # The default images and options are those of the checkpoint's config.
    assert main(["build-att", "--ckpt", str(ckpt), "--out", str(second), "--batch-size", "64"]) == 0
    assert tables_equal(first, second)

    table = BoxTable.open(first)
    found, area = 100 * table.found_fraction, table.mean_area
    assert out.startswith(f"{first}: 41 images, found {found:.1f} %, mean box area {area:.3f}, ")
    assert out.endswith(" images/s\n")
    assert len(table) == 41
    assert table.metadata["dataset"] == ImageFolder(data).fingerprint
    assert table.metadata["checkpoint"] == sha256(ckpt)
    assert (table.metadata["epoch"], table.metadata["delta"], table.metadata["size"]) == ("5", "0.7", "16")
    assert [path.name for path in first.parent.iterdir()] == ["a.safetensors"]


def test_build_att_options(ckpt: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    options = ["--delta", "0.4", "--score", "activation", "--normalize", "max", "--size", "24", "--threads", "1"]
    assert main(["build-att", "--ckpt", str(ckpt), "--out", str(out), *options]) == 0
    metadata = BoxTable.open(out).metadata
    assert [metadata[key] for key in ("delta", "attention_score", "normalize", "size")] == [
        "0.4",
        "activation",
        "max",
        "24",
    ]
    assert metadata["mirror"] == "False"
    mirrored = ["--score", "background", "--mirror", "--threads", "1"]
    assert main(["build-att", "--ckpt", str(ckpt), "--out", str(out), *mirrored]) == 0
    metadata = BoxTable.open(out).metadata
    assert (metadata["attention_score"], metadata["mirror"]) == ("background", "True")


def spoil(root: Path) -> dict[int, str]:
    """Break five files of a folder in five ways, and return their indices and paths."""
    paths = ImageFolder(root).paths
    broken = {index: paths[index] for index in (0, 7, 20, 33, 40)}
    contents = [b"", b"not an image", None, b"\xff\xd8\xff\xe0" + bytes(40), (root / paths[33]).read_bytes()[:90]]
    for path, content in zip(broken.values(), contents, strict=True):
        (root / path).unlink()
        if content is None:
            (root / path).symlink_to("nowhere.jpg")
        else:
            (root / path).write_bytes(content)
    return broken


def test_build_att_lists_undecodable_images(
    ckpt: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, table_path = tmp_path / "clean.safetensors", tmp_path / "out" / "a.safetensors"
    data = tmp_path / "data"
    shutil.copytree(images / "train", data)
    common = ["build-att", "--ckpt", str(ckpt), "--batch-size", "8"]
    assert main([*common, "--data", str(data), "--out", str(clean)]) == 0
    broken = spoil(data)
    capsys.readouterr()
    options = ["--data", str(data), "--out", str(table_path), "--max-bad-fraction", "0.2"]
    assert main([*common, *options]) == 0

    listed = tmp_path / "out" / "a.bad_images.txt"
    assert capsys.readouterr().out.splitlines()[1] == f"5 images cannot be decoded, see {listed}"
    rows = [line.split("\t") for line in listed.read_text().splitlines()]
    assert {int(index): path for index, path, _ in rows} == broken
    assert [index for index, _, _ in rows] == [str(index) for index in sorted(broken)]
    assert all(len(row) == 3 and row[2] for row in rows)

    table, whole = BoxTable.open(table_path), BoxTable.open(clean)
    bad, good = list(broken), np.setdiff1d(np.arange(41), list(broken))
    np.testing.assert_array_equal(table.boxes[bad], BoxTable.whole(5).boxes)
    assert not table.found[bad].any()
    np.testing.assert_array_equal(table.pseudo_label[good], whole.pseudo_label[good])
    np.testing.assert_allclose(table.score[good], whole.score[good], rtol=1e-4)
    np.testing.assert_allclose(table.boxes[good], whole.boxes[good], atol=1.01 / 16)  # one pixel, for rounding
    assert table.metadata["dataset"] == whole.metadata["dataset"]


def test_build_att_refuses_too_many_bad_images(ckpt: Path, images: Path, tmp_path: Path, refuses: Refuses) -> None:
    data, out = tmp_path / "data", tmp_path / "a.safetensors"
    shutil.copytree(images / "train", data)
    spoil(data)
    refuses(["build-att", "--ckpt", ckpt, "--data", data, "--out", out], "of 41 images", "max_bad_fraction 0.01")
    assert not out.exists()


def test_build_att_removes_an_old_list_of_bad_images(ckpt: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    for name in ("a.bad_images.txt", "bad_images.txt"):
        (tmp_path / name).write_text("3\tcat/003.jpg\tbroken\n")
    assert main(["build-att", "--ckpt", str(ckpt), "--data", str(images / "train"), "--out", str(out)]) == 0
    assert not (tmp_path / "a.bad_images.txt").exists()
    assert (tmp_path / "bad_images.txt").exists()  # another command's


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--delta", "1.5"], ["--delta", "[0, 1)", "1.5"]),
        (["--delta", "-0.1"], ["--delta", "-0.1"]),
        (["--delta", "nan"], ["--delta", "nan"]),
        (["--size", "0"], ["--size", "0"]),
        (["--engine", "dalli"], ["no such engine", "'dalli'"]),
        (["--batch-size", "0"], ["batch_size", "0"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--data", "/nonexistent/images"], ["no such image folder", "/nonexistent/images"]),
    ],
)
def test_build_att_refuses_values(
    ckpt: Path, tmp_path: Path, refuses: Refuses, options: list[str], words: list[str]
) -> None:
    out = tmp_path / "a.safetensors"
    refuses(["build-att", "--ckpt", ckpt, "--out", out, *options], *words)
    assert not out.exists()


def test_build_att_refuses_paths(ckpt: Path, tmp_path: Path, refuses: Refuses) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("mine")
    refuses(["build-att", "--ckpt", ckpt, "--data", empty, "--out", tmp_path / "a"], "no image in", empty)
    refuses(["build-att", "--ckpt", ckpt, "--out", tmp_path], "cannot write to", tmp_path, "folder")
    refuses(["build-att", "--ckpt", ckpt, "--out", file / "a.safetensors"], file)
    assert file.read_text() == "mine"
    assert list(empty.iterdir()) == []


def test_build_att_leaves_an_existing_table_when_it_fails(ckpt: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    BoxTable.whole(3).save(out)
    before = out.read_bytes()
    data = tmp_path / "data"
    shutil.copytree(images / "train", data)
    spoil(data)
    assert main(["build-att", "--ckpt", str(ckpt), "--data", str(data), "--out", str(out)]) == 2
    assert out.read_bytes() == before


@pytest.mark.parametrize("command", ["build-att", "eval knn", "train"])
def test_invalid_checkpoints(
    ckpt: Path, tiny_yaml: Path, images: Path, tmp_path: Path, refuses: Refuses, command: str
) -> None:
    options: dict[str, list[Any]] = {
        "build-att": ["--out", tmp_path / "a.safetensors"],
        "eval knn": ["--data", images / "val"],
        "train": ["--config", tiny_yaml, "--out", tmp_path / "run"],
    }
    arguments = [*command.split(), *options[command], "--ckpt"]
    cut, other = tmp_path / "cut.pt", tmp_path / "other.pt"
    cut.write_bytes(ckpt.read_bytes()[:-500])
    torch.save({"state_dict": {}}, other)
    refuses([*arguments, tmp_path / "none.pt"], "no such checkpoint", tmp_path / "none.pt")
    refuses([*arguments, cut], "cannot read the checkpoint", cut)
    refuses([*arguments, other], "is not a saga-fast checkpoint", other)
