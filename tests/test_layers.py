"""The arrows of DESIGN 3, read from the imports: kernels <- loaders <- methods, attention, evaluate, train <- cli."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "saga_fast"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

LEAVES = {"errors", "files", "version"}
"""Modules that anyone may import and that import nothing of ours."""

LAYERS = {"kernels": 0, "loaders": 1, "cli": 3, "__main__": 4}
MIDDLE = 2
"""Everything else: methods, attention, evaluate, train and what they share."""

FACADE = 4
"""``saga_fast`` itself offers names of the layers below to users. Importing it at run time would close a circle."""

ENGINES = {"nvidia.dali": "dali", "ffcv": "ffcv", "triton": "triton"}
"""Optional packages, each imported only in files whose path says so."""

MODELS = ("torch.nn", "torch.optim", "torchvision.models", "timm", "lightly")
KERNELS_SEE = {"numpy", "numba", "llvmlite", "torch", "triton"}
KERNELS_STANDARD_LIBRARY = {
    "__future__",
    "collections",
    "colorsys",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "threading",
    "typing",
    "warnings",
}
"""Nothing that opens a file, reads the environment or starts a process."""


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also in functions and under TYPE_CHECKING, and of every use of torch.nn."""
    package = ("saga_fast", *PurePosixPath(path).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            # ``from package import name`` may mean a module of the package.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in MODELS:
            yield node.lineno, ast.unparse(node)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of a file, whose path is relative to the package."""
    own = PurePosixPath(path).with_suffix("").parts[0]
    own_layer = FACADE if own == "__init__" else LAYERS.get(own, MIDDLE)
    found = []
    for line, module in imported(path, source):
        top, _, rest = module.partition(".")
        if top == "saga_fast":
            name = rest.partition(".")[0]
            if own in LEAVES and own != name:
                found.append(f"{path}:{line}: {own} is a leaf and imports {module}")
            elif name in LEAVES:
                if name == "files" and own == "kernels":
                    found.append(f"{path}:{line}: kernels know no files: {module}")
            elif not name or not ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()):
                found.append(f"{path}:{line}: {module} is the facade's, import the module that holds it")
            elif LAYERS.get(name, MIDDLE) > own_layer:
                found.append(f"{path}:{line}: {own} must not know {module}")
        elif own == "kernels" and top not in KERNELS_SEE | KERNELS_STANDARD_LIBRARY:
            found.append(f"{path}:{line}: kernels must not import {module}")
        elif own == "loaders" and any(within(module, model) for model in MODELS):
            found.append(f"{path}:{line}: loaders must not import a model: {module}")
        for engine, word in ENGINES.items():
            if within(module, engine) and word not in path:
                found.append(f"{path}:{line}: {module} outside of the files of {word}")
    return found


@pytest.mark.parametrize("path", FILES)
def test_imports_run_the_right_way(path: str) -> None:
    assert violations(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


def test_every_layer_was_read() -> None:
    tops = {PurePosixPath(path).with_suffix("").parts[0] for path in FILES}
    assert tops >= {"__init__", "kernels", "loaders", "methods", "attention", "evaluate", "train", "cli", *LEAVES}


WRONG = [
    ("kernels/philox.py", "from saga_fast.loaders import BoxTable"),
    ("kernels/augment/__init__.py", "from ...loaders.batch import Batch"),
    ("kernels/augment/_numba.py", "from saga_fast import loaders"),
    ("kernels/philox.py", "import saga_fast.files"),
    ("kernels/philox.py", "from saga_fast.files import sha256"),
    ("kernels/philox.py", "import pydantic"),
    ("kernels/philox.py", "from yaml import safe_load"),
    ("kernels/philox.py", "from pathlib import Path"),
    ("kernels/philox.py", "def f():\n    import timm"),
    ("kernels/augment/_numba.py", "import triton"),
    ("kernels/augment/_numba.py", "import triton.language as tl"),
    ("loaders/folder.py", "from saga_fast.methods import Method"),
    ("loaders/folder.py", "from saga_fast.encoder import Encoder"),
    ("loaders/folder.py", "from ..attention import build_box_table"),
    ("loaders/folder.py", "import timm"),
    ("loaders/folder.py", "from torch import nn"),
    ("loaders/folder.py", "import torch.nn.functional as F"),
    ("loaders/folder.py", "import torch\nx: torch.nn.Module"),
    ("loaders/folder.py", "import torchvision.models"),
    ("loaders/folder.py", "from nvidia import dali"),
    ("loaders/folder.py", "import nvidia.dali.fn as fn"),
    ("loaders/dali.py", "import ffcv"),
    ("loaders/folder.py", "from ffcv.loader import Loader"),
    ("methods/simclr.py", "from saga_fast.cli import main"),
    ("attention.py", "from saga_fast.__main__ import main"),
    ("train/cycle.py", "if True:\n    from saga_fast.cli.train import add_parser"),
    ("train/cycle.py", "from saga_fast import load_model"),
    ("train/cycle.py", "import saga_fast"),
    ("errors.py", "from saga_fast.files import write_text"),
    ("files.py", "from saga_fast.kernels import augment"),
    ("version.py", "from . import errors"),
]


@pytest.mark.parametrize(("path", "source"), WRONG)
def test_a_wrong_arrow_is_found(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/augment/_triton.py", "import triton.language as tl\nfrom saga_fast.errors import SagaError"),
        ("loaders/dali.py", "from nvidia.dali import fn"),
        ("loaders/ffcv/decoder.py", "from ffcv.fields import Field\nfrom ..plan import Plan"),
        ("loaders/folder.py", "from saga_fast.kernels.philox import draw\nfrom saga_fast.files import write_text"),
        ("train/cycle.py", "from saga_fast import attention\nfrom saga_fast.methods import Method"),
        ("cli/__init__.py", "from saga_fast.cli import train\nfrom saga_fast.train.cycle import train as run"),
        ("__init__.py", "def f():\n    from saga_fast.checkpoint import load_model"),
    ],
)
def test_a_right_arrow_is_not(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize("name", ["kernels", "loaders", "configs"])
def test_the_repositorys_top_level_shows_the_parts(name: str) -> None:
    link = REPOSITORY / name
    assert link.is_symlink()
    assert link.readlink() == Path("saga_fast") / name
    assert (link / "__init__.py").is_file()


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter holds after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_kernels_load_no_model_library_and_no_configuration() -> None:
    # Numba itself reads its options with yaml where that is installed.
    added = loaded_by("import saga_fast.kernels") - loaded_by("import numba, torch")
    assert "saga_fast" in added
    assert not added & {"timm", "pydantic", "yaml", "torchvision", "safetensors", "PIL", "matplotlib", "tensorboard"}


def test_the_package_alone_is_light() -> None:
    # ``saga-fast --version`` and error messages need no seconds of imports.
    assert not loaded_by("import saga_fast") & {"torch", "numba", "numpy", "timm", "pydantic", "yaml"}
