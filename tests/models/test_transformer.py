"""Vision transformers as encoders: timm's own networks are the oracle."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from saga_fast.errors import SagaError
from saga_fast.methods import METHODS, build_method
from saga_fast.models.encoder import Encoder, EncoderConfig

SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 3, "num_heads": 2}
# Name, arguments, patch and prefix tokens.
NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "token": ("vit_tiny_patch16_224", SMALL, 16, 1),
    "avg": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg"}, 16, 1),
    "avg, norm first": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg", "fc_norm": False}, 16, 1),
    "avg with prefix": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avg", "pool_include_prefix": True}, 16, 1),
    "avg, no class token": ("vit_base_patch16_gap_224", SMALL, 16, 0),
    "max": ("vit_tiny_patch16_224", SMALL | {"global_pool": "max"}, 16, 1),
    "avgmax": ("vit_tiny_patch16_224", SMALL | {"global_pool": "avgmax"}, 16, 1),
    "map": ("vit_base_patch16_siglip_224", SMALL, 16, 0),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL | {"init_values": 0.5, "img_size": 56}, 14, 5),
    "queries normalised": ("vit_tiny_patch16_224", SMALL | {"qk_norm": True}, 16, 1),
    "norm before": ("vit_base_patch32_clip_224", SMALL, 32, 1),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, 16, 2),
    "deit3": ("deit3_small_patch16_224", SMALL, 16, 1),
    "parallel blocks": ("vit_small_patch16_18x2_224", SMALL, 16, 1),
}


def build(name: str, args: dict[str, Any], seed: int = 0, **fields: Any) -> Encoder:
    """An encoder in eval mode whose class tokens and norms are not the initial zeros and ones."""
    torch.manual_seed(seed)
    encoder = Encoder(EncoderConfig(name=name, args=args, **fields)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def make(case: str) -> Encoder:
    name, args, _, _ = NETWORKS[case]
    return build(name, args)


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 5)])
@torch.no_grad()
def test_activations_and_pooling(case: str, rows: int, columns: int) -> None:
    _, _, patch, prefix_tokens = NETWORKS[case]
    encoder = make(case)
    x = torch.randn(4, 3, rows * patch, columns * patch)
    features, prefix = encoder.activations(x)
    assert prefix is not None
    assert features.shape == (4, 32, rows, columns)
    assert prefix.shape == (4, prefix_tokens, 32)
    h = encoder(x)
    assert h.shape == (4, encoder.dim)
    assert encoder.dim == 32
    torch.testing.assert_close(encoder.pool(features, prefix), h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(h, encoder.backbone(x), rtol=1e-5, atol=1e-6)
    assert encoder.features(x).equal(features)
    # A are the tokens of a certain depth, in their order.
    depth = 1 if encoder.backbone.global_pool == "token" else 2
    recorded: list[Tensor] = []
    encoder.backbone.blocks[depth].register_forward_hook(lambda *arguments: recorded.append(arguments[2]))
    encoder.backbone(x)
    tokens = recorded[0] if depth == 1 else encoder.backbone.norm(recorded[0])
    for place in range(rows * columns):
        assert features[:, :, place // columns, place % columns].equal(tokens[:, prefix_tokens + place])
    assert prefix.equal(tokens[:, :prefix_tokens])


@pytest.mark.parametrize("case", NETWORKS)
def test_is_global_average(case: str) -> None:
    assert make(case).is_global_average == (case in ("avg, norm first", "avg, no class token"))


def test_network_is_timms() -> None:
    """At its own size, and at another one with the position embeddings that timm's function interpolates."""
    encoder = build("vit_tiny_patch16_224", SMALL | {"img_size": 64})
    for side in (64, 96, 48):
        plain: Any = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL, img_size=64)
        plain.load_state_dict(encoder.backbone.state_dict())
        plain.set_input_size((side, side))
        x = torch.randn(2, 3, side, side)
        torch.testing.assert_close(encoder(x), plain.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("case", "side"), [("token", 40), ("avg", 100), ("registers", 64), ("token", 8)])
def test_other_sizes_are_refused(case: str, side: int) -> None:
    patch = NETWORKS[case][2]
    encoder = make(case)
    match = rf"patches of {patch} px, and {side} px is no multiple of them: choose (\d+ or )?\d+ px$"
    for use in (encoder, encoder.features, lambda x: encoder.check_size(x.shape[2])):
        with pytest.raises(SagaError, match=match):
            use(torch.zeros(1, 3, side, side))
    encoder.check_size(2 * patch)


