"""The package order of the design: a package may import those before it, and no two files import each other."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "saga_fast"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

ORDER = (
    *("version", "errors", "runtime", "kernels", "loaders", "models", "methods", "attention"),
    *("optim", "config", "config_file", "checkpoint", "export", "evaluate", "report", "train"),
    *("profile", "importers", "configs", "demo", "reproduce", "cli", "__main__"),
)
"""Packages and modules at the top of saga_fast. Each may import those before it, and itself."""

FORBIDDEN = {"loaders": {"models", "methods"}, "kernels": {"runtime"}, "models": {"loaders"}}
"""Imports that the order would allow: kernels open no files, loaders know no model, models no images."""

FACADE = "__init__"
"""``saga_fast`` itself offers names to users. Importing it from inside would close a circle."""

ENGINES = {"nvidia.dali": "dali", "ffcv": "ffcv", "triton": "triton"}
"""Optional packages, each imported only in files whose path says so."""

MODELS = ("torch.nn", "torch.optim", "torchvision.models", "timm", "lightly")
KERNELS_SEE = {"numpy", "numba", "llvmlite", "torch", "triton"}  # llvmlite: Numba's own intrinsics
KERNELS_STANDARD_LIBRARY = {
    *("__future__", "collections", "colorsys", "dataclasses", "functools", "itertools", "math"),
    *("threading", "typing", "warnings"),
}
"""Nothing that opens a file, reads the environment or starts a process."""
KERNELS_FILES = "kernels/_cache.py"
"""The exception: the files of compiled kernels."""


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
    """The wrong imports of a file, whose path is relative to the package."""
    top = PurePosixPath(path).with_suffix("").parts[0]
    rank = len(ORDER) if top == FACADE else ORDER.index(top)
    wrong = []
    for line, module in imported(path, source):
        root, _, rest = module.partition(".")
        if root == "saga_fast":
            name = rest.partition(".")[0]
            if name not in ORDER:
                wrong.append(f"{path}:{line}: {module} is the facade's, import the module that holds it")
            elif ORDER.index(name) > rank or name in FORBIDDEN.get(top, set()):
                wrong.append(f"{path}:{line}: {top} must not import {module}")
        elif top == "kernels" and path != KERNELS_FILES and root not in KERNELS_SEE | KERNELS_STANDARD_LIBRARY:
            wrong.append(f"{path}:{line}: kernels must not import {module}")
        elif top == "loaders" and any(within(module, model) for model in MODELS):
            wrong.append(f"{path}:{line}: loaders must not import a model: {module}")
        for engine, word in ENGINES.items():
            if within(module, engine) and word not in path:
                wrong.append(f"{path}:{line}: {module} outside of the files of {word}")
    return wrong


def file_of(module: str) -> str | None:
    """The file that a module of ours, or a name in it, is imported from; a package's face if it is that."""
    parts = module.split(".")[1:]
    for depth in range(len(parts), 0, -1):
        for path in (f"{'/'.join(parts[:depth])}.py", f"{'/'.join(parts[:depth])}/__init__.py"):
            if path in FILES:
                return path
    return None


def circles(files: Mapping[str, str]) -> list[list[str]]:
    """Groups of files that import each other, by path and source: Tarjan's strongly connected components."""
    arrows = {
        path: {target for _, module in imported(path, source) if (target := file_of(module)) in files} - {path}
        for path, source in files.items()
    }
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(path: str) -> None:
        number[path] = low[path] = len(number)
        stack.append(path)
        for target in sorted(filter(None, arrows[path])):
            if target not in number:
                visit(target)
                low[path] = min(low[path], low[target])
            elif target in stack:
                low[path] = min(low[path], number[target])
        if low[path] == number[path]:
            group = [stack.pop()]
            while group[-1] != path:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for path in files:
        if path not in number:
            visit(path)
    return found


@pytest.mark.parametrize("path", FILES)
def test_imports_follow_the_order(path: str) -> None:
    assert violations(path, (PACKAGE / path).read_text(encoding="utf-8")) == []


def test_no_files_import_each_other() -> None:
    assert circles({path: (PACKAGE / path).read_text(encoding="utf-8") for path in FILES}) == []


