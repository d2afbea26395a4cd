"""Build the wheel and the sdist into dist/, after checking them; `make release`.

    python tools/check_release.py [PYTHON ...]

The wheel is built from the sdist, so the sdist is complete. Both must hold the files that they should and no other, and
twine must find no fault. For each PYTHON, an interpreter, the wheel is installed into an empty environment, all
dependencies as wheels, and its commands are run there. Needs the packages build and twine.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SDIST_FILES = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
"""Files of the sdist in addition to the package."""
COMMANDS = (
    ("saga-fast", "--version"),
    ("saga-fast", "configs"),
    ("saga-fast", "demo", "--tiny"),
    ("python", "-c", "import saga_fast; print(saga_fast.__file__)"),
)


def package_files() -> set[str]:
    """The files of saga_fast/, relative to the repository: modules, kernels, configs, templates, py.typed."""
    paths = (path for path in (REPOSITORY / "saga_fast").rglob("*") if path.is_file())
    return {path.relative_to(REPOSITORY).as_posix() for path in paths if "__pycache__" not in path.parts}


def check_wheel(wheel: Path) -> None:
    """Compare the files of a wheel with the package's.

    Raises:
        SystemExit: they differ.
    """
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    _compare(wheel, names, package_files())


def check_sdist(sdist: Path) -> None:
    """Compare the files of an sdist with the package's and SDIST_FILES.

    Raises:
        SystemExit: they differ.
    """
    with tarfile.open(sdist) as file:
        names = {member.name.partition("/")[2] for member in file if member.isfile()}
    _compare(sdist, {name for name in names if ".egg-info/" not in name}, package_files() | SDIST_FILES)


def _compare(archive: Path, names: set[str], expected: set[str]) -> None:
    if names != expected:
        sys.exit(f"{archive.name} lacks {sorted(expected - names)} and should not hold {sorted(names - expected)}")


def try_wheel(python: str, wheel: Path) -> None:
    """Install a wheel into an empty environment of an interpreter and run COMMANDS in an empty folder.

    Raises:
        SystemExit: a command fails.
    """
    with tempfile.TemporaryDirectory(prefix="saga-fast-release-") as scratch:
        start, environment, empty = time.perf_counter(), Path(scratch) / "environment", Path(scratch) / "empty"
        empty.mkdir()
        _run([python, "-m", "venv", environment], empty)
        programs = environment / "bin"
        _run([programs / "python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", f"{wheel}[demo]"], empty)
        installed = time.perf_counter()
        for program, *arguments in COMMANDS:
            _run([programs / program, *arguments], empty)
        seconds = time.perf_counter() - installed
    print(f"{python}: installed in {installed - start:.0f} s, commands in {seconds:.0f} s", flush=True)


def _run(command: Sequence[str | Path], folder: Path) -> None:
    print("+", *command, flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = subprocess.run(command, cwd=folder, env=environment).returncode
    if code:
        sys.exit(f"exit code {code}: {' '.join(map(str, command))}")


def main(pythons: Sequence[str]) -> None:
    """Build and check; dist/ then holds these two files alone."""
    with tempfile.TemporaryDirectory(prefix="saga-fast-dist-") as scratch:
        _run([sys.executable, "-m", "build", "--outdir", scratch, REPOSITORY], Path(scratch))
        (wheel,), (sdist,) = Path(scratch).glob("*.whl"), Path(scratch).glob("*.tar.gz")
        check_wheel(wheel)
        check_sdist(sdist)
        _run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], Path(scratch))
        for python in pythons:
            try_wheel(python, wheel)
        target = REPOSITORY / "dist"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for file in (wheel, sdist):
            print(shutil.copy(file, target))


if __name__ == "__main__":
    main(sys.argv[1:])
