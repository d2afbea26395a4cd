"""Nothing that is read runs code: no pickle, in any of the forms that libraries offer it."""

import ast
from collections.abc import Collection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "saga_fast").rglob("*.py"))

EXCEPTION = {"pickle.UnpicklingError", "import pickle"}
ALLOWED = {"saga_fast/checkpoint.py": EXCEPTION, "saga_fast/importers/reading.py": EXCEPTION}

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "__import__", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.jit.load"}


def findings(source: str, allowed: Collection[str] = ()) -> list[str]:
    """What may run code, as ``line: what``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            of = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [(node.lineno, f"import {name}") for name in of if name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in MODULES:
            found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _call(node)]
    return [f"{line}: {what}" for line, what in found if what not in allowed]


def _call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    loader = options.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "")
    wrong = {
        "torch.load": options.get("weights_only") != "True",
        "np.load": options.get("allow_pickle", "False") != "False",
        "numpy.load": options.get("allow_pickle", "False") != "False",
        "yaml.load": loader not in ("_Loader", "yaml.SafeLoader", "yaml.CSafeLoader"),
    }
    return [name] if name in CALLS or wrong.get(name) else []


@pytest.mark.parametrize("file", FILES)
def test_no_file_reads_pickle(file: str) -> None:
    assert findings((ROOT / file).read_text(encoding="utf-8"), ALLOWED.get(file, set())) == []


def test_the_loader_of_yaml_is_a_safe_one() -> None:
    import yaml

    from saga_fast.runtime.strict_yaml import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    assert _Loader.yaml_constructors == yaml.SafeLoader.yaml_constructors


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.memory",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t)",
        "yaml.load(t, yaml.Loader)",
        "yaml.unsafe_load(t)",
        "x = pickle.loads",
        "eval('1')",
    ],
)
def test_the_check_finds(source: str) -> None:
    assert len(findings(source)) == 1
