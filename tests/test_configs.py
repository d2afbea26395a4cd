"""Every experiment that ships can be read and its network built."""

from importlib.resources import files
from pathlib import Path

import pytest

from saga_fast.config_file import config_from_dict, config_to_dict, load_config
from saga_fast.loaders import ENGINES
from saga_fast.methods import METHODS, build_method
from saga_fast.runtime.metrics import read_metrics
from saga_fast.train.cycle import train

ROOT = Path(str(files("saga_fast.configs")))
CONFIGS = sorted(ROOT.rglob("*.yaml"))


def test_configs_are_found() -> None:
    assert ROOT / "demo.yaml" in CONFIGS


PAPER = {
    "imagenet/cmc": (280, 60),
    "imagenet/insdis": (200, 60),
    "imagenet/moco": (200, 60),
    "imagenet/mocov2": (200, 60),
    "imagenet/pirl": (200, 60),
    "imagenet100/invspread": (160, 80),
    "imagenet100/simclr": (160, 80),
}
"""Epochs of the two phases in SAGA's tables."""

SMALL = {
    "insdis": ["method.negatives=16"],
    "pirl": ["method.negatives=16", "method.jigsaw_size=24", "method.jigsaw_patch=7"],
    "cmc": ["method.negatives=16"],
    "moco": ["method.queue_size=16"],
    "mocov2": ["method.queue_size=16"],
    "byol": ["method.hidden_dim=16"],
    "dino": ["method.prototypes=16", "method.hidden_dim=16", "method.local_size=12"],
}


def small(name: str) -> list[str]:
    """Overrides that leave everything of an experiment as it is but its size."""
    config = load_config(ROOT / f"{name}.yaml")
    saga = ["saga.milestones=[1]"] if config.saga.schedule == "step" else []
    return [
        *SMALL.get(config.method.name, []),
        *saga,
        "encoder={name: resnet18, stem: small, args: {layers: [1, 1, 1, 1], channels: [8, 8, 8, 16]}}",
        "crop.size=16",
        "batch_size=20",  # of 41 images: two steps an epoch
        "plain.epochs=1",
        "plain.warmup_epochs=0",
        "saga.epochs=1",
        "evaluate.k=[5]",
        "data.classes=null",
    ]


@pytest.mark.parametrize("name", PAPER)
def test_papers_experiments_take_steps(name: str, images: Path, tmp_path: Path) -> None:
    """Both phases, the renewal between them and the evaluations, with the experiment's own method and recipe."""
    config = load_config(ROOT / f"{name}.yaml")
    assert (config.plain.epochs, config.saga.epochs) == PAPER[name]
    assert config.attention is not None and (config.attention.period, config.attention.delta) == (10, 0.7)
    data = [f"data.train={images / 'train'}", f"data.val={images / 'val'}", f"out={tmp_path / 'run'}"]
    train(load_config(ROOT / f"{name}.yaml", [*small(name), *data]))
    rows = read_metrics(tmp_path / "run")
    assert [row["kind"] for row in rows].count("epoch") == 2
    assert [row["epoch"] for row in rows if row["kind"] == "renewal"] == [1]
    assert all(row["lr"] > 0.0 for row in rows if row["kind"] == "epoch")


@pytest.mark.parametrize("name", [*PAPER, "demo"])
def test_recipe_differs_in_its_attention_alone(name: str) -> None:
    paper, plus = (config_to_dict(load_config(ROOT / f"{name}{ending}.yaml")) for ending in ("", "_plus"))
    recipe = {"views": "paste", "share": 0.7, "score": "background", "region": "largest", "delta": 0.6}
    assert {key: plus["attention"][key] for key in recipe} == recipe
    assert plus["attention"]["input_size"] == 1.5 * plus["crop"]["size"]
    for key in ("out", "attention", *(["checkpoint"] if name == "demo" else [])):
        del paper[key], plus[key]
    assert paper == plus


@pytest.mark.parametrize("name", PAPER)
def test_papers_experiments_say_where_their_numbers_come_from(name: str) -> None:
    text = (ROOT / f"{name}.yaml").read_text()
    assert "attention=null" in text and "Table" in text
    for key in ("method:", "crop:", "photometric:", "optimizer:", "plain:", "saga:", "attention:"):
        line = next(number for number, words in enumerate(text.splitlines()) if words.startswith(key))
        assert "#" in "".join(text.splitlines()[max(line - 3, 0) : line + 3]), f"{key} cites nothing"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_config_loads_and_builds(path: Path) -> None:
    config = load_config(path)
    assert config_from_dict(config_to_dict(config), where="again") == config
    assert config.data.engine in ENGINES
    model = build_method(config.method, config.encoder, num_images=8)
    assert type(model) is METHODS[config.method.name]
    assert any(parameter.requires_grad for parameter in model.parameters())
