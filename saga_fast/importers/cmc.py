"""HobbitLong/CMC: CMC with L and ab encoders, InsDis and MoCo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_fast.importers.banks import place_bank, read_nce_params
from saga_fast.importers.draft import Draft, place_resnet_and_projector
from saga_fast.importers.moco import moco_config, place_queue
from saga_fast.importers.tensors import Tensors, has_prefix

TITLE = "CMC"


def matches(content: Mapping[str, Any]) -> bool:
    """Whether ``model`` has names that start with ``encoder.module.``."""
    return has_prefix(content.get("model"), "encoder.module.")


def read(draft: Draft) -> None:
    """Read ``model``, ``contrast``, ``model_ema`` and the command line's options in ``opt``."""
    options = draft.options("opt")
    tensors = draft.state_dict("model")
    if tensors.has_prefix(*(f"encoder.module.{branch}conv_block_1." for branch in ("l_to_ab.", "ab_to_l.", ""))):
        raise draft.error("an AlexNet, which saga-fast does not support: import a checkpoint of --model resnet50")
    memory = draft.state_dict("contrast") if "contrast" in draft else None
    if tensors.has_prefix("encoder.module.l_to_ab."):
        _read_cmc(draft, tensors, memory, options)
    elif "model_ema" in draft or options.get("moco") or draft.requested_method == "moco":
        _read_moco(draft, tensors, memory, options)
    else:
        projector = place_resnet_and_projector(draft, tensors, "encoder.module.", "fc")
        fields, loss, constants = _bank_numbers(memory, options, draft, 1)
        rows = draft.take_memory(memory, "memory") if memory else None
        place_bank(draft, rows, "bank", projector.widths[-1], z=constants[0] if loss == "nce" else None)
        draft.method = {"name": "insdis", "loss": loss, "projection_dim": projector.widths[-1], **fields}
    tensors.finish(TITLE)
    if memory is not None:
        memory.finish(TITLE)


def _bank_numbers(
    memory: Tensors | None, options: Mapping[str, Any], draft: Draft, constants: int
) -> tuple[dict[str, Any], str, list[float]]:
    """The bank's config fields, the loss (``softmax`` or ``nce``) and the constants Z.

    Without options in the file, the loss is NCE if its constants Z were set.
    """
    fields, z = read_nce_params(draft, memory, constants) if memory else ({}, [-1.0] * constants)
    softmax = options["softmax"] if "softmax" in options else max(z) < 0.0 and memory is not None
    return {"negatives": 4096, **fields}, "softmax" if softmax else "nce", z


def _read_cmc(draft: Draft, tensors: Tensors, memory: Tensors | None, options: Mapping[str, Any]) -> None:
    view = options.get("view", "Lab")
    if view != "Lab":
        raise draft.error(f"trained on {view}: saga-fast's CMC supports Lab and YDbDr")
    fields, loss, constants = _bank_numbers(memory, options, draft, 2)
    dim = 0
    # Z_l normalises the logits of l with the bank of ab, and Z_ab those of ab with the bank of l.
    branches = (("l_to_ab", "l", "luminance", 1, constants[1]), ("ab_to_l", "ab", "chrominance", 2, constants[0]))
    for module, bank, branch, channels, z in branches:
        prefix = f"encoder.module.{module}."
        head = tensors.take(f"{prefix}fc.")
        dim = draft.linear_config(draft.place_projector(head, f"projector.{branch}"), head, "cmc")["projection_dim"]
        draft.place_resnet(tensors.take(prefix), f"encoder.{branch}", in_channels=channels)
        place_bank(
            draft,
            draft.take_memory(memory, f"memory_{bank}") if memory else None,
            f"{branch}_bank",
            dim,
            z=z if loss == "nce" else None,
        )
    draft.method = {"name": "cmc", "color": "lab", "loss": loss, "projection_dim": dim, **fields}


def _read_moco(draft: Draft, tensors: Tensors, memory: Tensors | None, options: Mapping[str, Any]) -> None:
    projector = place_resnet_and_projector(draft, tensors, "encoder.module.", "fc")
    if "model_ema" in draft:
        keys = draft.state_dict("model_ema")
        place_resnet_and_projector(draft, keys, "encoder.module.", "fc", keys=True)
        keys.finish(TITLE)
    else:
        draft.copy_encoder("moco")
    if memory is not None:
        memory.pop("params")
    if options.get("softmax") is False:
        draft.notes.append("trained with NCE; training continues with the softmax loss of MoCo's paper")
    place_queue(draft, projector, draft.take_memory(memory, "memory") if memory else None, None, transposed=False)
    names = {"temperature": "nce_t", "momentum": "alpha"}
    fields = {field: options[name] for field, name in names.items() if name in options}
    draft.method = moco_config(draft, projector, **fields)
