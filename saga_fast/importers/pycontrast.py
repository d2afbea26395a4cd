"""HobbitLong/PyContrast: InsDis, PIRL, MoCo, MoCo v2, InfoMin, and CMC at half width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.banks import place_bank
from saga_fast.importers.draft import Draft
from saga_fast.importers.moco import moco_config, place_queue
from saga_fast.importers.tensors import Tensors, has_prefix

TITLE = "PyContrast"


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``model`` has ``encoder`` and ``head``, or two of each."""
    state = content.get("model")
    return (has_prefix(state, "encoder.") and has_prefix(state, "head.")) or has_prefix(state, "encoder1.")


def read(draft: Draft) -> None:
    """Read ``model``, ``contrast`` (bank or queue) and ``model_ema``; no file has the queue's pointer."""
    tensors = draft.state_dict("model")
    memory = draft.state_dict("contrast") if "contrast" in draft else None
    if tensors.has_prefix("encoder1."):
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
    rows = draft.take_memory(memory, "memory") if memory else None
    if "model_ema" in draft or not projector.is_linear or draft.requested_method in ("moco", "mocov2"):
        # Only InfoMin has both a jigsaw head and MoCo's loss; its temperature is 0.15.
        temperature = {"temperature": 0.15} if tensors.has_prefix("head_jig.") else {}
        _drop_jigsaw(draft, tensors)
        if "model_ema" in draft:
            keys = draft.state_dict("model_ema")
            draft.place_projector(keys.take("head."), "key_projector")
            draft.place_resnet(keys.take("encoder."), "key_encoder")
            keys.drop("head_jig.")
            keys.finish(TITLE)
        else:
            draft.copy_encoder("moco")
        place_queue(draft, projector, rows, None, transposed=False)
        draft.method = moco_config(draft, projector, **temperature)
        return
    if tensors.has_prefix("head_jig."):
        _place_jigsaw(draft, tensors)
        name = "pirl"
    else:
        name = "insdis"
        if rows is None and draft.requested_method is None:
            draft.notes.append("taken as InsDis, because there is no bank: for MoCo, --set method.name=moco")
    draft.method = {"name": name, **draft.linear_config(projector, head, name)}
    place_bank(draft, rows, "bank", projector.widths[-1])


def _place_jigsaw(draft: Draft, tensors: Tensors) -> None:
    for layer, module in (("fc1", "patch_projector"), ("fc2", "jigsaw_projector")):
        part = tensors.take(f"head_jig.{layer}.")
        draft.linear_config(draft.place_projector(part, module), part, "pirl")


def _drop_jigsaw(draft: Draft, tensors: Tensors) -> None:
    if count := tensors.drop("head_jig."):
        draft.dropped.append(f"jigsaw head ({count} tensors): saga-fast's MoCo has none")


def _read_cmc(draft: Draft, tensors: Tensors, memory: Tensors | None) -> None:
    if "model_ema" in draft:
        raise draft.error("CMC with a momentum encoder (CMCv2) is not supported")
    dims = []
    for number, branch, channels in (("1", "luminance", 1), ("2", "chrominance", 2)):
        head = tensors.take(f"head{number}.")
        projector = draft.place_projector(head, f"projector.{branch}")
        dims.append(draft.linear_config(projector, head, "cmc")["projection_dim"])
        draft.place_resnet(tensors.take(f"encoder{number}."), f"encoder.{branch}", in_channels=channels)
        place_bank(draft, draft.take_memory(memory, f"memory_{number}") if memory else None, f"{branch}_bank", dims[-1])
    draft.method = {"name": "cmc", "projection_dim": dims[0], "color": "ydbdr"}
    draft.notes.append("trained with colour jitter, which the config does not use: see configs/imagenet/cmc.yaml")
