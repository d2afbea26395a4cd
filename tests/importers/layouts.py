"""Checkpoints as other projects save them: key names, shapes and what else is in the file, from their sources."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bank_layouts import BANK_LAYOUTS
from layout_parts import IMAGES, QUEUE, Layout, optimizer, rows, state
from networks import encoder, mlp, randomize, torchvision_resnet
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from vit_layouts import VIT_LAYOUTS

# ---------------------------------------------------------------- MoCo


class MoCo(nn.Module):
    """``moco.builder.MoCo``: two networks with ``fc``, a queue (dim, K)."""

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, *, two_layers: bool, **arguments: Any) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = torchvision_resnet(**arguments), torchvision_resnet(**arguments)
        if two_layers:
            for network in (self.encoder_q, self.encoder_k):
                width = network.fc.in_features
                network.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), network.fc)
        randomize(self.encoder_q)
        randomize(self.encoder_k, seed=1)
        self.register_buffer("queue", rows(QUEUE).T.contiguous())
        self.register_buffer("queue_ptr", torch.tensor([8]))


def moco(two_layers: bool, prefix: str = "module.") -> Layout:
    model = MoCo(two_layers=two_layers, block=Bottleneck)
    content = {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": state(model, prefix),
        "optimizer": optimizer(model),
    }
    return Layout(
        content,
        "moco",
        "mocov2" if two_layers else "moco",
        [model.encoder_q],
        {"queue": rows(QUEUE), "queue_pointer": torch.tensor(8)} | keys_of(model),
        {"queue_size": QUEUE, "temperature": 0.2 if two_layers else 0.07},
        ("resnet50",),
    )


def keys_of(model: MoCo) -> dict[str, Tensor]:
    names = {name: t for name, t in model.encoder_k.state_dict().items() if not name.startswith("fc.")}
    return {f"key_encoder.backbone.{name}": tensor.clone() for name, tensor in names.items()}


def moco_released(two_layers: bool) -> Layout:
    """Only the query encoder: the keys are its copy, the queue is refilled."""
    layout = moco(two_layers)
    names = layout.content["state_dict"]
    query = {name: tensor for name, tensor in names.items() if ".encoder_q." in name}
    layout.content = {"epoch": 200, "arch": "resnet50", "state_dict": query}
    prefix = "module.encoder_q."
    layout.expected = {
        f"key_encoder.backbone.{name.removeprefix(prefix)}": tensor
        for name, tensor in query.items()
        if ".fc." not in name
    }
    layout.expected["queue_pointer"] = torch.tensor(0)
    layout.numbers.pop("queue_size")
    layout.printed = ("queue: random", "a copy of the query encoder")
    return layout


# ---------------------------------------------------------------- solo-learn, VISSL, lightly


def solo_simclr(name: str = "backbone", small: bool = False) -> Layout:
    network = encoder(small=small, padding=2)
    model = nn.ModuleDict({name: network, "projector": mlp(16, 24, 12), "classifier": nn.Linear(16, 10)})
    randomize(model)
    content = {
        "epoch": 399,
        "global_step": 1000,
        "pytorch-lightning_version": "1.6.4",
        "state_dict": state(model),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [optimizer(model)],
        "lr_schedulers": [],
    }
    return Layout(
        content,
        "solo-learn",
        "simclr",
        [lambda x: model["projector"](network(x))],
        numbers={"temperature": 0.2, "hidden_dim": 24, "projection_dim": 12},
        printed=("online classifier (2 tensors)", "optimizer_states"),
    )


def solo_moco() -> Layout:
    names = {"backbone": encoder(), "projector": mlp(16, 24, 12), "classifier": nn.Linear(16, 10)}
    names |= {"momentum_backbone": encoder(), "momentum_projector": mlp(16, 24, 12)}
    model = nn.ModuleDict(names)
    randomize(model)
    queue = torch.stack([rows(QUEUE, seed=1).T, rows(QUEUE, seed=2).T])
    content = {"epoch": 399, "state_dict": state(model) | {"queue": queue, "queue_ptr": torch.tensor([4])}}
    expected = {"queue": rows(QUEUE, seed=2), "queue_pointer": torch.tensor(4)}
    expected |= state(model["momentum_backbone"], "key_encoder.backbone.")
    expected = {name: tensor for name, tensor in expected.items() if ".fc." not in name}
    return Layout(
        content,
        "solo-learn",
        "mocov2",
        [lambda x: model["projector"](model["backbone"](x))],
        expected | state(model["momentum_projector"], "key_projector."),
        {"temperature": 0.2, "momentum": 0.99, "queue_size": QUEUE, "hidden_dim": 24},
    )


def trunk_of(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    return state(network, f"{prefix}_feature_blocks.")


def vissl(trunk: dict[str, Tensor], heads: dict[str, Tensor], loss: dict[str, Tensor]) -> dict[str, Any]:
    model = {"model": {"trunk": trunk, "heads": heads}, "meta": {"trunk": {}, "heads": []}}
    classy = {"train": True, "base_model": model, "meters": [], "optimizer": {"optim": {}}, "phase_idx": 199}
    return {
        "phase_idx": 199,
        "iteration": 1000,
        "loss": loss,
        "iteration_num": 9,
        "train_phase_idx": 199,
        "classy_state_dict": classy | {"train_phase_idx": 199, "losses": [np.float64(3.0), 2.5]},
    }


def vissl_simclr() -> Layout:
    network, first, second = randomize(encoder()), randomize(nn.Linear(16, 16)), randomize(nn.Linear(16, 12))
    heads = state(first, "0.clf.0.") | state(second, "1.clf.0.")
    return Layout(
        vissl(trunk_of(network), heads, {}),
        "vissl",
        "simclr",
        [lambda x: second(first(network(x)).relu())],
        numbers={"temperature": 0.1},
        printed=("epoch 200",),
    )


def vissl_moco() -> Layout:
    layout = vissl_simclr()
    keys = randomize(encoder(), seed=5)
    names = layout.content["classy_state_dict"]["base_model"]["model"]["heads"]
    layout.content["loss"] = {
        "queue": rows(QUEUE).T.contiguous(),
        "queue_ptr": torch.tensor([8]),
        **trunk_of(keys, "moco_encoder.trunk."),
        **{f"moco_encoder.heads.{name}": 2 * tensor for name, tensor in names.items()},
    }
    layout.method, layout.numbers = "mocov2", {"temperature": 0.2, "queue_size": QUEUE}
    layout.expected = {
        "queue": rows(QUEUE),
        "queue_pointer": torch.tensor(8),
        "key_projector.2.weight": 2 * names["1.clf.0.weight"],
        **state(keys, "key_encoder.backbone."),
    }
    return layout


def vissl_npid() -> Layout:
    network, head = randomize(encoder()), randomize(nn.Linear(16, 12))
    loss = {"nce_average.params": torch.tensor([4096, 0.07, 20.0, 0.5]), "nce_average.memory": rows(IMAGES)}
    content = vissl(trunk_of(network, "base_model."), state(head, "0.clf.0."), loss)
    expected = {"bank.rows": rows(IMAGES), "bank.log_z": torch.tensor(20.0).log()}
    return Layout(
        content, "vissl", "insdis", [lambda x: head(network(x))], expected, {"loss": "nce", "negatives": 4096}
    )


def vissl_pirl() -> Layout:
    network, head = randomize(encoder()), randomize(nn.Linear(16, 12))
    patch, jigsaw = randomize(nn.Linear(16, 12), seed=1), randomize(nn.Linear(108, 12))
    heads = state(patch, "0.0.clf.0.") | state(jigsaw, "0.2.clf.0.") | state(head, "1.0.clf.0.")
    loss = {"nce_average.params": torch.tensor([32000, 0.07, 20.0, 0.5]), "nce_average.memory": rows(IMAGES)}
    expected = state(patch, "patch_projector.") | state(jigsaw, "jigsaw_projector.") | {"bank.rows": rows(IMAGES)}
    content = vissl(trunk_of(network), heads, loss)
    return Layout(content, "vissl", "pirl", [lambda x: head(network(x))], expected, {"negatives": 32000})


def lightly_head(num_layers: int, batch_norm: bool) -> nn.Module:
    from lightly.models.modules import SimCLRProjectionHead  # lightly's own, whose names are to be read

    head: nn.Module = SimCLRProjectionHead(16, 24, 12, num_layers=num_layers, batch_norm=batch_norm)
    return head


def lightly_simclr(num_layers: int = 2) -> Layout:
    network, head = randomize(encoder()), randomize(lightly_head(num_layers, batch_norm=True))
    names = state(network, "backbone.") | state(head, "projection_head.")
    names |= {"online_classifier.classification_head.weight": torch.ones(10, 16)}
    content = {"epoch": 99, "state_dict": names, "hyper_parameters": {"batch_size_per_device": 8}}
    return Layout(
        content,
        "lightly",
        "simclr",
        [lambda x: head(network(x))],
        numbers={"projection_norm": "all", "hidden_dim": 24, "projection_layers": num_layers, "temperature": 0.1},
    )


def lightly_example() -> Layout:
    """``nn.Sequential(*list(resnet.children())[:-1])``, without batch norm in the head, a bare state dict."""
    network, head = randomize(encoder()), randomize(lightly_head(2, batch_norm=False))
    children = nn.Sequential(*list(network.children())[:-1])
    content = state(children, "backbone.") | state(head, "projection_head.")
    return Layout(content, "lightly", "simclr", [lambda x: head(network(x))], numbers={"projection_norm": "none"})


def lightly_moco(names: tuple[str, str] = ("backbone_momentum", "projection_head_momentum")) -> Layout:
    network, head, keys = randomize(encoder()), randomize(mlp(16, 16, 12)), randomize(encoder(), seed=1)
    tensors = state(network, "backbone.") | state(head, "projection_head.layers.")
    tensors |= state(keys, f"{names[0]}.") | state(head, f"{names[1]}.layers.")
    tensors |= {
        "criterion.memory_bank.bank": rows(QUEUE).T.contiguous(),
        "criterion.memory_bank.bank_ptr": torch.tensor([2]),
    }
    expected = {"queue": rows(QUEUE), "queue_pointer": torch.tensor(2)} | state(keys, "key_encoder.backbone.")
    content = {"epoch": 99, "state_dict": tensors}
    return Layout(content, "lightly", "mocov2", [lambda x: head(network(x))], expected, {"queue_size": QUEUE})


# ---------------------------------------------------------------- SimCLR, ContrastiveCrop, classifiers


def sthalles() -> Layout:
    model = torchvision_resnet()
    model.fc = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), model.fc)
    randomize(model)
    content = {"epoch": 100, "arch": "resnet18", "state_dict": state(model, "backbone."), "optimizer": optimizer(model)}
    return Layout(content, "sthalles", "simclr", [model], numbers={"temperature": 0.07})


def spijkervet() -> Layout:
    network, projector = randomize(encoder(block=Bottleneck)), randomize(mlp(64, 64, 12, bias=False))
    content = state(network, "encoder.") | state(projector, "projector.")
    zero = {"projector.0.bias": torch.zeros(64), "projector.2.bias": torch.zeros(12)}
    z = [lambda x: projector(network(x))]
    return Layout(content, "spijkervet", "simclr", z, zero, {"temperature": 0.5}, ("biases are zero",))


def contrastivecrop_simclr() -> Layout:
    model = randomize(torchvision_resnet(small=True))
    boxes = torch.tensor([0.25, 0.0, 0.5, 15 / 16]).repeat(IMAGES, 1)
    boxes[7] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    content = {
        "optimizer_state": optimizer(model),
        "simclr_state": state(model, "module."),
        "boxes": boxes,
        "epoch": 500,
    }
    numbers = {"temperature": 0.5, "projection_layers": 1}
    return Layout(content, "contrastivecrop", "simclr", [model], numbers=numbers, printed=("optimizer_state",))


def contrastivecrop_moco() -> Layout:
    layout = moco(True)
    boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(IMAGES, 1)
    layout.content = {"moco_state": layout.content["state_dict"], "boxes": boxes, "epoch": 100}
    layout.format = "contrastivecrop"
    return layout


def torchvision_classifier() -> Layout:
    model = randomize(torchvision_resnet(20, layers=(2, 1, 1, 1)))
    return Layout(state(model), "torchvision", "supervised", [model], numbers={"num_classes": 20})


def torchvision_reference() -> Layout:
    """torchvision's training script: the model beside its options."""
    model = randomize(torchvision_resnet(20, block=Bottleneck))
    content = {
        "model": state(model),
        "optimizer": optimizer(model),
        "lr_scheduler": {"step_size": 30, "last_epoch": 90},
        "epoch": 89,
        "args": argparse.Namespace(data_path="imagenet", lr=0.1, amp=False),
    }
    return Layout(content, "torchvision", "supervised", [model], printed=("args", "lr_scheduler"))


