"""The documentation: commands that run, a reference that is current, pages that build without a warning.

Every ``sh`` and ``python`` block of the README and the tutorial is run in order in a scratch folder, where
``configs/demo.yaml`` has the numbers of ``saga-fast demo --tiny`` and ``photos/`` a few images.
"""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from saga_fast.cli import main
from saga_fast.config_file import config_to_dict, load_config
from saga_fast.demo.run import TINY

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
RUN = ("README.md", "docs/tutorial.md")
NOT_RUN = {
    "source .venv/bin/activate": "the tests' interpreter is active already",
    "tensorboard --logdir runs": "a server that does not end",
    "sudo apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev": "installs",
    "pip install 'saga-fast[ffcv]'": "installs",
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
    "saga-fast profile loaders --data photos/train photos/train.beton": "measures for minutes",
    "saga-fast profile att --ckpt runs/mine/last.pt --images 1281167": "measures for minutes",
    "saga-fast export runs/saga/last.pt --to moco --out encoder.pth.tar": "needs a ResNet-50, the tiny one has no name",
    "saga-fast export runs/saga/last.pt --to torchvision --out encoder.safetensors": "needs a network of torchvision's",
}
"""Commands that these tests leave out, each with its reason; one that no page names any more is an error."""
INSTEAD = {"make demo": "saga-fast demo --tiny"}
"""What stands for a command: the same at tiny size."""


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
    tiny = load_config(REPOSITORY / "configs" / "demo.yaml", TINY)
    (tmp_path / "configs" / "demo.yaml").write_text(yaml.safe_dump(config_to_dict(tiny)))
    make_images(tmp_path / "photos" / "train", per_class=20)
    make_images(tmp_path / "photos" / "val", seed=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
            if program == "cp":
                shutil.copy(*arguments)
            else:
                assert program == "saga-fast", f"neither run nor listed in NOT_RUN: {command}"
                assert main(arguments) == 0, command
            ran += 1
    assert ran >= 8
    assert (scratch / "report.html").is_file()


def test_every_command_is_in_a_block_that_is_run() -> None:
    """No command hides in a block without a language, and the exceptions are no more than needed."""
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


def test_configuration_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("config_reference", REPOSITORY / "tools" / "config_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPOSITORY / "docs" / "config.md").read_text() == module.reference(), "run `make docs`"


def test_pages_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    pages = {path.name for path in (tmp_path / "site").glob("*.html")} - {"404.html"}
    assert pages == {path.with_suffix(".html").name for path in PAGES}
    assert (tmp_path / "site" / "data-flow.svg").is_file()
