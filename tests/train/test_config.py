"""Reading experiments: what a YAML file and overrides become, and the one line that says what is wrong."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from saga_fast.attention.config import AttentionConfig
from saga_fast.config import CheckpointConfig, TrainConfig
from saga_fast.config_file import config_from_dict, config_to_dict, load_config
from saga_fast.errors import SagaError
from saga_fast.methods.mocov2 import MoCoV2Config
from saga_fast.methods.simclr import SimCLRConfig

Values = Callable[[], dict[str, Any]]


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(SagaError) as caught:
        config_from_dict(values, where="my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message.removeprefix("my.yaml: ")


def put(values: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """Set a nested key in place."""
    *parents, last = dotted.split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[last] = value
    return values


def test_minimal_config_has_defaults() -> None:
    values = {"out": "o", "method": {"name": "mocov2"}, "data": {"train": "t"}, "plain": {"epochs": 1}}
    config = config_from_dict(values, where="x")
    assert config.method == MoCoV2Config()
    assert config.attention == AttentionConfig()
    assert config.checkpoint == CheckpointConfig(keep_every=None)
    assert (config.batch_size, config.precision, config.data.engine) == (256, "fp32", "folder")


@pytest.mark.parametrize(
    "key",
    [
        "epochs",
        "crop.sise",
        "method.tau",
        "data.root",
        "encoder.width",
        "photometric.blur_sigmas",
        "optimizer.lr",
        "plain.learning_rate",
        "attention.views_per_image",
        "evaluate.ks",
        "checkpoint.every",
        "data.generate.number",
    ],
)
def test_unknown_key_is_named(tiny_values: Values, key: str) -> None:
    message = refusal(put(tiny_values(), key, 3))
    assert message.startswith(f"unknown key {key};")
    assert all(field.name in message for field in fields(TrainConfig))


def test_all_unknown_keys_are_named(tiny_values: Values) -> None:
    message = refusal(put(put(tiny_values(), "batchsize", 3), "crop.sise", 4))
    assert {"batchsize", "crop.sise"} == set(message.split(";")[0].removeprefix("unknown key ").split(", "))


def test_misspelt_key_is_named_before_what_it_leaves_unset() -> None:
    values = {"out": "o", "method": {"name": "simclr"}, "data": {"train": "t"}, "plain": {"epoch": 1}}
    assert "plain.epoch;" in refusal(values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", "many"),
        ("batch_size", 2.5),
        ("batch_size", [8]),
        ("crop.size", "large"),
        ("crop.scale", 0.5),
        ("crop.scale", [0.1, 0.2, 0.3]),
        ("plain.lr", "fast"),
        ("plain.epochs", None),
        ("saga.milestones", 3),
        ("method.temperature", "warm"),
        ("method", "simclr"),
        ("data", "images/train"),
        ("data.threads", "all"),
        ("encoder.args", 3),
        ("encoder.stem", "tiny"),
        ("photometric.flip", "often"),
        ("attention", "self"),
        ("attention.views", "both"),
        ("attention.period", 1.5),
        ("evaluate.k", 20),
        ("precision", "fp8"),
        ("channels_last", "perhaps"),
        ("device", "tpu"),
    ],
)
def test_wrong_type_names_key_and_value(tiny_values: Values, key: str, value: Any) -> None:
    message = refusal(put(tiny_values(), key, value))
    assert message.startswith(f"{key}: ")
    assert message.endswith(f", got {value!r}")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("batch_size", 1, "1"),
        ("seed", -1, "-1"),
        ("crop.size", 0, "0"),
        ("crop.scale", [0.5, 0.2], "[0.5, 0.2]"),
        ("crop.scale", [0.5, 1.5], "[0.5, 1.5]"),
        ("crop.ratio", [0, 1], "[0.0, 1.0]"),
        ("method.name", "swav", "'swav'"),
        ("method.temperature", 0, "0.0"),
        ("encoder.name", "renset18", "'renset18'"),
        ("encoder.std", [0.2, 0.2, 0.0], "(0.2, 0.2, 0.0)"),
        ("photometric.flip", 1.5, "1.5"),
        ("optimizer.momentum", 1.0, "1.0"),
        ("plain.lr", 0, "0.0"),
        ("plain.warmup_epochs", 9, "9.0"),
        ("attention.delta", 1.0, "1.0"),
        ("evaluate.k", [5, 0], "[5, 0]"),
        ("evaluate.every", 0, "0"),
        ("data.generate", {"num_train": 3}, "3"),
    ],
)
def test_wrong_value_names_key_and_value(tiny_values: Values, key: str, value: Any, named: str) -> None:
    message = refusal(put(tiny_values(), key, value))
    assert key.split(".")[-1] in message
    assert named in message
    if "." in key:
        assert message.startswith(key.rpartition(".")[0])


def test_method_name_of_the_wrong_type(tiny_values: Values) -> None:
    assert "['simclr']" in refusal(put(tiny_values(), "method.name", ["simclr"]))


@pytest.mark.parametrize("key", ["plain.lr", "saga.final_lr"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rate_must_be_finite(tiny_values: Values, key: str, value: float) -> None:
    assert str(value) in refusal(put(tiny_values(), key, value))


@pytest.mark.parametrize(("method", "key"), [("simclr", "projection_dim"), ("simclr", "hidden_dim")])
def test_projector_must_have_a_width(tiny_values: Values, method: str, key: str) -> None:
    assert "0" in refusal(put(put(tiny_values(), "method", {"name": method}), f"method.{key}", 0))


def test_missing_key_is_named(tiny_values: Values) -> None:
    for key in ("out", "method", "data"):
        values = tiny_values()
        del values[key]
        assert refusal(values) == f"{key}: Field required"
    values = tiny_values()
    del values["data"]["train"]
    assert refusal(values) == "data.train: Field required"


def test_nothing_to_train(tiny_values: Values) -> None:
    assert "at least 1" in refusal(put(put(tiny_values(), "plain.epochs", 0), "saga.epochs", 0))


def test_numbers_that_yaml_takes_for_words(tiny_yaml: Path, tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4, without a point, as a string."""
    path = tmp_path / "c.yaml"
    path.write_text(tiny_yaml.read_text() + "\n")
    assert yaml.safe_load("1e-4") == "1e-4"
    values = yaml.safe_load(path.read_text())
    values["plain"]["lr"] = "1e-4"
    path.write_text(yaml.safe_dump(values).replace("'1e-4'", "1e-4"))
    assert "lr: 1e-4\n" in path.read_text()
    config = load_config(path, ["saga.lr=2e-3", "optimizer.weight_decay=1e-6"])
    assert (config.plain.lr, config.saga.lr, config.optimizer.weight_decay) == (1e-4, 2e-3, 1e-6)


