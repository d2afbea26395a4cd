"""What a stranger gets: wheel, sdist, image, and the hosted workflow that makes them."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
import yaml

from saga_fast.version import __version__
from tools.check_release import check_sdist, check_wheel

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
NOT_COPIED = ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")

# ---------------------------------------------------------------- wheel and sdist


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` from a folder, with the setuptools that is installed."""
    code = f"import sys, setuptools.build_meta as backend; print(backend.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(target)]
    ran = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return target / ran.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    copytree(REPOSITORY, folder / "checkout", symlinks=True, ignore=NOT_COPIED)
    return build("sdist", folder / "checkout", folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as a stranger's pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        return email.message_from_bytes(file.read(f"saga_fast-{__version__}.dist-info/METADATA"))


def test_files(sdist: Path, wheel: Path) -> None:
    assert wheel.name == f"saga_fast-{__version__}-py3-none-any.whl"
    check_sdist(sdist)
    check_wheel(wheel)
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert "saga_fast/py.typed" in names
    assert "saga_fast/configs/imagenet/mocov2_plus.yaml" in names
    assert "saga_fast/kernels/attention_boxes/_triton.py" in names
    assert "saga_fast/report/templates/report.html.j2" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"saga_fast"}


@pytest.mark.parametrize("name", ["tests/test_cli.py", "saga_fast/configs/stray.yaml"])
def test_further_file_is_an_error(wheel: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / wheel.name
    copy.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(copy, "a") as file:
        file.writestr(name, "")
    with pytest.raises(SystemExit, match=re.escape(name)):
        check_wheel(copy)


def test_metadata(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("saga-fast", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == f">={PYTHONS[0]}"
    assert not any(line.startswith("License ::") for line in metadata.get_all("Classifier", []))
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert metadata["Author"] == citation["authors"][0]["name"]
    assert metadata["Keywords"].split(",") == citation["keywords"]


def test_long_description_is_the_readme_without_relative_links(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert not re.search(r"]\((?!https?://)|^\[[^]]+]:|<(img|a) ", text, re.MULTILINE)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    words = re.compile(r"\w+")
    targets = [word for target in re.findall(r"]\(([^)]+)\)", readme) for word in words.findall(target)]
    assert len(targets) > 10
    assert len(words.findall(text)) + len(targets) == len(words.findall(readme))


# ---------------------------------------------------------------- Dockerfile


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) of the Dockerfile's instructions."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [(name, arguments) for name, _, arguments in (line.partition(" ") for line in lines)]


def in_context(path: Path) -> bool:
    """Whether .dockerignore lets a path of the repository through: its last pattern that matches decides."""
    name, included = path.relative_to(REPOSITORY).as_posix(), True
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parents = [name, *(parent.as_posix() for parent in Path(name).parents)]
        candidates = [*parents, *Path(name).parts] if "**/" in line else parents
        if line and not line.startswith("#") and any(fnmatch(candidate, pattern) for candidate in candidates):
            included = line.startswith("!")
    return included


def test_dockerfile_copies_what_is_there() -> None:
    copied = [word for name, words in instructions() if name == "COPY" for word in words.split()[:-1]]
    assert all(in_context(REPOSITORY / path) for path in copied)
    assert {path for path in copied if (REPOSITORY / path).is_file()} | {"saga_fast"} == set(copied)
    needed = {*PROJECT["license-files"], "README.md", "pyproject.toml", "setup.py", "saga_fast"}
    assert needed <= set(copied)
    assert in_context(REPOSITORY / "saga_fast" / "configs" / "demo.yaml")
    for path in ("tests", "runs/demo/last.pt", ".git", "saga_fast/__pycache__/cli.pyc", "tools/golden.py"):
        assert not in_context(REPOSITORY / path), path


def test_dockerfile_names_what_exists() -> None:
    parts = instructions()
    assert parts[0] == ("ARG", "BASE=python:3.11-slim")
    assert parts[1] == ("FROM", "${BASE}")
    assert int(dict(parts)["USER"]) > 0
    assert dict(parts)["ENTRYPOINT"] == '["saga-fast"]' and "saga-fast" in PROJECT["scripts"]
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    for extras in re.findall(r"EXTRAS=([\w,]+)", text):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    scripts = re.findall(r"/src/(tools/\S+\.sh)", text)
    assert scripts and all(os.access(REPOSITORY / script, os.X_OK) for script in scripts)


@pytest.fixture
def bare_system(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose only programs are an apt-get that writes what it is told, and ``id``."""
    for name, command in (("apt-get", f"echo $* >> {tmp_path}/apt.log"), ("id", "echo 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": str(tmp_path)}


@pytest.mark.parametrize(("arguments", "programs"), [((), "chromium"), (("runtime",), "python3-dev python3-venv")])
def test_system_packages(
    bare_system: dict[str, str], tmp_path: Path, arguments: tuple[str, ...], programs: str
) -> None:
    script = REPOSITORY / "tools" / "system-packages.sh"
    assert subprocess.run([script, *arguments], env=bare_system, stdout=subprocess.PIPE).returncode == 0
    installed = (tmp_path / "apt.log").read_text().splitlines()[-1]
    assert installed.endswith(f"g++ pkg-config libopencv-dev libturbojpeg0-dev {programs}")
    ran = subprocess.run([script, "rumtime"], env=bare_system, capture_output=True)
    assert (ran.returncode, ran.stderr.startswith(b"usage: ")) == (2, True)


# ---------------------------------------------------------------- workflow


def steps() -> list[dict[str, Any]]:
    return [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_workflow_runs_what_exists() -> None:
    words = [word for step in steps() for word in step.get("run", "").split() if re.match(r"(tools|\.ci)/", word)]
    assert set(words) == {"tools/system-packages.sh", ".ci/run", "tools/check_release.py"}
    assert all((REPOSITORY / word).is_file() for word in words)
    assert "mkdocs build --strict" in [step.get("run") for step in steps()]
    (pages,) = [step["with"]["path"] for step in steps() if "upload-pages-artifact" in step.get("uses", "")]
    assert f"site_dir: {pages}\n" in (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_python_is_tried() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert WORKFLOW["jobs"]["package"]["strategy"]["matrix"]["python-version"] == PYTHONS
    assert f"PYTHONS ?= {' '.join(f'python{version}' for version in PYTHONS)}\n" in makefile
