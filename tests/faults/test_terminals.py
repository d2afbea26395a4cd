"""Names cannot steer a terminal, and a stream that cannot be written does not end the work."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saga_fast.cli import main
from saga_fast.loaders.engines import require_engine
from saga_fast.runtime.terminal import LineFormatter, printable, say

PROGRAM = [sys.executable, "-m", "saga_fast"]
HOSTILE = "\x1b[31mred\x1b]0;title\x07\u202etxt.\n\udcff\t.jpg"
ESCAPED = r"\x1b[31mred\x1b]0;title\x07\u202etxt.\n\udcff\t.jpg"


def test_printable() -> None:
    assert printable(HOSTILE) == ESCAPED
    assert printable("Füße 猫 😀 a b\\n") == "Füße 猫 😀 a b\\n"
    assert printable("\x9b\x7f\u2028\u2066\u200f\ufeff") == r"\x9b\x7f\u2028\u2066\u200f\ufeff"


def test_log_lines_are_escaped() -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s is bad", (HOSTILE,), None)
    assert LineFormatter().format(record) == f"{ESCAPED} is bad"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_say_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding=encoding, errors="strict"))
    say("猫", "ü")
    assert buffer.getvalue().decode("unicode_escape" if encoding == "ascii" else encoding).endswith("\nü\n")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Images with one that cannot be decoded, whose name would steer a terminal."""
    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (24, 20), (40 * number, 0, 0)).save(root / "a" / f"{number}.png")
    (root / "a" / HOSTILE).write_bytes(b"no image")
    return root


def test_names_in_messages_and_lists(
    hostile: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.safetensors"
    arguments = ["build-att", "--ckpt", str(finished_run / "last.pt"), "--data", str(hostile), "--out", str(out)]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert ESCAPED in err
    assert err.count("\n") == 1
    assert main([*arguments, "--max-bad-fraction", "0.5"]) == 0
    (line,) = (tmp_path / "t.bad_images.txt").read_text().splitlines()
    assert line.split("\t")[1] == f"a/{ESCAPED}"
    strange = tmp_path / "\x1b[2J\n\udcfe.safetensors"
    assert main([*arguments[:-1], str(strange), "--max-bad-fraction", "0.5"]) == 0
    said = capsys.readouterr()
    assert r"\x1b[2J\n\udcfe.safetensors: 6 images" in said.out
    assert "\x1b" not in said.out + said.err


def test_usage_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "run", "\x1b[31m", "--no\x1b\udcff"])
    assert r"--no\x1b\udcff" in capsys.readouterr().err


def evaluate(finished_run: Path, images: Path, out: Path, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    arguments = ["eval", "knn", "--ckpt", finished_run / "last.pt", "--data", images / "val", "--k", "3", "--json", out]
    return subprocess.run([*PROGRAM, *map(str, arguments)], **options)


STRICT = {"PYTHONIOENCODING": "ascii:strict"}


@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("stream", ["full", "pipe", "closed"])
def test_stdout_that_cannot_be_written(
    finished_run: Path, images: Path, tmp_path: Path, stream: str, environment: dict[str, str]
) -> None:
    out = tmp_path / "k.json"
    stdout: Any = None
    if stream == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    elif stream == "pipe":
        reader, stdout = os.pipe()
        os.close(reader)
    close = (lambda: os.close(1)) if stream == "closed" else None
    ran = evaluate(
        *(finished_run, images, out),
        stdout=stdout,
        stderr=subprocess.PIPE,
        preexec_fn=close,
        env=os.environ | environment,
    )
    assert ran.stderr == b""
    assert ran.returncode == 0
    assert len(json.loads(out.read_text())["rows"]) == 2
    if stdout is not None:
        os.close(stdout)


@pytest.mark.parametrize("stream", ["full", "closed"])
def test_stderr_that_cannot_be_written(finished_run: Path, images: Path, tmp_path: Path, stream: str) -> None:
    out = tmp_path / "k.json"
    with Path("/dev/full").open("wb") as full:
        options: dict[str, Any] = {"stderr": full} if stream == "full" else {"preexec_fn": lambda: os.close(2)}
        ran = evaluate(finished_run, images, out, stdout=subprocess.PIPE, **options)
    assert ran.returncode == 0
    assert ran.stdout.count(b"\n") == 2
    assert out.exists()


def test_an_encoding_without_the_names_characters(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "Füße-猫.html"
    arguments = [*PROGRAM, "report", str(finished_run), "--out", str(out)]
    ran = subprocess.run(arguments, capture_output=True, env=os.environ | STRICT)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"F\\xfc\\xdfe-\\u732b.html\n" in ran.stdout
    assert out.exists()
    ran = subprocess.run([*PROGRAM, "report", "猫"], capture_output=True, env=os.environ | STRICT, cwd=tmp_path)
    assert ran.returncode == 2
    assert b"\\u732b" in ran.stderr and ran.stderr.count(b"\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_to_a_full_disk(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run([*PROGRAM, *arguments], stdout=full, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_pack_draws_its_bar_on_terminals_only(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_engine("ffcv")
    assert main(["pack", str(images / "val"), str(tmp_path / "x.beton")]) == 0
    assert capsys.readouterr().err == ""
