"""facebookresearch/vissl: SimCLR, MoCo v2, InsDis (NPID) and PIRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.errors import SagaError
from saga_fast.importers.banks import place_bank, read_nce_params
from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_config, place_queue
from saga_fast.importers.networks import Projector
from saga_fast.importers.tensors import Part, Tensors

STATE = ("classy_state_dict", "base_model", "model")


def matches(content: Mapping[str, Any]) -> bool:
    """Whether the file has ``classy_state_dict``."""
    return "classy_state_dict" in content


def read(draft: Draft) -> None:
    """Read ``classy_state_dict.base_model.model.{trunk,heads}`` and ``loss``.

    ``loss`` has the queue and the momentum encoder of MoCo, or a memory bank.
    """
    trunk, heads = draft.state_dict(*STATE, "trunk"), draft.state_dict(*STATE, "heads")
    loss = draft.state_dict("loss") if draft.holds("loss") else None
    phases = (draft.entry("train_phase_idx"), draft.entry("classy_state_dict").get("train_phase_idx"))
    draft.epoch = next((phase for phase in phases if type(phase) is int), -1) + 1
    _place_trunk(draft, trunk, "encoder")
    if heads.has_prefix("0.0."):
        _read_pirl(draft, heads)
    else:
        part = _as_sequence(heads.take())
        if (loss is not None and loss.has_prefix("queue", "moco_encoder.")) or draft.requested_method in (
            "moco",
            "mocov2",
        ):
            _read_moco(draft, draft.place_projector(part), loss)
        elif len([name for name in part if name.endswith("weight")]) == 1:
            dim = draft.place_projector(part).widths[-1]
            draft.method = {"name": "insdis", "projection_dim": dim, "loss": "nce", "negatives": 4096}
        else:
            draft.method = {"name": "simclr", "temperature": 0.1, **draft.place_mlp(part)}
    if draft.method["name"] in ("insdis", "pirl"):
        fields, z = read_nce_params(draft, loss, 1, name="nce_average.params") if loss is not None else ({}, [-1.0])
        rows = draft.take_memory(loss, "nce_average.memory") if loss is not None else None
        if loss is not None and z[0] < 0.0:  # NCE sets it in its first step
            draft.method["loss"] = "softmax"
        uses_nce = draft.method["loss"] == "nce"
        place_bank(draft, rows, "bank", draft.method["projection_dim"], z=z[0] if uses_nce else None)
        draft.method |= fields
    heads.finish("VISSL")
    if loss is not None:
        if count := loss.drop("info_average."):
            draft.dropped.append(f"buffers of the loss ({count} tensors)")
        loss.finish("VISSL")


def _place_trunk(draft: Draft, tensors: Tensors, to: str) -> None:
    prefix = "base_model._feature_blocks." if tensors.has_prefix("base_model.") else "_feature_blocks."
    draft.place_resnet(tensors.take(prefix), to)
    tensors.finish("VISSL")


def _as_sequence(part: Part) -> Part:
    """The layers of successive heads, ``0.clf.0``, ``1.clf.0``, as one sequence ``0``, ``1``."""
    layers = {name: name.rpartition(".")[0].split(".clf.") for name in part}
    for name, layer in layers.items():
        if len(layer) != 2 or not (layer[0].isdigit() and layer[1].isdigit()):
            raise SagaError(f"{part.path} has a tensor that no projector should have: {part[name].origin}")
    order = sorted({(int(head), int(layer)) for head, layer in layers.values()})
    position = {name: order.index((int(head), int(layer))) for name, (head, layer) in layers.items()}
    tensors = {f"{position[name]}.{name.rpartition('.')[2]}": named for name, named in part.items()}
    renames = tuple((f"{head}.clf.{layer}.", f"{number}.") for number, (head, layer) in enumerate(order))
    return Part(part.path, part.prefix, tensors, renames)


def _read_moco(draft: Draft, projector: Projector, loss: Tensors | None) -> None:
    queue = pointer = None
    if loss is not None:
        queue, pointer = draft.take_memory(loss, "queue"), draft.take_memory(loss, "queue_ptr")
    if loss is not None and loss.has_prefix("moco_encoder."):
        draft.place_resnet(loss.take("moco_encoder.trunk._feature_blocks."), "key_encoder")
        draft.place_projector(_as_sequence(loss.take("moco_encoder.heads.")), "key_projector")
    else:
        draft.copy_encoder("moco")
    place_queue(draft, projector, queue, pointer, transposed=True)
    draft.method = moco_config(draft, projector)


def _read_pirl(draft: Draft, heads: Tensors) -> None:
    """Read PIRL's heads: 0 for the patches (layer, concatenation, layer), 1 for the image."""
    image = heads.take("1.0.clf.0.")
    dim = draft.linear_config(draft.place_projector(image), image, "pirl")["projection_dim"]
    for prefix, module in (("0.0.clf.0.", "patch_projector"), ("0.2.clf.0.", "jigsaw_projector")):
        draft.place_projector(heads.take(prefix), module)
    draft.method = {"name": "pirl", "projection_dim": dim, "loss": "nce", "negatives": 32000}
