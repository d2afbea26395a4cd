"""Configs that nobody would write by hand: refused in one line, at once, without gigabytes."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict, config_to_dict, load_config
from saga_fast.errors import SagaError
from saga_fast.runtime.strict_yaml import read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

TEXTS = {
    "aliases": (BOMB, "aliases"),
    "aliases in a known key": (BOMB + "evaluate: {k: *i}\n", "aliases"),
    "an alias of itself": ("&a [*a]", "aliases"),
    "a merge": ("a: &a {b: 1}\nc:\n  <<: *a\n", "aliases"),
    "deep lists": ("[" * 100_000, "deep"),
    "deep mappings": ("{a: " * 5_000 + "1" + "}" * 5_000, "deep"),
    "deep blocks": ("".join(" " * n + "a:\n" for n in range(1200)), "deep"),
    "too long": ("a: " + "x" * 2**21, "characters"),
    "a number of 5000 digits": ("seed: " + "9" * 5000, "not YAML"),
    "a number of 100 bits": ("seed: 1267650600228229401496703205376", "64 bits"),
    "infinity": ("batch_size: .inf", "finite"),
    "not a number": ("plain: {lr: .nan}", "finite"),
    "no date": ("out: 2020-99-99", "not YAML"),
    "a tag": ("out: !!python/object/apply:os.system [ls]", "not YAML"),
    "a key that is a list": ("? [1]\n: 2", "not YAML"),
    "control characters": ("out: \x07", "not YAML"),
    "two documents": ("a: 1\n---\nb: 2", "not YAML"),
    "bare binary": ("out: 0b", "not YAML|Field required|unknown"),
    "keys that are no words": ("5: 1\nnull: 2", "unknown key 5, None"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_refused_in_one_line_and_at_once(name: str, tmp_path: Path, tiny_yaml: Path) -> None:
    text, words = TEXTS[name]
    (tmp_path / "c.yaml").write_text(text)
    begin = time.perf_counter()
    with pytest.raises(SagaError, match=words) as error:
        load_config(tmp_path / "c.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000
    assert time.perf_counter() - begin < 20.0
    with pytest.raises(SagaError) as error:
        load_config(tiny_yaml, [f"method={text}"])
    assert "\n" not in str(error.value)


def test_not_utf8(tmp_path: Path) -> None:
    for data in (b"out: \xff\xfe", "out: x".encode("utf-16"), b"\x80\x04\x95"):
        (tmp_path / "c.yaml").write_bytes(data)
        with pytest.raises(SagaError, match="not YAML"):
            load_config(tmp_path / "c.yaml")


def test_what_we_write_holds_no_alias(tiny_yaml: Path) -> None:
    config = load_config(tiny_yaml)
    assert config_from_dict(read_yaml(yaml.safe_dump(config_to_dict(config))), where="again") == config


KEYS = st.sampled_from(
    [*TrainConfig.__dataclass_fields__, "name", "train", "epochs", "lr", "k", "scale", "views", "generate", "args", "x"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["simclr", "mocov2", "cmc", "folder", "att", "sgd", "adamw", "lars", "resnet50", "auto", "1e-3"])
    | st.dates()
    | st.binary(max_size=5)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_mapping_is_a_config_or_refused_in_one_line(values: dict[str, Any]) -> None:
    try:
        config_from_dict(values, where="c")
    except SagaError as error:
        assert "\n" not in str(error)


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(KEYS, KEYS, VALUES)
def test_any_value_in_a_good_config(key: str, below: str, value: Any) -> None:
    for put in ({key: value}, {key: {below: value}}):
        values = {"out": "o", "method": {"name": "simclr"}, "data": {"train": "t"}, "plain": {"epochs": 1}, **put}
        try:
            config = config_from_dict(values, where="c")
        except SagaError as error:
            assert "\n" not in str(error)
        else:
            config_to_dict(config)


@settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.text(max_size=200))
def test_any_text_is_yaml_or_refused(text: str) -> None:
    try:
        read_yaml(text)
    except ValueError:
        return
