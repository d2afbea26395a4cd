"""Checkpoints of PyContrast, CMC, lemniscate and Inv. Spread, the projects of the memory banks."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from layout_parts import IMAGES, QUEUE, Layout, optimizer, rows, state
from networks import CifarResNet, Normalize, dim, encoder, mlp, randomize, torchvision_resnet
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

# ---------------------------------------------------------------- PyContrast


class PyContrast(nn.Module):
    """``RGBSingleHead``; z is the head before its L2 normalisation."""

    def __init__(self, head: str = "linear", **arguments: Any) -> None:
        super().__init__()
        self.encoder = encoder(**arguments)
        width = dim(self.encoder)
        layers = nn.Linear(width, 12) if head == "linear" else mlp(width, width, 12)
        self.head = nn.Sequential(*(layers if isinstance(layers, nn.Sequential) else [layers]), Normalize())

    def forward(self, x: Tensor) -> Tensor:
        return self.head[:-1](self.encoder(x))  # type: ignore[no-any-return]


def pycontrast(model: nn.Module, contrast: dict[str, Tensor], **others: Any) -> dict[str, Any]:
    return {
        "model": state(model, "module."),
        "contrast": contrast,
        "optimizer": optimizer(model),
        "epoch": 200,
    } | others


def pycontrast_insdis() -> Layout:
    model = randomize(PyContrast(block=Bottleneck))
    return Layout(
        pycontrast(model, {"memory": rows(IMAGES)}),
        "pycontrast",
        "insdis",
        [model],
        {"bank.rows": rows(IMAGES)},
        {"loss": "softmax", "negatives": 65536, "temperature": 0.07, "bank_momentum": 0.5, "projection_dim": 12},
        ("epoch 200", "optimizer"),
    )


def pycontrast_wide() -> Layout:
    """``resnet50x2``, whose stem is wider too, and no ``module.``."""
    model = randomize(PyContrast(block=Bottleneck, widths=(16, 16, 24, 32), stem=128))
    content = pycontrast(model, {"memory": rows(IMAGES)})
    content["model"] = state(model)
    return Layout(content, "pycontrast", "insdis", [model], {"bank.rows": rows(IMAGES)})


def pycontrast_pirl() -> Layout:
    model = PyContrast()
    jigsaw = nn.Module()
    fc1, fc2 = nn.Linear(16, 12), nn.Linear(108, 12)
    jigsaw.fc1, jigsaw.fc2 = fc1, fc2
    model.head_jig = jigsaw
    randomize(model)
    expected = {
        "bank.rows": rows(IMAGES),
        "patch_projector.weight": fc1.weight.detach(),
        "patch_projector.bias": fc1.bias.detach(),
        "jigsaw_projector.weight": fc2.weight.detach(),
        "jigsaw_projector.bias": fc2.bias.detach(),
    }
    return Layout(pycontrast(model, {"memory": rows(IMAGES)}), "pycontrast", "pirl", [model], expected)


def pycontrast_moco(head: str = "linear") -> Layout:
    model, keys = randomize(PyContrast(head)), randomize(PyContrast(head), seed=1)
    content = pycontrast(
        model, {"memory": rows(QUEUE)}, model_ema=state(keys), amp={"loss_scaler0": {"loss_scale": 1.0}}
    )
    method, numbers = ("moco", {"temperature": 0.07}) if head == "linear" else ("mocov2", {"temperature": 0.2})
    expected = {"queue": rows(QUEUE), "queue_pointer": torch.tensor(0)} | state(keys.encoder, "key_encoder.backbone.")
    printed = ("queue pointer: 0", "amp")
    return Layout(content, "pycontrast", method, [model], expected, numbers | {"queue_size": QUEUE}, printed)


def pycontrast_infomin() -> Layout:
    """MoCo with an MLP, and a jigsaw head."""
    layout = pycontrast_moco("mlp")
    jigsaw = {"fc1.0.weight": torch.ones(16, 16), "fc1.0.bias": torch.ones(16), "fc2.weight": torch.ones(12, 108)}
    layout.content["model"] |= {f"module.head_jig.{name}": tensor for name, tensor in jigsaw.items()}
    layout.content["model_ema"] |= {f"head_jig.{name}": tensor for name, tensor in jigsaw.items()}
    layout.numbers |= {"temperature": 0.15}
    layout.printed = ("jigsaw head (3 tensors)",)
    return layout


def pycontrast_cmc() -> Layout:
    """Half width: the first convolution stays 64 wide."""
    model = nn.Module()
    first, second = (encoder(block=Bottleneck, in_channels=channels) for channels in (1, 2))
    head1, head2 = (nn.Sequential(nn.Linear(64, 12), Normalize()) for _ in range(2))
    model.encoder1, model.encoder2, model.head1, model.head2 = first, second, head1, head2
    randomize(model)
    contrast = {"memory_1": rows(IMAGES, seed=1), "memory_2": rows(IMAGES, seed=2)}
    return Layout(
        pycontrast(model, contrast),
        "pycontrast",
        "cmc",
        [lambda x: head1[:-1](first(x)), lambda x: head2[:-1](second(x))],
        {"luminance_bank.rows": rows(IMAGES, seed=1), "chrominance_bank.rows": rows(IMAGES, seed=2)},
        {"color": "ydbdr", "loss": "softmax"},
    )


# ---------------------------------------------------------------- CMC


OPTIONS = {"nce_k": 4096, "nce_t": 0.07, "nce_m": 0.5, "softmax": False, "model": "resnet50", "lr_decay_epochs": [120]}


def cmc_cmc() -> Layout:
    model = nn.Module()
    first, second = torchvision_resnet(in_channels=1), torchvision_resnet(in_channels=2)
    model.l_to_ab, model.ab_to_l = first, second
    randomize(model)
    content = {
        "opt": argparse.Namespace(**OPTIONS, view="Lab"),
        "model": state(model, "encoder.module."),
        "contrast": {
            "params": torch.tensor([4096, 0.07, 20.0, 30.0, 0.5]),
            "memory_l": rows(IMAGES, seed=1),
            "memory_ab": rows(IMAGES, seed=2),
        },
        "optimizer": optimizer(model),
        "epoch": 240,
    }
    expected = {
        "luminance_bank.rows": rows(IMAGES, seed=1),
        "chrominance_bank.rows": rows(IMAGES, seed=2),
        # Z_l = 20 scales l against the bank of ab.
        "luminance_bank.log_z": torch.tensor(30.0).log(),
        "chrominance_bank.log_z": torch.tensor(20.0).log(),
    }
    numbers = {"color": "lab", "loss": "nce", "negatives": 4096, "temperature": 0.07}
    return Layout(content, "cmc", "cmc", [first, second], expected, numbers)


def cmc_insdis() -> Layout:
    model = randomize(torchvision_resnet(block=Bottleneck))
    content = {
        "opt": argparse.Namespace(**OPTIONS, moco=False),
        "model": state(model, "encoder.module."),
        "contrast": {"params": torch.tensor([16, 0.1, -1.0, 0.6]), "memory": rows(IMAGES)},
        "optimizer": optimizer(model),
        "epoch": 200,
    }
    expected = {"bank.rows": rows(IMAGES), "bank.log_z": torch.tensor(torch.inf)}
    numbers = {"loss": "nce", "negatives": 16, "temperature": 0.1, "bank_momentum": 0.6}
    return Layout(content, "cmc", "insdis", [model], expected, numbers)


def cmc_moco() -> Layout:
    model, keys = randomize(torchvision_resnet()), randomize(torchvision_resnet(), seed=1)
    content = {
        "opt": argparse.Namespace(**OPTIONS | {"softmax": True}, moco=True, alpha=0.99),
        "model": state(model, "encoder.module."),
        "contrast": {"params": torch.tensor([-1]), "memory": rows(QUEUE)},
        "model_ema": state(keys, "encoder.module."),
        "optimizer": optimizer(model),
        "epoch": 200,
    }
    expected = {"queue": rows(QUEUE), "key_projector.weight": keys.fc.weight.detach()}
    return Layout(content, "cmc", "moco", [model], expected, {"momentum": 0.99, "temperature": 0.07})


# ---------------------------------------------------------------- lemniscate, Inv. Spread


def lemniscate() -> Layout:
    """Saved again with the bank's state dict in its place. Torch 0.3 had no ``num_batches_tracked``."""
    model = randomize(torchvision_resnet())
    names = {name: tensor for name, tensor in state(model, "module.").items() if "num_batches" not in name}
    content = {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": names,
        "lemniscate": {"params": torch.tensor([4096, 0.07, 2876934.2, 0.5]), "memory": rows(IMAGES)},
        "best_prec1": torch.tensor(40.1),
        "optimizer": optimizer(model),
    }
    expected = {"bank.rows": rows(IMAGES), "bank.log_z": torch.tensor(2876934.2).log()}
    return Layout(content, "lemniscate", "insdis", [model], expected, {"loss": "nce", "negatives": 4096})


