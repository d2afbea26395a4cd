"""Checkpoints of other projects: read without running pickled code, and converted to saga-fast's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saga_fast.errors import SagaError
from saga_fast.importers import (
    classifier,
    cmc,
    contrastivecrop,
    dino,
    invspread,
    lemniscate,
    lightly,
    moco,
    mocov3,
    pycontrast,
    simclr,
    simsiam,
    solo,
    vissl,
)
from saga_fast.importers.draft import Draft


@dataclass(frozen=True, kw_only=True)
class Format:
    """The layout of a project's checkpoints.

    Attributes:
        title: the project.
        matches: whether a file has the layout.
        read: fills a draft from a file.
    """

    title: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Draft], None]


FORMATS = {
    "contrastivecrop": Format(
        title="xyupeng/ContrastiveCrop", matches=contrastivecrop.matches, read=contrastivecrop.read
    ),
    "dino": Format(title="facebookresearch/dino", matches=dino.matches, read=dino.read),
    "mocov3": Format(title="facebookresearch/moco-v3", matches=mocov3.matches, read=mocov3.read),
    "simsiam": Format(title="facebookresearch/simsiam", matches=simsiam.matches, read=simsiam.read),
    "vissl": Format(title="facebookresearch/vissl", matches=vissl.matches, read=vissl.read),
    "cmc": Format(title="HobbitLong/CMC", matches=cmc.matches, read=cmc.read),
    "pycontrast": Format(title="HobbitLong/PyContrast", matches=pycontrast.matches, read=pycontrast.read),
    "lemniscate": Format(title="zhirongw/lemniscate.pytorch", matches=lemniscate.matches, read=lemniscate.read),
    "invspread": Format(
        title="mangye16/Unsupervised_Embedding_Learning", matches=invspread.matches, read=invspread.read
    ),
    "moco": Format(title="facebookresearch/moco", matches=moco.matches, read=moco.read),
    "lightly": Format(title="lightly-ai/lightly", matches=lightly.matches, read=lightly.read),
    "sthalles": Format(title="sthalles/SimCLR", matches=simclr.matches_sthalles, read=simclr.read_sthalles),
    "solo-learn": Format(title="vturrisi/solo-learn", matches=solo.matches, read=solo.read),
    "spijkervet": Format(title="Spijkervet/SimCLR", matches=simclr.matches_spijkervet, read=simclr.read_spijkervet),
    "torchvision": Format(title="a ResNet of torchvision or timm", matches=classifier.matches, read=classifier.read),
    "timm": Format(title="a network of timm", matches=classifier.matches_timm, read=classifier.read_timm),
    "vit": Format(title="a ViT of DINO, DINOv2 or timm", matches=classifier.matches_vit, read=classifier.read_vit),
}
"""Formats by name, in the order of detection."""


def detect(content: Mapping[str, Any], path: object) -> str:
    """The name of a file's format.

    Raises:
        SagaError: a saga-fast checkpoint, or a layout of no known format.
    """
    if str(content.get("format", "")).startswith("saga-fast/"):
        raise SagaError(f"{path} is a saga-fast checkpoint already: use it without import")
    name = next((name for name, layout in FORMATS.items() if layout.matches(content)), None)
    if name is None:
        keys = ", ".join(list(map(str, content))[:6])
        raise SagaError(
            f"{path} has the layout of no known project (its keys begin {keys}): name one with --format,"
            f" of {', '.join(FORMATS)}"
        )
    return name
