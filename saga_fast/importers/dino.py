"""facebookresearch/dino: full checkpoints. Its published backbones are of format ``vit`` or ``torchvision``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.draft import Draft
from saga_fast.importers.tensors import NamedTensor, Renames, Tensors, has_prefix

LAST_LAYER: Renames = (
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
)
"""Names of torch's older and newer weight norm."""
OPTIONS = {
    "momentum_teacher": "momentum",
    "teacher_temp": "teacher_temperature",
    "warmup_teacher_temp": "warmup_temperature",
    "warmup_teacher_temp_epochs": "warmup_epochs",
    "freeze_last_layer": "frozen_epochs",
    "local_crops_number": "local_views",
    "norm_last_layer": "unit_prototypes",
}
"""Options of main_dino.py, which the file has in ``args``, and fields of DINOConfig."""


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``student`` and ``teacher`` have a backbone and a head."""
    return all(has_prefix(content.get(key), "backbone.") for key in ("student", "teacher"))


def read(draft: Draft) -> None:
    """Read ``teacher``, ``student``, the centre in ``dino_loss``, and the hyperparameters in ``args``."""
    teacher = draft.state_dict("teacher")
    draft.method = {"name": "dino", **_place_network(draft, teacher, "")}
    _place_network(draft, draft.state_dict("student"), "student_")
    loss = draft.state_dict("dino_loss")
    centre = loss.take("center").need("")
    draft.tensors["centre"] = NamedTensor(centre.tensor.squeeze(0), centre.origin)
    loss.finish("DINO")
    options = {name: value for name, value in draft.options("args").items() if type(value) in (int, float, bool)}
    draft.method |= {ours: options[name] for name, ours in OPTIONS.items() if name in options}
    scale = draft.options("args").get("local_crops_scale")
    if isinstance(scale, list | tuple) and len(scale) == 2 and all(type(end) is float for end in scale):
        draft.method["local_scale"] = list(scale)


def _place_network(draft: Draft, tensors: Tensors, to: str) -> dict[str, Any]:
    """Put an encoder, a projector and prototypes, and return the fields of the two."""
    last = tensors.take("head.last_layer.", renames=LAST_LAYER)
    head = tensors.take("head.mlp.")
    draft.place_backbone(tensors.take("backbone."), f"{to}encoder")
    draft.place(head, f"{to}projector")
    draft.place(last, f"{to}prototypes")
    tensors.finish("DINO")
    directions, hidden = last.need("parametrizations.weight.original1"), head.need("0.weight")
    for part, name in ((last, "parametrizations.weight.original1"), (head, "0.weight")):
        if part[name].tensor.ndim != 2:
            raise part.shape_error(name, "a linear layer's is (out, in)")
    prototypes, width = directions.tensor.shape
    fields = {"prototypes": prototypes, "projection_dim": width, "hidden_dim": hidden.tensor.shape[0]}
    return fields | ({"projection_norm": "hidden"} if "1.running_mean" in head else {})