def test_a_circle_is_found() -> None:
    sources = {
        "loaders/plan.py": "from saga_fast.loaders.order import epoch_order",
        "loaders/order.py": "if TYPE_CHECKING:\n    from saga_fast.loaders import batch",
        "loaders/batch.py": "def f():\n    from saga_fast.loaders.plan import Plan",
        "loaders/source.py": "from saga_fast.loaders.plan import Plan",
    }
    assert circles(sources) == [["loaders/batch.py", "loaders/order.py", "loaders/plan.py"]]


def test_every_package_has_its_place() -> None:
    tops = {PurePosixPath(path).with_suffix("").parts[0] for path in FILES}
    assert tops == {*ORDER, FACADE}
    root = [path for path in FILES if "/" not in path]
    assert len(root) <= 10, root  # nine modules and the facade


WRONG = [
    ("kernels/philox.py", "from saga_fast.loaders import BoxTable"),
    ("kernels/augment/__init__.py", "from ...loaders.batch import Batch"),
    ("kernels/augment/_numba.py", "from saga_fast import loaders"),
    ("kernels/philox.py", "import saga_fast.runtime.files"),
    ("kernels/philox.py", "from saga_fast.runtime.files import sha256"),
    ("kernels/philox.py", "import pydantic"),
    ("kernels/philox.py", "from yaml import safe_load"),
    ("kernels/philox.py", "from pathlib import Path"),
    ("kernels/philox.py", "def f():\n    import timm"),
    ("kernels/augment/_numba.py", "import triton"),
    ("kernels/augment/_numba.py", "import triton.language as tl"),
    ("loaders/core.py", "from saga_fast.methods import Method"),
    ("loaders/core.py", "from saga_fast.models.encoder import Encoder"),
    ("loaders/core.py", "from ..attention import build_box_table"),
    ("loaders/core.py", "import timm"),
    ("loaders/core.py", "from torch import nn"),
    ("loaders/core.py", "import torch.nn.functional as F"),
    ("loaders/core.py", "import torch\nx: torch.nn.Module"),
    ("loaders/core.py", "import torchvision.models"),
    ("loaders/core.py", "from nvidia import dali"),
    ("loaders/core.py", "import nvidia.dali.fn as fn"),
    ("loaders/dali/engine.py", "import ffcv"),
    ("loaders/core.py", "from ffcv.loader import Loader"),
    ("models/encoder.py", "from saga_fast.loaders import Batch"),
    ("methods/simclr.py", "from saga_fast.cli import main"),
    ("attention/build.py", "from saga_fast.config import TrainConfig"),
    ("attention/build.py", "from saga_fast.__main__ import main"),
    ("evaluate/knn.py", "if TYPE_CHECKING:\n    from saga_fast.train.cycle import train"),
    ("report/runs.py", "from saga_fast.profile.figures import Row"),
    ("train/cycle.py", "if True:\n    from saga_fast.cli.train import add_parser"),
    ("train/cycle.py", "from saga_fast import load_model"),
    ("train/cycle.py", "import saga_fast"),
    ("errors.py", "from saga_fast.runtime.files import write_text"),
    ("runtime/files.py", "from saga_fast.kernels import augment"),
    ("version.py", "from . import errors"),
]


@pytest.mark.parametrize(("path", "source"), WRONG)
def test_a_wrong_import_is_found(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kernels/augment/_triton.py", "import triton.language as tl\nfrom saga_fast.errors import SagaError"),
        ("loaders/dali/engine.py", "from nvidia.dali import fn"),
        ("loaders/ffcv/decoder.py", "from ffcv.fields import Field\nfrom ..plan import Plan"),
        (
            "loaders/core.py",
            "from saga_fast.kernels.philox import draw\nfrom saga_fast.runtime.files import write_text",
        ),
        ("train/cycle.py", "from saga_fast import attention\nfrom saga_fast.methods import Method"),
        ("cli/__init__.py", "from saga_fast.cli import train\nfrom saga_fast.train.cycle import train as run"),
        ("__init__.py", "def f():\n    from saga_fast.checkpoint import load_model"),
    ],
)
def test_a_right_import_is_not(path: str, source: str) -> None:
    assert violations(path, source) == []


@pytest.mark.parametrize("name", ["kernels", "loaders", "configs"])
def test_the_top_level_shows_the_parts(name: str) -> None:
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