def test_other_sizes_of_a_convolutional_network_are_not() -> None:
    Encoder(EncoderConfig(name="test_resnet")).check_size(37)


@pytest.mark.parametrize(
    ("name", "args", "match"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "prr"}, "global_pool='prr', .* token, avg, max, avgmax, map$"),
        ("vit_tiny_patch16_224", {"global_pool": ""}, "global_pool='', which is not supported"),
        ("vit_tiny_patch16_224", {"depth": 1}, "encoder.args.depth must be at least 2"),
        ("vit_base_patch16_gap_224", {"global_pool": "token"}, "cannot build encoder .* AssertionError"),
        ("vit_tiny_patch16_224", {"dynamic_img_size": False}, "encoder.args.dynamic_img_size is not allowed"),
        ("vit_tiny_patch16_224", {"img_size": 16384, "patch_size": [4, 64]}, "img_size=16384 has over 262144 patches"),
        (
            "vit_tiny_r_s16_p8_224",
            {"depth": 2},
            r"no convolutional map \(B, C, u, v\) but .* timm's vision_transformer",
        ),
        (
            "eva02_tiny_patch14_224",
            {"depth": 2},
            r"no convolutional map \(B, C, u, v\) but .* timm's vision_transformer",
        ),
    ],
    ids=str,
)
def test_refusals(name: str, args: dict[str, Any], match: str) -> None:
    with pytest.raises(SagaError, match=match) as refusal:
        Encoder(EncoderConfig(name=name, args=args))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("fields", [{"stem": "small"}, {"stem_channels": 8}, {"stem_relu": False}], ids=str)
def test_a_stem_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(SagaError, match=r"need.* a ResNet .*, not 'vit_tiny_patch16_224'"):
        build("vit_tiny_patch16_224", SMALL, **fields)


@pytest.mark.parametrize("case", [case for case in NETWORKS if NETWORKS[case][3]])
def test_class_attention(case: str) -> None:
    """Against the attention that timm computes if it is not fused, in float64."""
    encoder = make(case).double()
    x = torch.randn(3, 3, 3 * NETWORKS[case][2], 2 * NETWORKS[case][2], dtype=torch.float64)
    expected = encoder.backbone.global_pool == "token" and case != "parallel blocks"
    assert encoder.has_class_attention == expected
    with torch.no_grad():
        activations = encoder.activations(x)
        if not expected:
            with pytest.raises(SagaError, match=r"score token .* encoder '\w+' does not pool: choose pseudo_label"):
                encoder.class_attention(activations)
            return
        found = encoder.class_attention(activations)
        attention = encoder.backbone.blocks[-1].attn
        attention.fused_attn = False
        rows: list[Tensor] = []
        attention.attn_drop.register_forward_hook(lambda *arguments: rows.append(arguments[2]))
        encoder(x)
    prefix = NETWORKS[case][3]
    row = rows[0].mean(1)[:, 0]
    torch.testing.assert_close(found[:, 0].flatten(1).double(), row[:, prefix:], rtol=1e-5, atol=1e-7)
    assert float(found.std()) > 1e-3


def test_class_attention_of_a_convolutional_network_is_refused() -> None:
    encoder = Encoder(EncoderConfig(name="test_resnet"))
    with pytest.raises(SagaError, match="score token is the attention of a vision transformer's class token"):
        encoder.check_class_attention()


@pytest.mark.parametrize("case", ["token", "avg"])
def test_weights_come_from_torchs_generator(case: str) -> None:
    first, same, other = (build(*NETWORKS[case][:2], seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["backbone.pos_embed"], other["backbone.pos_embed"])


@pytest.mark.parametrize("case", ["token", "avg", "registers", "map"])
def test_gradient_reaches_every_parameter(case: str) -> None:
    name, args, patch, _ = NETWORKS[case]
    torch.manual_seed(0)
    model = build_method(METHODS["simclr"].Config(name="simclr"), EncoderConfig(name=name, args=args))
    views = torch.randn(4, 2, 3, 2 * patch, 2 * patch)
    model(views, torch.arange(4)).loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_channels_last_is_harmless() -> None:
    encoder = make("token")
    x = torch.randn(2, 3, 64, 64)
    expected = encoder(x)
    encoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(encoder.backbone.patch_embed.proj, nn.Conv2d)
