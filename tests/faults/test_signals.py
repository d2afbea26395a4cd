"""Ctrl-C and SIGTERM at any moment, and resources that run out: one line at most, and nothing half written."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga_fast.cli import main

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
PROGRAM = [sys.executable, "-m", "saga_fast"]
HANDLED = "from saga_fast.runtime.signals import handle_signals, unwinding; handle_signals();"


def start(arguments: list[Any], **options: Any) -> subprocess.Popen[str]:
    """The command, in a process that does not ignore Ctrl-C: a shell's background jobs, such as these tests, may."""
    command = [str(argument) for argument in arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("delay", [0.15, 0.4, 0.8, 1.3, 2.0, 3.0])
def test_while_modules_are_imported_and_later(
    finished_run: Path, tmp_path: Path, number: signal.Signals, delay: float
) -> None:
    out = tmp_path / "t.safetensors"
    arguments = ["build-att", "--ckpt", finished_run / "last.pt", "--out", out, "--threads", "1"]
    with start([*PROGRAM, *arguments]) as process:
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # it had ended
        assert process.returncode == CODES[number]
        assert err.strip() in ("", "saga-fast: interrupted")
        assert [path.name for path in tmp_path.iterdir()] in ([], [".t.safetensors.lock"])


@pytest.mark.parametrize("number", CODES)
def test_while_a_file_is_written(tmp_path: Path, number: signal.Signals) -> None:
    """A report whose template never ends: the temporary file goes, and the old page stays."""
    (tmp_path / "page.html").write_text("old")
    script = f"""
import sys, time
from pathlib import Path
from saga_fast.runtime.signals import handle_signals
handle_signals()
import saga_fast.cli.export
from saga_fast.runtime.files import replacing
def run(options):
    with replacing(options.out) as temporary:
        temporary.write_text("half")
        print(flush=True)
        time.sleep(60)
saga_fast.cli.export.run = run
sys.exit(saga_fast.cli.main(["export", "x", "--to", "timm", "--out", {str(tmp_path / "page.html")!r}]))
"""
    with start([sys.executable, "-c", script]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    assert err == ("saga-fast: interrupted\n" if number == signal.SIGINT else "")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


@pytest.mark.parametrize("number", CODES)
def test_where_python_drops_exceptions(number: signal.Signals) -> None:
    """In a ``__del__``: the signal comes again."""
    script = f"""{HANDLED}
import os, time
class Dropped:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        time.sleep(0.1)
try:
    with unwinding():
        Dropped()
        time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    with start([sys.executable, "-c", script]) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == CODES[number]
    assert err == ""


def test_a_library_that_makes_another_exception_of_it() -> None:
    script = f"""{HANDLED}
import os, sys
import saga_fast.cli.export
def run(options):
    try:
        os.kill(os.getpid(), {int(signal.SIGINT)})
    except KeyboardInterrupt:
        raise RuntimeError("callback failed")
saga_fast.cli.export.run = run
sys.exit(saga_fast.cli.main(["export", "x", "--to", "timm", "--out", "y"]))
"""
    with start([sys.executable, "-c", script]) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "saga-fast: interrupted\n"


def test_nohup_stays() -> None:
    script = "from saga_fast.runtime.signals import handle_signals as h; import signal as s"
    script += "; s.signal(s.SIGINT, s.SIG_IGN); h(); print(s.getsignal(s.SIGINT) is s.SIG_IGN)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "True\n"


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "lower the batch size"),
        (RuntimeError("can't start new thread"), "--threads"),
    ],
)
def test_resources_that_run_out(
    error: Exception,
    word: str,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refuses: Callable[..., None],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("saga_fast.cli.report.write_report", fail)
    refuses(["report", finished_run, "--out", tmp_path / "r.html"], word)


def test_other_errors_keep_their_traceback(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("saga_fast.cli.report.write_report", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["report", str(finished_run), "--out", str(tmp_path / "r.html")])
