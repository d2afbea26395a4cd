"""The config's attention, and the options of a pass."""

from typing import Any

import pytest

from saga_fast.attention import AttentionConfig, AttentionPass


@pytest.mark.parametrize(
    ("field", "value"),
    [("period", 0), ("delta", 1.0), ("delta", -0.1), ("share", 1.1), ("min_side", -0.5)],
)
def test_config_refuses(field: str, value: float) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=rf"{field} .*{value}"):
        AttentionConfig(**arguments)


def test_config_accepts_the_ends_of_the_ranges() -> None:
    config = AttentionConfig(period=1, delta=0.0, share=1.0, min_side=1.0)
    assert (config.share, config.min_side) == (1.0, 1.0)


@pytest.mark.parametrize(("field", "value"), [("delta", 1.0), ("delta", -0.1), ("size", 0)])
def test_attention_pass_refuses(field: str, value: float) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=rf"{field} .*{value}"):
        AttentionPass(**arguments)


def of_training(config: AttentionConfig) -> AttentionPass:
    return config.attention_pass(size=48, precision="bf16", channels_last=True)


def test_attention_pass_of_a_config() -> None:
    """Values that the config leaves open are those of training."""
    assert of_training(AttentionConfig()) == AttentionPass(size=48, precision="bf16", channels_last=True)
    config = AttentionConfig(input_size=96, precision="fp32", score="background", mirror=True, delta=0.6)
    expected = AttentionPass(size=96, score="background", mirror=True, delta=0.6, channels_last=True)
    assert of_training(config) == expected
