"""HobbitLong/CMC: CMC with L and ab encoders, InsDis and MoCo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.banks import nce_numbers, place_bank
from saga_fast.importers.draft import Draft, resnet_and_head
from saga_fast.importers.moco import moco_values, place_queue
from saga_fast.importers.tensors import Tensors, begins

TITLE = "CMC"


def matches(content: Mapping[str, Any]) -> bool:
    """``model`` with ``encoder.module.``."""
    return begins(content.get("model"), "encoder.module.")


def read(draft: Draft) -> None:
    """``model``, ``contrast``, ``model_ema`` and ``opt``, the command line's options (argparse.Namespace)."""
    options = vars(draft.use("opt")) if "opt" in draft else {}
    tensors = draft.tensors("model")
    memory = draft.tensors("contrast") if "contrast" in draft else None
    if tensors.has("encoder.module.l_to_ab."):
        _read_cmc(draft, tensors, memory, options)
    elif "model_ema" in draft or options.get("moco") or draft.wanted == "moco":
        _read_moco(draft, tensors, memory, options)
    else:
        projector = resnet_and_head(draft, tensors, "encoder.module.", "fc")
        fields, loss, constants = _bank_numbers(memory, options, draft, 1)
        rows = draft.memory(memory, "memory") if memory else None
        place_bank(draft, rows, "bank", projector.widths[-1], z=constants[0] if loss == "nce" else None)
        draft.method = {"name": "insdis", "loss": loss, "projection_dim": projector.widths[-1], **fields}
    tensors.finish(TITLE)
    if memory is not None:
        memory.finish(TITLE)


def _bank_numbers(
    memory: Tensors | None, options: Mapping[str, Any], draft: Draft, constants: int
) -> tuple[dict[str, Any], str, list[float]]:
    """The bank's fields, ``softmax`` or ``nce``, and Z: the options say which, or a Z that was set."""
    fields, z = nce_numbers(draft, memory, constants) if memory else ({}, [-1.0] * constants)
    softmax = options["softmax"] if "softmax" in options else max(z) < 0.0 and memory is not None
    return {"negatives": 4096, **fields}, "softmax" if softmax else "nce", z


def _read_cmc(draft: Draft, tensors: Tensors, memory: Tensors | None, options: Mapping[str, Any]) -> None:
    view = options.get("view", "Lab")
    if view != "Lab":
        raise draft.fail(f"trained on {view}, CMC here takes Lab or YDbDr")
    fields, loss, constants = _bank_numbers(memory, options, draft, 2)
    dim = 0
    # Z_l scales l against the bank of ab, and the other way round.
    sides = (("l_to_ab", "l", "luminance", 1, constants[1]), ("ab_to_l", "ab", "chrominance", 2, constants[0]))
    for theirs, bank, ours, channels, z in sides:
        prefix = f"encoder.module.{theirs}."
        head = tensors.take(f"{prefix}fc.")
        dim = draft.linear(draft.place_projector(head, f"projector.{ours}"), head, "cmc")["projection_dim"]
        draft.place_resnet(tensors.take(prefix), f"encoder.{ours}", in_channels=channels)
        place_bank(
            draft,
            draft.memory(memory, f"memory_{bank}") if memory else None,
            f"{ours}_bank",
            dim,
            z=z if loss == "nce" else None,
        )
    draft.method = {"name": "cmc", "color": "lab", "loss": loss, "projection_dim": dim, **fields}


def _read_moco(draft: Draft, tensors: Tensors, memory: Tensors | None, options: Mapping[str, Any]) -> None:
    projector = resnet_and_head(draft, tensors, "encoder.module.", "fc")
    if "model_ema" in draft:
        keys = draft.tensors("model_ema")
        resnet_and_head(draft, keys, "encoder.module.", "fc", keys=True)
        keys.finish(TITLE)
    else:
        draft.copy_to_keys()
    if memory is not None:
        memory.pop("params")
    if options.get("softmax") is False:
        draft.notes.append("trained with NCE, goes on with the softmax loss of MoCo's paper")
    place_queue(draft, projector, draft.memory(memory, "memory") if memory else None, None, transposed=False)
    others = {"temperature": options["nce_t"]} if "nce_t" in options else {}
    draft.method = moco_values(
        draft, projector, **others | ({"momentum": options["alpha"]} if "alpha" in options else {})
    )
