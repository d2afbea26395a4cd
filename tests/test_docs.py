"""The documentation: commands that run, references that are current, pages that build without a warning.

The ``sh`` and ``python`` blocks of the pages in RUN are run in order in a scratch folder: the shipped configs are those
of ``saga-fast demo --tiny``, its ``photos/`` has a few images. The notebook is run as it is.
"""

import functools
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from saga_fast import configs
from saga_fast.cli import main
from saga_fast.config_file import config_to_dict, load_config
from saga_fast.demo.run import TINY
from saga_fast.version import __version__

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
NOTEBOOKS = sorted((REPOSITORY / "docs").glob("*.ipynb"))
RUN = {"README.md": 5, "docs/tutorial.md": 15, "docs/engines.md": 3, "docs/python.md": 6}
"""Page -> number of its commands and Python blocks that are run."""
NOT_RUN = {
    "source .venv/bin/activate": "the tests' interpreter is active already",
    "tensorboard --logdir runs": "a server that does not end",
    "sudo apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev": "installs",
    **dict.fromkeys(
        ("pip install 'saga-fast[ffcv]'", "pip install '.[demo]'", "pip install 'saga-fast[remote,hf]'"), "installs"
    ),
    **dict.fromkeys(
        (
            "saga-fast train --config my.yaml --set 'data.train=s3://bucket/{00000..01281}.tar'",
            "saga-fast build-att --ckpt runs/saga/last.pt --data 'https://example.org/{train,extra}.tar'",
            "saga-fast pack 'gs://bucket/val-*.tar' val.beton",
            "saga-fast show-att att.safetensors --data 'https://example.org/{0..3}.parquet' --out sheet.png"
            " --cache copies",
        ),
        "addresses of nobody; tests/loaders/test_remote.py reads some of its own",
    ),
    "saga-fast train --config my.yaml --set device=cuda": "needs a GPU",
    **dict.fromkeys(
        (
            "saga-fast import moco_v2_200ep_pretrain.pth.tar --out moco.pt --data imagenet/train"
            " --config-out moco.yaml",
            "saga-fast train --config moco.yaml --ckpt moco.pt --out runs/saga",
            "saga-fast build-att --ckpt moco.pt",
        ),
        "ImageNet, and a file to be downloaded",
    ),
    "saga-fast reproduce table2 --seeds 1 --methods simclr --dry-run": "tests/reproduce runs it at tiny size",
    "saga-fast profile loaders --data photos/train photos/train.beton": "measures for minutes",
    "saga-fast profile att --ckpt runs/packed/last.pt --images 1281167": "measures for minutes",
    "saga-fast export runs/saga/last.pt --to moco --out encoder.pth.tar": "needs a ResNet-50, the tiny one has no name",
    "saga-fast export runs/saga/last.pt --to torchvision --out encoder.safetensors": "needs a network of torchvision's",
}
"""Commands that these tests leave out, each with its reason; one that is on no page is an error."""
INSTEAD = {"make demo": "saga-fast demo --tiny"}
"""Command -> the same at tiny size, which is run instead."""


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(content: str) -> list[str]:
    """The command lines of a block: continued lines joined, comments and blank lines left out."""
    joined = content.replace("\\\n", " ")
    parsed = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [shlex.join(parts) for parts in parsed if parts]


