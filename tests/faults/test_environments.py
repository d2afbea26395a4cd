"""Environments: no home, no writable cache, a damaged one, variables of other programs, and ``~`` in paths."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from numba.core import caching

from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.kernels import _cache
from saga_fast.runtime import machine

PROGRAM = [sys.executable, "-m", "saga_fast"]
KERNEL = """
import logging, numpy
logging.basicConfig(format="%(message)s")
from saga_fast.kernels.philox import uniforms
print(uniforms(1, 2, 3, 0, 1, 0))
"""


def python(script: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | environment)


def program(*arguments: Any, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


# ---------------------------------------------------------------- Numba's cache


def nowhere(cls: type, py_func: object, py_file: str) -> None:  # noqa: ARG001 - as Numba calls it
    return None


@pytest.fixture
def not_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the package nor the home can be written, as for uid 65534 in a container."""
    monkeypatch.setattr(caching.InTreeCacheLocator, "from_function", classmethod(nowhere))
    monkeypatch.setattr(_cache._HomeLocator, "from_function", classmethod(nowhere))
    monkeypatch.setattr(_cache, "_said", set())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()


def double(x: int) -> int:
    return 2 * x


@pytest.mark.usefixtures("not_writable")
def test_kernels_are_kept_in_the_temporary_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "temporary" / f"saga-fast-numba-{os.geteuid()}"
    for _ in range(2):
        assert _cache.cache_of(double).cache_path.startswith(str(folder))
    assert folder.stat().st_mode & 0o077 == 0
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(folder) in message


@pytest.mark.usefixtures("not_writable")
@pytest.mark.parametrize("foreign", ["link", "open", "file"])
def test_a_temporary_folder_of_others_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, foreign: str
) -> None:
    """Cache files are pickles: whoever can write one runs code here."""
    folder = tmp_path / "temporary" / f"saga-fast-numba-{os.geteuid()}"
    if foreign == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    elif foreign == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    assert isinstance(_cache.cache_of(double), caching.NullCache)
    assert isinstance(_cache.cache_of(test_kernels_are_kept_in_the_temporary_folder), caching.NullCache)
    assert "compiled in each process" in caplog.records[0].getMessage()


def test_a_damaged_cache_is_compiled_anew(tmp_path: Path) -> None:
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first = python(KERNEL, **cache)
    assert (first.returncode, first.stderr) == (0, "")
    files = list((tmp_path / "cache").rglob("*.nb?"))
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    whole = {path: path.read_bytes() for path in files}
    for damage in ("flip", "cut", "empty"):
        for path, data in whole.items():
            if path.suffix == ".nbc" or damage != "flip":
                flipped = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x40]) + data[len(data) // 2 + 1 :]
                path.write_bytes({"flip": flipped, "cut": data[: len(data) // 2], "empty": b""}[damage])
        again = python(KERNEL, **cache)
        assert (again.returncode, again.stdout) == (0, first.stdout), damage
        assert "compiling them" in again.stderr
        assert "Traceback" not in again.stderr
        assert python(KERNEL, **cache).stderr == ""  # mended


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root becomes another user")
def test_a_user_without_home(tmp_path: Path) -> None:
    """Uid 65534, which may read all files, so also this interpreter, and writes none of them."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    package = Path(machine.__file__).parent.parent
    environment = {"HOME": "/nonexistent", "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(package.parent)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    readers = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *readers]
    command = [*nobody, sys.executable, "-c", KERNEL]
    for _ in range(2):
        ran = subprocess.run(command, capture_output=True, text=True, cwd="/", env=os.environ | environment)
        assert (ran.returncode, ran.stdout) == (0, python(KERNEL).stdout)
        assert ran.stderr.count("\n") == 1
        assert f"compiled kernels are kept in {tmp_path / 'tmp' / 'saga-fast-numba-65534'}" in ran.stderr
    assert list((tmp_path / "tmp").rglob("*.nbc"))


# ---------------------------------------------------------------- variables


def test_numba_disable_jit_is_refused() -> None:
    ran = program("report", "x", NUMBA_DISABLE_JIT="1")
    assert ran.returncode == 2
    assert ran.stderr.startswith("saga-fast: error: NUMBA_DISABLE_JIT")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", ["module://nonsense", "nonsense"])
def test_a_back_end_of_matplotlib_that_is_not_installed(finished_run: Path, tmp_path: Path, backend: str) -> None:
    ran = program("report", finished_run, "--out", tmp_path / "r.html", MPLBACKEND=backend)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_commands_that_draw_nothing_load_no_matplotlib() -> None:
    script = (
        "import saga_fast.cli as c, sys, importlib; [importlib.import_module(f'saga_fast.cli.{n}') for n in c.COMMANDS]"
    )
    assert python(f"{script}; print('matplotlib' in sys.modules)").stdout == "False\n"


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=''"),
        ({"RANK": "-1"}, "RANK='-1'"),
        ({"RANK": "x"}, "RANK='x'"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "LOCAL_RANK",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "port"}, "MASTER_PORT='port'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "2000"}, "RANK=2"),
    ],
    ids=str,
)
def test_nonsense_of_a_launcher(
    tiny_yaml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refuses: Callable[..., None],
    variables: dict[str, str],
    word: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuses(["train", "--config", tiny_yaml, "--out", tmp_path / "run"], word)


# ---------------------------------------------------------------- the home folder, the commit


def test_the_home_folder_in_a_config(
    tiny_values: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    values = tiny_values() | {"out": "~/run"}
    values["data"] |= {"train": "~/train", "val": "~/val", "classes": "~/classes.txt"}
    values["attention"] |= {"provider": "table", "provider_table": "~/t.safetensors"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    config = load_config(tmp_path / "c.yaml")
    assert config.attention is not None
    paths = [config.out, config.data.train, config.data.val, config.data.classes, config.attention.provider_table]
    assert [str(path) for path in paths] == [
        str(tmp_path / name) for name in ("run", "train", "val", "classes.txt", "t.safetensors")
    ]
    assert load_config(tmp_path / "c.yaml", ["out=~/other"]).out == str(tmp_path / "other")


def test_the_home_folder_on_the_command_line(
    finished_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished_run / "last.pt", tmp_path / "c.pt")
    shutil.copytree(images / "val", tmp_path / "val")
    assert main(["build-att", "--ckpt=~/c.pt", "--data=~/val", "--out=~/t.safetensors"]) == 0
    assert (tmp_path / "t.safetensors").exists()
    assert not (tmp_path / "~").exists()


def test_the_commit_of_another_projects_checkout_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    for place, known in ((".venv/lib/saga_fast", False), ("saga_fast", True)):
        monkeypatch.setattr(machine, "__file__", str(tmp_path / place / "runtime" / "machine.py"))
        (tmp_path / place / "runtime").mkdir(parents=True)
        assert (machine.commit() != "unknown") == known
