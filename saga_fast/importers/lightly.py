"""lightly-ai/lightly: SimCLR and MoCo as Lightning checkpoints or bare state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_config, place_queue
from saga_fast.importers.tensors import NamedTensor, Part, Renames, Tensors, has_prefix

HEAD = "projection_head.layers."
SEQUENTIAL = (
    ("0.", "conv1."),
    ("1.", "bn1."),
    ("4.", "layer1."),
    ("5.", "layer2."),
    ("6.", "layer3."),
    ("7.", "layer4."),
)
"""Names of ``nn.Sequential(*resnet.children())[:-1]`` in lightly's examples, and of torchvision's ResNet."""
GENERATOR = (
    *(("0.", "conv1."), ("1.", "bn1."), ("2.", "layer1."), ("3.", "layer2."), ("4.", "layer3."), ("5.", "layer4.")),
)
"""The same for lightly's own ResNetGenerator in its benchmark on CIFAR-10. Its ReLU is a function and no child, so that
the benchmark's network has none after its first convolution; its skip connections are called ``shortcut``."""
GENERATOR_BLOCK = "2.0."
"""Prefix of its first block; in SEQUENTIAL, 2 is the ReLU."""
KEYS = (("backbone_momentum.", "projection_head_momentum."), ("key_backbone.", "key_projection_head."))
"""Prefixes of the momentum encoder and projector, in lightly's examples and in its benchmarks."""


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the file or its ``state_dict`` has ``projection_head.layers``."""
    return has_prefix(content, HEAD) or has_prefix(content.get("state_dict"), HEAD)


def read(draft: Draft) -> None:
    """Read ``backbone.*`` and ``projection_head.layers.*``.

    MoCo also has their momentum copies and, in few files, the queue.
    """
    tensors = draft.state_dict("state_dict") if "state_dict" in draft else draft.state_dict()
    keys = next((names for names in KEYS if tensors.has_prefix(*names)), None)
    if keys:
        projector = draft.place_projector(tensors.take(HEAD))
        _place_backbone(draft, tensors, "backbone.", "encoder")
        draft.place_projector(tensors.take(f"{keys[1]}layers."), "key_projector")
        _place_backbone(draft, tensors, keys[0], "key_encoder")
        queue = pointer = None
        if tensors.has_prefix("criterion.memory_bank."):
            queue = draft.take_memory(tensors, "criterion.memory_bank.bank")
            pointer = draft.take_memory(tensors, "criterion.memory_bank.bank_ptr")
        dim = projector.widths[-1]
        transposed = queue is not None and queue.tensor.shape[0] == dim and queue.tensor.shape[-1] != dim
        place_queue(draft, projector, queue, pointer, transposed=transposed)
        numbers = {} if draft.encoder.get("stem_relu", True) else {"temperature": 0.1, "momentum": 0.99}
        draft.method = moco_config(draft, projector, **numbers)
    else:
        temperature = 0.5 if tensors.has_prefix(f"backbone.{GENERATOR_BLOCK}") else 0.1
        draft.method = {"name": "simclr", "temperature": temperature, **draft.place_mlp(tensors.take(HEAD))}
        _place_backbone(draft, tensors, "backbone.", "encoder")
    if count := tensors.drop("online_classifier.", "knn_classifier.", "criterion.memory_bank."):
        draft.dropped.append(f"online classifiers and memory bank ({count} tensors)")
    tensors.finish("lightly SimCLR or MoCo")


def _place_backbone(draft: Draft, tensors: Tensors, prefix: str, to: str) -> None:
    renames: Renames = ()
    is_generator = tensors.has_prefix(prefix + GENERATOR_BLOCK)
    if is_generator:
        renames = GENERATOR
    elif tensors.has_prefix(f"{prefix}0.", f"{prefix}1."):
        renames = SEQUENTIAL
    part = tensors.take(prefix, renames=renames)
    for name in [name for name in part if name.startswith(("fc.", "linear."))]:
        del part[name]  # some of lightly's examples save an unused classifier
    if any(".shortcut." in name for name in part):
        renamed = {name.replace(".shortcut.", ".downsample."): named for name, named in part.items()}
        part = Part(part.path, part.prefix, renamed, renames)
    _join_splits(part)
    draft.place_resnet(part, to)
    if is_generator:
        draft.encoder["stem_relu"] = False
    if draft.encoder["stem"] == "small":
        for key in ("mean", "std"):
            draft.encoder.pop(key, None)
        draft.input_origin = "CIFAR-10's size, ImageNet's mean and std, as in the project's benchmark on CIFAR-10"


def _join_splits(part: Part) -> None:
    """Average the statistics of SplitBatchNorm, which has some for each split of a batch, as its eval mode does."""
    for name, (tensor, origin) in part.items():
        if not name.endswith((".running_mean", ".running_var")):
            continue
        weight = part.get(f"{name.rpartition('.')[0]}.weight")
        channels = weight.tensor.shape[0] if weight and weight.tensor.ndim else 0
        if channels and tensor.ndim == 1 and len(tensor) > channels and len(tensor) % channels == 0:
            part[name] = NamedTensor(tensor.view(-1, channels).mean(0), origin)
