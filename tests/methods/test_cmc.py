"""CMC's two views, encoders and banks against scikit-image and the equations in loops."""

from typing import Any

import numpy as np
import pytest
import torch
from method_loops import ENCODER, Rows, assert_gradient, build, gradient_of_bias, random_views, units
from skimage.color import rgb2lab, rgb2ydbdr
from test_bank import estimated_z, nce_loops, softmax_loops
from torch import Tensor

from saga_fast.methods import METHODS
from saga_fast.methods.cmc import CMC, CMCConfig, Color, ColorPair
from saga_fast.models.encoder import Encoder, EncoderConfig

INDEX = torch.tensor([4, 0, 11, 4])


def make(**fields: Any) -> CMC:
    model = build("cmc", **{"projection_dim": 6, "negatives": 8, "temperature": 0.3, **fields})
    assert isinstance(model, CMC)
    return model


def views_in_range(batch: int = 4) -> Tensor:
    return random_views(batch, 1).sigmoid()


def split_by_skimage(images: Tensor, color: Color) -> tuple[Tensor, Tensor]:
    """REFERENCE's numbers: CMC's for Lab, PyContrast's for YDbDr."""
    pixels = images.double().permute(0, 2, 3, 1).numpy()
    if color == "lab":
        mean, std = [50.0, (98.233 - 86.183) / 2, (94.478 - 107.857) / 2], [50.0, 184.416 / 2, 202.335 / 2]
        converted = (rgb2lab(pixels) - mean) / std
    else:
        converted = (rgb2ydbdr(pixels) - [0.457, -0.082, -0.052]) / [0.5, 1.331, 1.333]
    x = torch.from_numpy(np.moveaxis(converted, -1, 1)).float()
    return x[:, :1], x[:, 1:]


@pytest.mark.parametrize("color", ["lab", "ydbdr"])
@pytest.mark.parametrize("loss", ["softmax", "nce"])
def test_loss_and_gradient(loss: str, color: Color) -> None:
    """Luminance against the chrominance bank plus chrominance against the luminance bank, the same drawn images."""
    model = make(loss=loss, color=color).eval()
    views = views_in_range()
    torch.manual_seed(2)
    output = model(views, INDEX)
    biases = [model.get_parameter(f"projector.{name}.bias") for name in ("luminance", "chrominance")]
    gradients = torch.autograd.grad(output.loss, biases)
    torch.manual_seed(2)
    idx = model.draw(INDEX).tolist()
    total, similarities = 0.0, []
    for own, other, seen in zip(
        ("luminance", "chrominance"), ("chrominance", "luminance"), split_by_skimage(views[:, 0], color), strict=True
    ):
        bank = getattr(model, f"{other}_bank").rows.tolist()
        with torch.no_grad():
            encoder, head = model.encoder.get_submodule(own), model.projector.get_submodule(own)
            z = torch.cat([head(encoder(x[None])) for x in seen])
        constant = estimated_z(units(z), bank, idx, 0.3)

        def expected(rows: Rows, bank: Rows = bank, constant: float = constant) -> float:
            if loss == "softmax":
                return softmax_loops(units(rows), bank, idx, 0.3)
            return nce_loops(units(rows), bank, idx, 0.3, constant)

        total += expected(z.tolist())
        similarities += [
            sum(a * b for a, b in zip(f, bank[i], strict=True)) for f, (i, *_) in zip(units(z), idx, strict=True)
        ]
        assert_gradient(gradients[own == "chrominance"], gradient_of_bias(expected, z))
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert output.positive_similarity.item() == pytest.approx(sum(similarities) / 8, rel=1e-4, abs=1e-6)