@pytest.fixture
def scratch(make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are run in."""
    (tmp_path / "configs").mkdir()
    for name in ("demo.yaml", "demo_plus.yaml"):
        tiny = load_config(REPOSITORY / "configs" / name, TINY)
        (tmp_path / "configs" / name).write_text(yaml.safe_dump(config_to_dict(tiny)))
    monkeypatch.setattr(configs, "ROOT", tmp_path / "configs")
    make_images(tmp_path / "photos" / "train", per_class=20)
    make_images(tmp_path / "photos" / "val", seed=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_commands_run(page: str, scratch: Path) -> None:
    ran = 0
    for language, content in blocks((REPOSITORY / page).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(content, page, "exec"), {})
            ran += 1
        for command in commands(content) if language == "sh" else []:
            if command in NOT_RUN:
                continue
            program, *arguments = shlex.split(INSTEAD.get(command, command))
            assert program == "saga-fast", f"neither run nor listed in NOT_RUN: {command}"
            assert main(arguments) == 0, command
            ran += 1
    assert ran == RUN[page]
    assert any(scratch.rglob("last.pt"))


def test_every_command_is_in_a_block_that_is_run() -> None:
    """No command is in a block without a language, and no exception is superfluous."""
    listed = set()
    for path in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *PAGES):
        for language, content in blocks(path.read_text(encoding="utf-8")):
            if language == "sh":
                listed |= {command for command in commands(content) if command in NOT_RUN}
                page = path.relative_to(REPOSITORY).as_posix()
                assert page in RUN or set(commands(content)) <= NOT_RUN.keys(), page
            elif path.name != "CONTRIBUTING.md":
                assert not re.search(r"^(saga-fast|make|pip) ", content, re.MULTILINE), path.name
    assert listed == NOT_RUN.keys()


@functools.cache
def help_of(command: str) -> str:
    """What ``saga-fast COMMAND --help`` prints."""
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit, match=r"^0$"):
        main([*command.split(), "--help"])
    return out.getvalue()


def test_every_option_exists() -> None:
    """Options of the commands that pages, scripts and configs name, in running text, tables and blocks."""
    commands = re.findall(r"^ {4}([a-z]\S*)", help_of(""), re.MULTILINE)
    assert {"train", "build-att", "eval"} <= set(commands)
    named = re.compile(rf"(?:saga-fast|-m saga_fast) ({'|'.join(commands)})( [a-z]+)?\b([^`\n]*)")
    files = [REPOSITORY / "Dockerfile", REPOSITORY / "Makefile", *REPOSITORY.glob("*.md"), *PAGES, *NOTEBOOKS]
    options = set()
    for path in [*files, *REPOSITORY.glob("examples/*"), *configs.ROOT.rglob("*.yaml")]:
        for command, part, rest in named.findall(path.read_text(encoding="utf-8").replace("\\\n", " ")):
            whole = command + part if command in ("eval", "profile") else command
            options |= {(path.name, whole, option) for option in re.findall(r"(?<=[ [])--[a-z][a-z-]*", rest)}
    assert {page for page, *_ in options} >= {"README.md", "tutorial.md", "slurm.sh", "skypilot.yaml"}
    for page, command, option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(command)), f"{page}: {command} has no {option}"


def test_notebook_runs(tmp_path: Path) -> None:
    """Its code cells, one after the other in a process; the committed file has no outputs."""
    cells = json.loads((REPOSITORY / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    script = "\n".join("".join(cell["source"]) for cell in code)
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = re.search(r"true boxes: (0\.\d+)\n480 features of 128 numbers, 1-NN accuracy (\d+)%", ran.stdout)
    assert said
    assert float(said[1]) > 0.2
    assert int(said[2]) > 2 * 100 / 12, "12 classes"
    assert {path.name for path in (tmp_path / "quickstart").iterdir()} == {
        *("data", "run", "boxes.safetensors", "boxes.png")
    }


@pytest.fixture
def config_reference() -> ModuleType:
    """tools/config_reference.py."""
    spec = importlib.util.spec_from_file_location("config_reference", REPOSITORY / "tools" / "config_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_references_are_current(config_reference: ModuleType) -> None:
    config, python = (REPOSITORY / "docs" / name for name in ("config.md", "python.md"))
    assert config.read_text(encoding="utf-8") == config_reference.config_page(), "run `make docs`"
    text = python.read_text(encoding="utf-8")
    assert text == config_reference.python_page(text), "run `make docs`"
    assert {part[2] for part in config_reference.PART.finditer(text)} == set(config_reference.OPTIONS)


def test_version_is_the_same_everywhere() -> None:
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    latest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert latest
    assert latest[1] == citation["version"] == __version__


def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "WARNING" not in ran.stderr
    pages = {path.name for path in (tmp_path / "site").glob("*.html")} - {"404.html"}
    assert pages == {path.with_suffix(".html").name for path in (*PAGES, *NOTEBOOKS)}
    notebook = (tmp_path / "site" / "quickstart.html").read_text(encoding="utf-8")
    assert "build_box_table(model, loader, options)" in notebook and 'href="python.html"' in notebook
    assert 'href="quickstart.html"' in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "data-flow.svg").is_file()