LAYOUTS: dict[str, Callable[[], Layout]] = {
    **BANK_LAYOUTS,
    **VIT_LAYOUTS,
    "moco v1": lambda: moco(False),
    "moco v2": lambda: moco(True),
    "moco v2 without module": lambda: moco(True, ""),
    "moco v1 released": lambda: moco_released(False),
    "moco v2 released": lambda: moco_released(True),
    "solo-learn simclr": solo_simclr,
    "solo-learn simclr older": lambda: solo_simclr("encoder"),
    "solo-learn simclr cifar": lambda: solo_simclr(small=True),
    "solo-learn mocov2plus": solo_moco,
    "vissl simclr": vissl_simclr,
    "vissl moco": vissl_moco,
    "vissl npid": vissl_npid,
    "vissl pirl": vissl_pirl,
    "lightly simclr": lightly_simclr,
    "lightly simclr v2": lambda: lightly_simclr(3),
    "lightly example": lightly_example,
    "lightly moco": lightly_moco,
    "lightly moco benchmark": lambda: lightly_moco(("key_backbone", "key_projection_head")),
    "sthalles": sthalles,
    "spijkervet": spijkervet,
    "contrastivecrop simclr": contrastivecrop_simclr,
    "contrastivecrop moco": contrastivecrop_moco,
    "torchvision": torchvision_classifier,
    "torchvision reference": torchvision_reference,
}