def test_each_bank_holds_its_own_view() -> None:
    model = make(bank_momentum=0.0).eval()
    views = views_in_range()
    model(views, INDEX)
    model.after_step()
    banks = (model.luminance_bank, model.chrominance_bank)
    with torch.no_grad():
        for bank, branch in zip(banks, model.branches(views[:, 0]), strict=True):
            features = torch.tensor(units(branch.projector(branch.encoder(branch.images))))
            torch.testing.assert_close(bank.rows[INDEX[1:]], features[1:])


def test_each_bank_has_its_own_z() -> None:
    model = make(loss="nce")
    model(views_in_range(), INDEX)
    z = [model.luminance_bank.log_z.clone(), model.chrominance_bank.log_z.clone()]
    assert z[0].isfinite() and z[1].isfinite() and z[0] != z[1]
    model(views_in_range(), INDEX)
    assert [model.luminance_bank.log_z, model.chrominance_bank.log_z] == z


def test_encoder_and_projector_are_both_side_by_side() -> None:
    """What evaluation and ``load_model`` see: f(x) of 2 x 16, z of 2 x 6."""
    model = make().eval()
    images = views_in_range()[:, 0]
    with torch.no_grad():
        h = model.encoder(images)
        z = model.projector(h)
        parts = [(b.encoder(b.images), b.projector(b.encoder(b.images))) for b in model.branches(images)]
    assert (model.encoder.dim, h.shape, z.shape) == (32, (4, 32), (4, 12))
    torch.testing.assert_close(h, torch.cat([part[0] for part in parts], 1))
    torch.testing.assert_close(z, torch.cat([part[1] for part in parts], 1))
    assert [branch.first_dim for branch in model.branches(images)] == [0, 6]
    assert (model.encoder.mean, model.encoder.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert isinstance(model.encoder, Encoder)


@pytest.mark.parametrize("stem", ["small", "medium", "imagenet"])
def test_channels_of_the_two_encoders(stem: Any) -> None:
    config = EncoderConfig(name="resnet18", stem=stem, args={"layers": [1] * 4, "channels": [8, 8, 8, 16]})
    pair = ColorPair(config, "lab")
    assert [part.backbone.conv1.in_channels for part in (pair.luminance, pair.chrominance)] == [1, 2]
    assert not torch.equal(
        pair.luminance.backbone.layer1[0].conv1.weight, pair.chrominance.backbone.layer1[0].conv1.weight
    )


def test_half_width() -> None:
    """PyContrast's: 1024 numbers from each ResNet-50."""
    config = EncoderConfig(name="resnet50", args={"channels": [32, 64, 128, 256]})
    assert Encoder(config, in_channels=1).dim == 1024


@pytest.mark.parametrize(
    "encoder",
    [
        EncoderConfig(name=ENCODER.name, stem="small", args={**ENCODER.args, "global_pool": "max"}),
        EncoderConfig(name="vit_tiny_patch16_224", args={"embed_dim": 32, "depth": 2, "num_heads": 2}),
    ],
    ids=["max", "vit"],
)
def test_pooling_that_is_not_the_mean(encoder: EncoderConfig) -> None:
    pair = ColorPair(encoder, "lab").eval()
    images = views_in_range()[:, 0]
    luminance, chrominance = pair.split(images)
    expected = [pair.luminance.backbone(luminance), pair.chrominance.backbone(chrominance)]
    torch.testing.assert_close(pair(images), torch.cat(expected, 1))


def test_gradient_reaches_every_parameter() -> None:
    model = make()
    assert type(model) is METHODS["cmc"]
    assert (model.method, model.num_views, model.more_views) == ("cmc", 1, ())
    model(views_in_range(), INDEX).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for part in ("luminance", "chrominance"):
        for name in (f"encoder.{part}.backbone.conv1.weight", f"projector.{part}.weight"):
            assert bool(model.get_parameter(name).grad.any())  # type: ignore[union-attr]


def test_config_refuses() -> None:
    with pytest.raises(ValueError, match="color must be one of lab, ydbdr, got 'hsv'"):
        CMCConfig(color="hsv")  # type: ignore[arg-type]
