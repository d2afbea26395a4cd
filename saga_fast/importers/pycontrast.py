"""HobbitLong/PyContrast: InsDis, PIRL, MoCo, MoCo v2, InfoMin, and CMC at half width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.banks import place_bank
from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_values, place_queue
from saga_fast.importers.tensors import Tensors, begins

TITLE = "PyContrast"


def matches(content: Mapping[str, Any]) -> bool:
    """``model`` with an ``encoder`` and a ``head``, or two of each."""
    state = content.get("model")
    return (begins(state, "encoder.") and begins(state, "head.")) or begins(state, "encoder1.")


def read(draft: Draft) -> None:
    """``model``, ``contrast`` (bank or queue), ``model_ema``. The queue's pointer is in no file."""
    tensors = draft.tensors("model")
    memory = draft.tensors("contrast") if "contrast" in draft else None
    if tensors.has("encoder1."):
        _read_cmc(draft, tensors, memory)
    else:
        _read_rgb(draft, tensors, memory)
    tensors.finish(TITLE)
    if memory is not None:
        memory.finish(TITLE)


def _read_rgb(draft: Draft, tensors: Tensors, memory: Tensors | None) -> None:
    head = tensors.take("head.")
    projector = draft.place_projector(head)
    draft.place_resnet(tensors.take("encoder."))
    rows = draft.memory(memory, "memory") if memory else None
    if "model_ema" in draft or not projector.linear or draft.wanted in ("moco", "mocov2"):
        # 0.15 is InfoMin's, which has a jigsaw head too.
        temperature = {"temperature": 0.15} if tensors.has("head_jig.") else {}
        _drop_jigsaw(draft, tensors)
        if "model_ema" in draft:
            keys = draft.tensors("model_ema")
            draft.place_projector(keys.take("head."), "key_projector")
            draft.place_resnet(keys.take("encoder."), "key_encoder")
            keys.drop("head_jig.")
            keys.finish(TITLE)
        else:
            draft.copy_to_keys()
        place_queue(draft, projector, rows, None, transposed=False)
        draft.method = moco_values(draft, projector, **temperature)
        return
    if tensors.has("head_jig."):
        _place_jigsaw(draft, tensors)
        name = "pirl"
    else:
        name = "insdis"
        if rows is None and draft.wanted is None:
            draft.notes.append("a linear head without a bank may be InsDis' or MoCo's: --set method.name=moco for MoCo")
    draft.method = {"name": name, **draft.linear(projector, head, name)}
    place_bank(draft, rows, "bank", projector.widths[-1])


def _place_jigsaw(draft: Draft, tensors: Tensors) -> None:
    for theirs, ours in (("fc1", "patch_projector"), ("fc2", "jigsaw_projector")):
        part = tensors.take(f"head_jig.{theirs}.")
        draft.linear(draft.place_projector(part, ours), part, "pirl")


def _drop_jigsaw(draft: Draft, tensors: Tensors) -> None:
    if count := tensors.drop("head_jig."):
        draft.dropped.append(f"jigsaw head ({count} tensors): MoCo here has none")


def _read_cmc(draft: Draft, tensors: Tensors, memory: Tensors | None) -> None:
    if "model_ema" in draft:
        raise draft.fail("CMC with a momentum encoder (CMCv2) has no counterpart here")
    dims = []
    for number, ours, channels in (("1", "luminance", 1), ("2", "chrominance", 2)):
        head = tensors.take(f"head{number}.")
        projector = draft.place_projector(head, f"projector.{ours}")
        dims.append(draft.linear(projector, head, "cmc")["projection_dim"])
        draft.place_resnet(tensors.take(f"encoder{number}."), f"encoder.{ours}", in_channels=channels)
        place_bank(draft, draft.memory(memory, f"memory_{number}") if memory else None, f"{ours}_bank", dims[-1])
    draft.method = {"name": "cmc", "projection_dim": dims[0], "color": "ydbdr"}
    draft.notes.append("trained with colour jitter, which the config leaves out: see configs/imagenet/cmc.yaml")