def lemniscate_cifar() -> Layout:
    model = randomize(CifarResNet())
    content = {
        "net": state(model, "module."),
        "lemniscate": {"params": torch.tensor([4096, 0.1, -1.0, 0.5]), "memory": rows(IMAGES)},
        "acc": 0.8,
        "epoch": 199,
    }
    return Layout(content, "lemniscate", "insdis", [model], {"bank.rows": rows(IMAGES)}, {"temperature": 0.1})


def invspread() -> Layout:
    model = randomize(CifarResNet())
    content = {"net": state(model, "module."), "acc": np.float64(83.5), "epoch": 199}
    return Layout(content, "invspread", "invspread", [model], numbers={"temperature": 0.1, "projection_dim": 12})


BANK_LAYOUTS: dict[str, Callable[[], Layout]] = {
    "pycontrast insdis": pycontrast_insdis,
    "pycontrast insdis x2": pycontrast_wide,
    "pycontrast pirl": pycontrast_pirl,
    "pycontrast moco": pycontrast_moco,
    "pycontrast mocov2": lambda: pycontrast_moco("mlp"),
    "pycontrast infomin": pycontrast_infomin,
    "pycontrast cmc": pycontrast_cmc,
    "cmc cmc": cmc_cmc,
    "cmc insdis": cmc_insdis,
    "cmc moco": cmc_moco,
    "lemniscate": lemniscate,
    "lemniscate cifar": lemniscate_cifar,
    "invspread": invspread,
}