def test_overrides(tiny_yaml: Path) -> None:
    config = load_config(
        tiny_yaml,
        [
            "saga.epochs=7",
            "attention=null",
            "crop.scale=[0.5, 1.0]",
            "out=a=b",
            "checkpoint.keep_every=3",  # a mapping that the file does not have
            "data.generate.kind=digits",
            "method={name: mocov2, queue_size: 5}",
            "method.momentum=0.5",  # later ones see earlier ones
        ],
    )
    assert config.saga.epochs == 7
    assert config.attention is None
    assert config.crop.scale == (0.5, 1.0)
    assert config.out == "a=b"
    assert config.checkpoint.keep_every == 3
    assert config.data.generate is not None
    assert config.data.generate.kind == "digits"
    assert config.method == MoCoV2Config(queue_size=5, momentum=0.5)
    untouched = load_config(tiny_yaml)
    assert (config.plain, config.encoder, config.seed) == (untouched.plain, untouched.encoder, untouched.seed)
    assert isinstance(untouched.method, SimCLRConfig)


def test_override_fills_what_null_emptied(tiny_yaml: Path) -> None:
    config = load_config(tiny_yaml, ["attention=null", "attention.views=union"])
    assert config.attention == AttentionConfig(views="union")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("saga.epochs", "'saga.epochs'"),
        ("=3", "'=3'"),
        ("saga.epochs=[1", "'saga.epochs=[1'"),
        ("batch_size.x=3", "'batch_size.x'"),
        ("crop.sise=3", "unknown key crop.sise"),
        ("new.deep.key=3", "unknown key new"),
        ("saga.epochs=few", "saga.epochs: "),
    ],
)
def test_bad_overrides_are_named(tiny_yaml: Path, override: str, words: str) -> None:
    with pytest.raises(SagaError) as caught:
        load_config(tiny_yaml, [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"out: [1, 2\nmethod: }", "is not YAML"),
        (b"out: \xff\xfe", "is not YAML"),
        (b"", "expected keys and values, got NoneType"),
        (b"- out\n- method\n", "expected keys and values, got list"),
        (b"just words", "expected keys and values, got str"),
    ],
)
def test_file_that_is_no_config(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(SagaError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SagaError, match=f"cannot read the config {tmp_path / 'none.yaml'}: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(SagaError, match=f"cannot read the config {tmp_path}: Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["attention=null", "evaluate=null"],
        ["method={name: mocov2, queue_size: 7}", "saga={epochs: 3, schedule: step, milestones: [1, 2]}"],
        [
            "data.generate={kind: digits}",
            "encoder.args={channels: [8, 8, 16, 24], drop_path_rate: null, drop_rate: 1.0e-05}",
        ],
    ],
)
def test_round_trip(tiny_yaml: Path, tmp_path: Path, changes: list[str]) -> None:
    config = load_config(tiny_yaml, changes)
    values = config_to_dict(config)
    assert config_from_dict(values, where="x") == config
    # Also through a file, which is what a run folder's config.yaml is.
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    assert load_config(path) == config
    assert config_to_dict(load_config(path)) == values


def test_round_trip_notices_a_difference(tiny_yaml: Path) -> None:
    config = load_config(tiny_yaml)
    assert config_to_dict(config) != config_to_dict(replace(config, seed=1))
