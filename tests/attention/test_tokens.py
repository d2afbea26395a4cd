"""Attention of vision transformers: against float64 and autograd through timm's whole network.

Shapes: B images, C channels, (u, v) patches, S the image's side.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grad_cam import as_map, assert_edges, autograd_weights, grad_cam_edges, make_model, open_images, table_edges
from torch import Tensor

from saga_fast.attention import AttentionPass, build_box_table, check_attention
from saga_fast.attention.channel_weights import Score, channel_weights
from saga_fast.attention.config import Region
from saga_fast.attention.heatmap import attention_maps, foreground_map, largest_region
from saga_fast.errors import SagaError
from saga_fast.loaders.boxes import box_iou
from saga_fast.methods import METHODS, Method, build_method
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.precision import Precision

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2}
VIT, REG = "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"
# Encoder, module whose output is A, and prefix tokens.
NETWORKS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "token": (VIT, SMALL, "blocks.1", 1),
    "avg": (VIT, SMALL | {"global_pool": "avg"}, "blocks.2", 1),
    "avg, norm first": (VIT, SMALL | {"global_pool": "avg", "fc_norm": False}, "norm", 1),
    "avg with prefix": (VIT, SMALL | {"global_pool": "avg", "pool_include_prefix": True}, "blocks.2", 1),
    "max": (VIT, SMALL | {"global_pool": "max"}, "blocks.2", 1),
    "map": ("vit_base_patch16_siglip_224", SMALL, "norm", 0),
    "registers": (REG, SMALL | {"init_values": 0.5, "img_size": 56}, "blocks.1", 5),
    "registers, avg": (REG, SMALL | {"init_values": 0.5, "global_pool": "avg"}, "blocks.2", 5),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, "blocks.1", 2),
    "parallel blocks": ("vit_small_patch16_18x2_224", SMALL, "blocks.1", 1),
}
SIDE = 112  # 7 patches of 16 px, 8 of 14 px


def transformer(case: str, seed: int = 0) -> Method:
    """A SimCLR model whose tokens differ from image to image: timm's first weights hardly mix them."""
    torch.manual_seed(seed)
    name, args, _, _ = NETWORKS[case]
    model = build_method(METHODS["simclr"].Config(name="simclr"), EncoderConfig(name=name, args=args))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def few(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of the network's size: what the encoder gets are the stored pixels."""
    return make_images(tmp_path_factory.mktemp("few"), per_class=12, size=(SIDE, SIDE), ending=".png", seed=1)


def pixels(model: Method, folder: Path) -> Tensor:
    """(B, 3, S, S) float64, normalised."""
    x = torch.stack([views for batch in open_images(folder, size=SIDE) for views in batch.views[:, 0]])
    mean, std = torch.tensor(model.encoder.mean).double(), torch.tensor(model.encoder.std).double()
    return (x.double().permute(0, 3, 1, 2) / 255.0 - mean[:, None, None]) / std[:, None, None]


def options(score: Score = "pseudo_label", **fields: Any) -> AttentionPass:
    return AttentionPass(size=SIDE, **{"score": score, "delta": 0.6, **fields})


@pytest.mark.parametrize("case", NETWORKS)
def test_grad_cam_equals_float64_autograd(few: Path, case: str) -> None:
    model = transformer(case)
    _, _, layer, prefix = NETWORKS[case]
    x = pixels(model, few)
    maps, alphas, z = autograd_weights(model, layer, x, "pseudo_label", prefix=prefix)
    model.eval()
    found = attention_maps(model, x.float(), options())
    error = (found.weights - alphas).abs().amax(1) / alphas.abs().amax(1)
    assert float(error.max()) < 1e-3
    torch.testing.assert_close(found.features.double(), maps, rtol=1e-3, atol=1e-4)
    table = build_box_table(model, open_images(few, size=SIDE), options())
    edges, box_found = grad_cam_edges(maps, alphas, SIDE, 0.6, "minmax")
    assert_edges(table_edges(table, SIDE), edges)
    np.testing.assert_array_equal(table.found, box_found)
    np.testing.assert_array_equal(table.pseudo_label, z.argmax(1))
    np.testing.assert_allclose(table.score, z.max(1).values, rtol=1e-4, atol=1e-5)
    assert len(np.unique(edges, axis=0)) > 5
    assert all(parameter.grad is None for parameter in model.parameters())


def test_closed_form_of_the_mean_is_exact() -> None:
    """The norm comes first, so that h is the mean of A and the gradient is equal at all patches."""
    model = transformer("avg, norm first").eval()
    features, prefix = model.encoder.activations(torch.randn(5, 3, 64, 64))
    assert model.encoder.is_global_average
    closed, *_ = channel_weights(model.encoder, model.projector, features, "pseudo_label", prefix=prefix)
    model.encoder.is_global_average = False
    general, *_ = channel_weights(model.encoder, model.projector, features, "pseudo_label", prefix=prefix)
    torch.testing.assert_close(closed, general, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("score", ["activation", "background", "token"])
@pytest.mark.parametrize("region", ["all", "largest"])
@pytest.mark.parametrize("mirror", [False, True])
def test_scores_without_a_gradient(few: Path, score: Score, region: Region, mirror: bool) -> None:
    """Of the tokens that enter the last block, by a hook on timm's network in float64."""
    model = transformer("token")
    network = copy.deepcopy(model.encoder.backbone).double().eval()
    network.blocks[-1].attn.fused_attn = False
    entering: list[Tensor] = []
    rows: list[Tensor] = []
    network.blocks[-1].register_forward_pre_hook(lambda *arguments: entering.append(arguments[1][0]))
    network.blocks[-1].attn.attn_drop.register_forward_hook(lambda *arguments: rows.append(arguments[2]))
    maps = []
    with torch.no_grad():
        for image in pixels(model, few):
            entering.clear()
            rows.clear()
            for x in (image, image.flip(2))[: 1 + mirror]:
                network(x[None])
            tokens = [as_map(each, 1) for each in entering]
            attention = [row[:, :, 0, 1:].mean(1).reshape(7, 7) for row in rows]
            if mirror:
                tokens[1], attention[1] = tokens[1].flip(2), attention[1].flip(1)
            if score == "token":
                maps.append(torch.stack(attention).mean(0))
            elif score == "activation":
                maps.append(torch.stack(tokens).mean(0).sum(0))
            else:
                maps.append(foreground_map([each[None] for each in tokens])[0, 0].double())
    coarse = torch.stack(maps)[:, None].relu()
    if region == "largest":
        low, high = coarse.amin((2, 3), keepdim=True), coarse.amax((2, 3), keepdim=True)
        coarse = largest_region(((coarse - low) / (high - low))[:, 0].float(), 0.6)[:, None]
    edges, found = grad_cam_edges(coarse, torch.ones(len(coarse), 1), SIDE, 0.6, "minmax")
    table = build_box_table(model, open_images(few, size=SIDE), options(score, region=region, mirror=mirror))
    assert_edges(table_edges(table, SIDE), edges)
    np.testing.assert_array_equal(table.found, found)
    assert len(np.unique(edges, axis=0)) > 5


def test_cost_of_the_last_block() -> None:
    """Counted: a forward pass of all blocks but one, and of the last block less than half, forwards and backwards."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build_method(
        METHODS["simclr"].Config(name="simclr"), EncoderConfig(name="vit_small_patch16_224", args={"depth": 4})
    ).eval()
    x = torch.zeros(1, 3, 224, 224)

    def flops(function: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            function()
        return int(counter.get_total_flops())

    with torch.no_grad():
        whole = flops(lambda: model.encoder(x))
    assert flops(lambda: attention_maps(model, x, AttentionPass())) < whole


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("score", ["pseudo_label", "token", "background"])
@pytest.mark.parametrize("case", ["token", "avg"])
def test_half_precision_gives_nearly_the_same_boxes(few: Path, case: str, score: Score, precision: Precision) -> None:
    if score == "token" and case == "avg":
        return
    model = transformer(case)
    full, half = (
        build_box_table(model, open_images(few, size=SIDE), options(score, precision=each))
        for each in ("fp32", precision)
    )
    assert (half.score != full.score).any()
    assert np.median(box_iou(full.boxes, half.boxes)) > 0.8


@pytest.mark.parametrize("score", ["pseudo_label", "token"])
def test_runs_are_identical(few: Path, score: Score) -> None:
    model = transformer("token")
    before = copy.deepcopy(model.state_dict())
    first, second = (
        build_box_table(model, open_images(few, size=SIDE, threads=threads), options(score)) for threads in (1, 3)
    )
    for name in ("boxes", "found", "pseudo_label", "score"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("encoder", "size", "score", "match"),
    [
        ({"name": VIT, "args": SMALL}, 100, "pseudo_label", "patches of 16 px, and 100 px is no multiple .* 96 or 112"),
        ({"name": "test_resnet"}, 100, "token", "vision transformer's class token, which encoder 'test_resnet'"),
        ({"name": VIT, "args": SMALL | {"global_pool": "avg"}}, 96, "token", "does not pool: choose pseudo_label"),
    ],
    ids=["size", "resnet", "avg"],
)
def test_refusals(few: Path, encoder: dict[str, Any], size: int, score: Score, match: str) -> None:
    model = (
        make_model(encoder)
        if encoder["name"] != VIT
        else build_method(METHODS["simclr"].Config(name="simclr"), EncoderConfig(**encoder))
    )
    refused = AttentionPass(size=size, score=score)
    with pytest.raises(SagaError, match=match):
        check_attention(model, refused)
    with pytest.raises(SagaError, match=match):
        build_box_table(model, open_images(few, size=size), refused)
