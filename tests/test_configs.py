"""Every experiment that ships can be read and its network built."""

from importlib.resources import files
from pathlib import Path

import pytest

from saga_fast.loaders import ENGINES
from saga_fast.methods import METHODS, build_method
from saga_fast.train.config import config_from_dict, config_to_dict, load_config

ROOT = Path(str(files("saga_fast.configs")))
CONFIGS = sorted(ROOT.rglob("*.yaml"))


def test_configs_are_found() -> None:
    assert ROOT / "demo.yaml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_config_loads_and_builds(path: Path) -> None:
    config = load_config(path)
    assert config_from_dict(config_to_dict(config), where="again") == config
    assert config.data.engine in ENGINES
    model = build_method(config.method, config.encoder, num_images=8)
    assert type(model) is METHODS[config.method.name]
    assert any(parameter.requires_grad for parameter in model.parameters())
