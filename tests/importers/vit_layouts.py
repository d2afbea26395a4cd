"""Checkpoints of facebookresearch's DINO, DINOv2, MoCo v3 and SimSiam: names and contents as their code saves them."""

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from layout_parts import Layout, optimizer, rows, state
from networks import encoder, randomize
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

SIDE = 48
"""Of the images that the layouts' networks are compared on."""


def vit(**arguments: Any) -> VisionTransformer:
    """Small, with heads of 64 channels; timm's networks have the names of DINO's code."""
    size = {"img_size": SIDE, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 0}
    return randomize(VisionTransformer(**size | arguments))


# ---------------------------------------------------------------- DINO


class DINOHead(nn.Module):
    """``vision_transformer.DINOHead``, whose last layer has the older weight norm's names."""

    def __init__(self, width: int, *, use_bn: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (width, 24):
            layers += [nn.Linear(before, 24), *([nn.BatchNorm1d(24)] if use_bn else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(24, 12))
        self.last_layer = nn.Module()
        self.last_layer.weight_g = nn.Parameter(torch.ones(20, 1))
        self.last_layer.weight_v = nn.Parameter(torch.zeros(20, 12))


def dino(make: Callable[[], nn.Module], width: int, *, use_bn: bool = False) -> Layout:
    backbones = make(), make()
    heads = randomize(DINOHead(width, use_bn=use_bn)), randomize(DINOHead(width, use_bn=use_bn), seed=1)
    teacher, student = (
        state(backbone, "backbone.") | state(head, "head.") for backbone, head in zip(backbones, heads, strict=True)
    )
    centre = rows(1, 20)
    args = argparse.Namespace(
        arch="vit_small",
        momentum_teacher=0.99,
        teacher_temp=0.07,
        warmup_teacher_temp=0.04,
        warmup_teacher_temp_epochs=30,
        freeze_last_layer=2,
        local_crops_number=6,
        local_crops_scale=(0.05, 0.25),
        norm_last_layer=False,
        data_path="/path/to/imagenet/train",
    )
    content = {
        "student": {f"module.{name}": tensor for name, tensor in student.items()},
        "teacher": teacher,
        "optimizer": optimizer(heads[0].mlp),
        "epoch": 100,
        "args": args,
        "dino_loss": {"center": centre},
        "fp16_scaler": {"scale": 65536.0},
    }
    expected = {"centre": centre[0]}
    for prefix, backbone, head in zip(("", "student_"), backbones, heads, strict=True):
        expected |= state(backbone, f"{prefix}encoder.backbone.") | state(head.mlp, f"{prefix}projector.")
        for number, name in enumerate(("weight_g", "weight_v")):
            tensor = head.last_layer.get_parameter(name).detach()
            expected[f"{prefix}prototypes.parametrizations.weight.original{number}"] = tensor
    numbers: dict[str, Any] = {"prototypes": 20, "hidden_dim": 24, "local_views": 6, "local_scale": (0.05, 0.25)}
    numbers |= {"momentum": 0.99, "teacher_temperature": 0.07, "warmup_epochs": 30, "frozen_epochs": 2}
    numbers |= {"unit_prototypes": False, "projection_norm": "hidden" if use_bn else "none"}
    z = [lambda x: heads[0].mlp(backbones[0](x))]
    return Layout(content, "dino", "dino", z, expected, numbers, ("epoch 100",))


# ---------------------------------------------------------------- MoCo v3 and SimSiam


def normed_mlp(*widths: int) -> nn.Sequential:
    """No biases, batch norm after all layers, the last one without scale and offset."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-2], nn.BatchNorm1d(widths[-1], affine=False))


def mocov3(network: nn.Module, head: str, widths: tuple[int, ...], temperature: float) -> Layout:
    projector = randomize(normed_mlp(*widths))
    base = state(network, "base_encoder.") | state(projector, f"base_encoder.{head}.")
    names = base | {name.replace("base_", "momentum_"): 2 * tensor for name, tensor in base.items()}
    names |= state(normed_mlp(12, 24, 12), "predictor.")
    content = {"epoch": 300, "arch": "any", "state_dict": {f"module.{name}": t for name, t in names.items()}}
    content |= {"optimizer": optimizer(projector), "scaler": {"scale": 65536.0}}
    numbers = {"temperature": temperature, "projection_layers": len(widths) - 1, "projection_norm": "all"}
    z = [lambda x: projector(network(x))]
    return Layout(content, "mocov3", "simclr", z, {}, numbers, ("momentum encoder and predictor",))


def simsiam() -> Layout:
    network, projector = randomize(encoder(block=Bottleneck)), normed_mlp(64, 64, 64, 12)
    projector[6] = nn.Linear(64, 12)  # with a bias
    randomize(projector)
    names = state(network, "encoder.") | state(projector, "encoder.fc.") | state(normed_mlp(12, 8, 12), "predictor.")
    content = {
        "epoch": 100,
        "arch": "resnet50",
        "state_dict": {f"module.{name}": tensor for name, tensor in names.items()},
        "optimizer": optimizer(projector),
    }
    numbers = {"projection_layers": 3, "projection_norm": "all", "projection_dim": 12}
    return Layout(content, "simsiam", "simclr", [lambda x: projector(network(x))], {}, numbers, ("predictor (",))


# ---------------------------------------------------------------- networks alone


class Dinov2(nn.Module):
    """``DinoVisionTransformer.forward``: the class token and the patches get positions, registers get none."""

    def __init__(self, registers: int) -> None:
        super().__init__()
        network = vit(init_values=1.0)
        assert network.cls_token is not None
        assert network.pos_embed is not None
        self.cls_token, self.pos_embed = network.cls_token, network.pos_embed
        self.patch_embed, self.blocks, self.norm = network.patch_embed, network.blocks, network.norm
        self.mask_token = nn.Parameter(rows(1, 128))
        self.register_tokens = new_token(registers) if registers else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], 1) + self.pos_embed
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        return torch.as_tensor(self.norm(self.blocks(x))[:, 0])


def new_token(count: int) -> nn.Parameter:
    return nn.Parameter(rows(count, 128)[None])


def classifier(backbone: nn.Module) -> Layout:
    """A linear classifier as ``head``."""
    head = randomize(nn.Linear(128, 20))
    content = {"model": state(backbone) | state(head, "head.")}
    return Layout(content, "vit", "supervised", [lambda x: head(backbone(x))], numbers={"num_classes": 20})


VIT_LAYOUTS: dict[str, Callable[[], Layout]] = {
    "dino vit": lambda: dino(vit, 128),
    "dino resnet": lambda: dino(lambda: randomize(encoder(block=Bottleneck)), 64),
    "dino norm": lambda: dino(lambda: randomize(encoder(block=Bottleneck)), 64, use_bn=True),
    "mocov3 vit": lambda: mocov3(vit(), "head", (128, 24, 24, 12), 0.2),
    "mocov3 resnet": lambda: mocov3(randomize(encoder(block=Bottleneck)), "fc", (64, 24, 12), 1.0),
    "simsiam": simsiam,
    "vit deit": lambda: classifier(vit()),
    "vit dinov2": lambda: classifier(randomize(Dinov2(0))),
    "vit dinov2 registers": lambda: classifier(randomize(Dinov2(3))),
}
