"""The compiled attention pass: the boxes of the eager one, renewal after renewal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.errors import SagaError
from saga_fast.loaders import ImageFolder, Loader, WholePlan, open_loader
from saga_fast.methods import Method, build_method
from saga_fast.methods.cmc import CMCConfig
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models import compiled_features as compiled_encoder
from saga_fast.models.compiled_features import choose_forward, compiled_features, flops
from saga_fast.models.encoder import Activations, EncoderConfig
from saga_fast.models.precision import Precision

SMALL = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})


EAGER, COMPILED = (AttentionPass(size=32, forward=forward) for forward in ("eager", "compiled"))


@pytest.fixture
def model() -> Method:
    torch.manual_seed(0)
    return build_method(SimCLRConfig(projection_dim=12), SMALL)


@pytest.fixture
def loader(make_images: Callable[..., Path], tmp_path: Path) -> Loader:
    """Two whole batches and half a one."""
    source = ImageFolder(make_images(tmp_path / "images", per_class=10))
    return open_loader("folder", source, WholePlan(size=32), batch_size=8)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that went through a compiled encoder."""
    sizes: list[int] = []
    real = compiled_encoder._CompiledFeatures.__call__

    def spy(self: Any, images: torch.Tensor) -> Activations | None:
        features = real(self, images)
        if features is not None:
            sizes.append(len(images))
        return features

    monkeypatch.setattr(compiled_encoder._CompiledFeatures, "__call__", spy)
    return sizes


def test_compiled_pass_renewal_after_renewal(model: Method, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are constants of a compiled encoder: the next pass must not see those of the last."""
    seen = calls(monkeypatch)
    tables = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.train()
        eager = build_box_table(model, loader, EAGER)
        table = build_box_table(model, loader, COMPILED)
        np.testing.assert_allclose(table.boxes, eager.boxes, atol=1 / 32 + 1e-6)  # a pixel of the heatmap
        np.testing.assert_allclose(table.score, eager.score, rtol=1e-4)
        np.testing.assert_array_equal(table.pseudo_label, eager.pseudo_label)
        assert model.training and model.encoder.compiled is None
        tables.append(table)
    assert seen == [8, 8] * 3
    assert not np.array_equal(tables[0].score, tables[2].score)
    again = build_box_table(model, loader, COMPILED)
    for column in ("boxes", "found", "pseudo_label", "score"):
        np.testing.assert_array_equal(getattr(again, column), getattr(tables[2], column))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features(model: Method, precision: Precision) -> None:
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = model.eval().encoder.features(images)
        with compiled_features([model.encoder], batch_size=4, precision=precision):
            found = model.encoder.features(images)
            few = model.encoder.features(images[:2])
    assert found.dtype == few.dtype == expected.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    rtol, atol = (0.05, 0.05) if precision == "bf16" else (1e-4, 1e-5)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(few, expected[:2])


def test_cmc_has_two_encoders(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_method(CMCConfig(negatives=16, projection_dim=12), SMALL, num_images=20)
    assert len(model.encoders) == 2
    seen = calls(monkeypatch)
    eager, table = (build_box_table(model, loader, options) for options in (EAGER, COMPILED))
    assert seen == [8] * 4
    np.testing.assert_allclose(table.score, eager.score, rtol=1e-4)


def test_auto_follows_from_the_work(model: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    model.train()
    statistics = model.encoder.backbone.bn1.running_mean.clone()
    enough = 100.0 * 1e11 * torch.get_num_threads() / flops(model.encoders, 32)
    assert choose_forward("auto", model.encoders, images=int(enough) - 1, size=32) == "eager"
    assert choose_forward("auto", model.encoders, images=int(enough) + 2, size=32) == "compiled"
    assert choose_forward("eager", model.encoders, images=10**9, size=32) == "eager"
    assert model.training and torch.equal(model.encoder.backbone.bn1.running_mean, statistics)
    monkeypatch.setattr(compiled_encoder, "_has_cpp_compiler", lambda: False)
    assert choose_forward("auto", model.encoders, images=10**9, size=32) == "eager"
    with pytest.raises(SagaError, match=r"needs a C\+\+ compiler on the CPU: install g\+\+ or set CXX"):
        choose_forward("compiled", model.encoders, images=1, size=32)


def test_flops_of_a_resnet18() -> None:
    """1.8 billion multiply-adds at 224 (He et al. 2016, table 1)."""
    model = build_method(SimCLRConfig(), EncoderConfig(name="resnet18"))
    assert flops(model.encoders, 224) == pytest.approx(2 * 1.8e9, rel=0.02)
