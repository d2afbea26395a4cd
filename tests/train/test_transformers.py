"""Vision transformers in training: tiny runs with attention, and what is refused before they begin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_folders import rows_of

from saga_fast import load_model
from saga_fast.config_file import config_from_dict
from saga_fast.errors import SagaError
from saga_fast.loaders import BoxTable
from saga_fast.train.cycle import train

SMALL: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "img_size": 16}
VIT: dict[str, Any] = {"name": "vit_tiny_patch16_224", "args": SMALL}
AVG: dict[str, Any] = {"name": VIT["name"], "args": SMALL | {"global_pool": "avg", "reg_tokens": 2}}
MOCO: dict[str, Any] = {"name": "mocov2", "queue_size": 32, "projection_dim": 12}
SHORT: dict[str, Any] = {"plain": {"epochs": 1, "lr": 0.03}, "saga": {"epochs": 2, "lr": 0.02}}

Values = Callable[[], dict[str, Any]]


@pytest.mark.parametrize(
    ("changes", "attention"),
    [
        ({"encoder": VIT}, {"period": 1}),
        ({"encoder": VIT, "method": MOCO, "precision": "bf16"}, {"period": 1, "score": "token", "mirror": True}),
        ({"encoder": AVG, "method": MOCO}, {"period": 1, "score": "background", "region": "largest", "delta": 0.5}),
        ({"encoder": AVG, "channels_last": False}, {"period": 2, "input_size": 32, "renew": "changed"}),
        ({"encoder": VIT, "method": {"name": "cmc", "negatives": 4}}, {"period": 2}),
        ({"encoder": VIT, "method": {"name": "pirl", "negatives": 4, "jigsaw_size": 27, "jigsaw_patch": 8}}, {}),
    ],
    ids=["simclr", "mocov2 token bf16", "mocov2 background", "simclr input_size", "cmc", "pirl"],
)
def test_runs(tiny_values: Values, tmp_path: Path, changes: dict[str, Any], attention: dict[str, Any]) -> None:
    values = {**tiny_values(), **SHORT, **changes, "attention": attention, "out": str(tmp_path / "run")}
    last = train(config_from_dict(values, where="test"))
    model = load_model(last)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert all(np.isfinite(row["loss"]) for row in rows_of(tmp_path / "run", "epoch"))
    tables = sorted((tmp_path / "run" / "att").glob("*.safetensors"))
    assert len(tables) == 3 - attention.get("period", 2)
    table = BoxTable.open(tables[-1])
    assert table.metadata["attention_score"] == attention.get("score", "pseudo_label")
    assert table.found.any()
    assert len(np.unique(table.boxes, axis=0)) > 3
    assert {row["layer"] for row in rows_of(tmp_path / "run", "knn")} == {"backbone", "projector"}
    assert model.encoder(torch.zeros(1, 3, 32, 32)).shape == (1, model.encoder.dim)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"encoder": VIT, "crop": {"size": 18}}, "patches of 4 px, and 18 px is no multiple of them: choose 16 or 20 px"),
    ({"encoder": VIT, "attention": {"input_size": 30}}, "patches of 4 px, and 30 px is no multiple"),
    ({"encoder": VIT, "method": {"name": "pirl", "negatives": 4, "jigsaw_size": 27, "jigsaw_patch": 9}}, "and 9 px"),
    ({"encoder": VIT, "method": {"name": "cmc", "negatives": 4}, "crop": {"size": 18}}, "and 18 px is no multiple"),
    ({"encoder": AVG, "attention": {"score": "token"}}, "score token is the attention of a vision transformer's class"),
    ({"attention": {"score": "token"}}, "class token, which encoder 'resnet18' does not pool"),
    ({"encoder": {"name": VIT["name"], "args": SMALL | {"global_pool": "prr"}}}, "global_pool='prr'"),
]


@pytest.mark.parametrize(("changes", "match"), REFUSED, ids=[match for _, match in REFUSED])
def test_refused_before_training(tiny_values: Values, tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    values = {**tiny_values(), **changes, "out": str(tmp_path / "run")}
    with pytest.raises(SagaError, match=match) as refusal:
        train(config_from_dict(values, where="test"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_classifier_without_a_class_token_as_provider(tiny_values: Values, tmp_path: Path, finished_run: Path) -> None:
    attention = {"provider": "supervised", "provider_ckpt": str(finished_run / "last.pt"), "score": "token"}
    values = {**tiny_values(), "encoder": VIT, "attention": attention, "out": str(tmp_path / "run")}
    with pytest.raises(SagaError, match="encoder 'resnet18' does not pool"):
        train(config_from_dict(values, where="test"))
