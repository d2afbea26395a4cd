"""Features of a frozen model: kNN, the linear probe and the pair similarities compare them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from saga_fast.errors import SagaError
from saga_fast.loaders import Batch, Loader
from saga_fast.methods import Method
from saga_fast.models.modes import eval_mode
from saga_fast.models.precision import Precision, autocast, normalize_views
from saga_fast.runtime.distributed import gather_uneven, is_main, rank, world_size
from saga_fast.runtime.signals import stop, stop_requested

Layer = Literal["backbone", "projector"]
LAYERS: tuple[Layer, ...] = ("backbone", "projector")


@dataclass(frozen=True, kw_only=True)
class FrozenModel:
    """A model whose features are computed without gradient, and the formats in which it runs."""

    model: Method
    precision: Precision = "fp32"
    channels_last: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device

    def features(
        self, batch: Batch, layer: Layer = "backbone", *, photometrics: Tensor | None = None
    ) -> list[list[Tensor]]:
        """The features h or z (B, D) float32 of a batch's main views, not normalised: a list of branches per view.

        Args:
            batch: V views per image.
            layer: ``backbone``: h = f(x); ``projector``: z = g(h).
            photometrics: (B, V, P) float32, or None for no augmentation.
        """
        return [
            [h if layer == "backbone" else z for h, z in branches]
            for branches in self._outputs(batch, photometrics, with_z=layer == "projector")
        ]

    def _outputs(self, batch: Batch, photometrics: Tensor | None, *, with_z: bool) -> list[list[tuple[Tensor, Tensor]]]:
        """(h, z) of each view and branch, float32; z is h where it is not wanted."""
        views = normalize_views(
            batch.views,
            self.model.encoder,
            self.device,
            photometrics=photometrics,
            channels_last=self.channels_last,
            precision=self.precision,
        )
        outputs = []
        with torch.no_grad(), autocast(self.device, self.precision):
            for images in views.unbind(1):
                of_view = []
                for branch in self.model.branches(images):
                    h = branch.encoder(branch.images)
                    of_view.append((h, branch.projector(h) if with_z else h))
                outputs.append(of_view)
        return [[(h.float(), z.float()) for h, z in of_view] for of_view in outputs]

    def unit_features(self, batch: Batch) -> dict[Layer, Tensor]:
        """L2-normalised features (B, D) float32 of both layers; views and branches are concatenated."""
        outputs = [pair for of_view in self._outputs(batch, None, with_z=True) for pair in of_view]
        return {layer: unit([pair[place] for pair in outputs]) for place, layer in enumerate(LAYERS)}


def unit(features: Sequence[Tensor]) -> Tensor:
    """Unit vectors, concatenated and scaled to length 1: the similarity is the mean of the parts' cosines."""
    return torch.cat([F.normalize(feature, dim=1) for feature in features], dim=1) / math.sqrt(len(features))


def local_batches(loader: Loader, count: int | None = None) -> Iterator[Batch]:
    """This rank's share of a pass over a loader: every world_size-th batch, whole.

    What is computed from a batch is thus what one process computes. The ranks exchange their lists of bad images before
    and after the pass, so each of them calls this, and reads to the end.

    Args:
        loader: whole batches in each process: ``options.world_size`` is 1.
        count: the pass has only this number of batches, all ranks' together; None: all of them.

    Raises:
        SagaError: more undecodable images than the loader's list allows.
    """
    loader.bad.share()
    loader.set_batches(np.arange(rank(), len(loader) if count is None else count, world_size()))
    try:
        yield from loader
    finally:
        loader.set_batches(None)
    loader.bad.share()


def gather_in_order(keys: list[Tensor], parts: list[Tensor]) -> Tensor:
    """The rows of all ranks on the CPU, sorted by key: [(B, ...), ...] -> (sum B, ...).

    Args:
        keys: (B,) int64 for each part, ascending on each rank and different between ranks.
        parts: this rank's rows, on the CPU; may be empty on all ranks but one.
    """
    if world_size() == 1:
        return torch.cat(parts)
    return gather_uneven(parts)[gather_uneven(keys).argsort(stable=True)]


def extract_features(
    frozen: FrozenModel, loader: Loader, *, progress: bool = False
) -> tuple[dict[Layer, Tensor], Tensor]:
    """L2-normalised features and labels of a data set's images, in eval mode; the model's mode is restored.

    Processes that torchrun started together share the batches, and each returns all features. At SIGTERM it ends with
    SystemExit 143, if the caller is :func:`saga_fast.runtime.signals.deferring_sigterm`.

    Returns:
        {"backbone": (M, dim), "projector": (M, 128)} float32 and labels (M,) int64, on the CPU, in the loader's order,
        for the M images that can be decoded; see :meth:`FrozenModel.unit_features`.

    Raises:
        SagaError: no image can be decoded, or more undecodable ones than the loader's list allows.
    """
    parts: dict[Layer, list[Tensor]] = {layer: [] for layer in LAYERS}
    labels, indices = [], []
    disable = None if progress and is_main() else True
    bar = tqdm(total=len(loader.source), desc="features", unit="img", disable=disable)
    with eval_mode(frozen.model), bar:
        for batch in local_batches(loader):
            if stop_requested():
                stop()
            for layer, features in frozen.unit_features(batch).items():
                parts[layer].append(features.cpu())
            labels.append(batch.label)
            indices.append(batch.index)
            bar.update(world_size() * len(batch.label))
    if len(loader.bad) == len(loader.source):
        raise SagaError(f"none of the {len(loader.source)} images in {loader.source.root} can be decoded")
    gathered = {layer: gather_in_order(indices, part) for layer, part in parts.items()}
    return gathered, gather_in_order(indices, labels)
