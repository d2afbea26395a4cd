"""Streaming attention: boxes from maps that training's own views leave behind, without any attention pass.

A training step has z and A of its views at hand. The map of a view (Eq. 3) is placed back through the view's window
into its image, on a fixed grid, and added to what earlier views of that image have left; the box of the accumulated map
follows as in the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.attention import scaled_map
from saga_fast.attention_config import AttentionConfig
from saga_fast.attention_parts import COLUMNS
from saga_fast.channel_weights import channel_weights
from saga_fast.distributed import broadcast_tensors, gather_objects, gather_uneven, world_size
from saga_fast.errors import SagaError
from saga_fast.kernels import attention_boxes
from saga_fast.loaders import BoxTable
from saga_fast.methods import Method
from saga_fast.methods.bank import last_occurrence
from saga_fast.methods.method import Branch
from saga_fast.sync_batchnorm import is_own_batchnorm

Int32 = npt.NDArray[np.int32]

ROWS = 4096
"""Images whose boxes are made together."""
FADED = 1e-30
"""Weight up to which a cell counts as not covered: of smaller numbers float32 loses digits."""


class StreamedMaps:
    """Every image's attention map, accumulated over the views that training has seen of it.

    Of image i: sums S (K, G, G') and weights W (G, G'), where K is the number of branches (two for CMC, else one) and
    (G, G') the encoder's map of a whole image. A step with views v adds to them

        S <- decay S + sum_v R_v L_v C_v',   W <- decay W + sum_v (R_v 1) (C_v 1)'

    with L_v the view's map (u, v), not scaled, and R_v (G, u), C_v (G', v) the fractions of each cell of the image's
    grid that each row and column of the view's map covers; a flipped view has the columns of C_v in reverse order.
    S / W is the mean map, weighted by area. Cells that no view has covered count as the least of those that have been.

    Views are seen in train mode: batch norm uses the batch's statistics, but for those of the projector. A view whose
    map is not finite leaves nothing.

    Memory: (K + 1) G G' float32 and 12 bytes per image on the model's device and in each checkpoint: 0.5 GB for
    ImageNet and a ResNet at 224 px, whose map is 7 x 7; and 8 bytes on the host, for its size.

    Args:
        model: whose training steps these are.
        num_images: of the data set.
        size: side of a whole image from whose map the grid is taken, and of the upsampled map, pixels.
        attention: ``score``, ``delta``, ``normalize`` and ``decay``.

    Attributes:
        sizes: (N, 2) int32, height and width of the images that have been seen; see
            :class:`~saga_fast.loaders.plan.SizesKept`.
    """

    def __init__(self, model: Method, num_images: int, *, size: int, attention: AttentionConfig) -> None:
        self._size, self._attention = size, attention
        self._device = next(model.parameters()).device
        self._branches = model.branches(torch.zeros(1, 3, size, size, device=self._device))
        grid = _whole_map(self._branches[0])
        self._sums = torch.zeros(num_images, len(self._branches), *grid, device=self._device)
        self._weights = torch.zeros(num_images, *grid, device=self._device)
        self._label = torch.full((num_images,), -1, device=self._device)
        self._score = torch.zeros(num_images, device=self._device)
        self._new: list[Tensor] = []  # images seen since the processes shared their maps
        self.sizes: Int32 = np.zeros((num_images, 2), np.int32)

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """(N,) bool, the images that have a map."""
        found: npt.NDArray[np.bool_] = (self._weights > FADED).any(2).any(1).cpu().numpy()
        return found

    def watch(self) -> None:
        """Before a step: the encoders keep what they see, until :meth:`add` or :meth:`drop`."""
        for branch in self._branches:
            branch.encoder.seen = []

    def drop(self) -> None:
        """After a step that came to nothing."""
        for branch in self._branches:
            branch.encoder.seen = None

    @torch.no_grad()
    def add(self, index: Tensor, windows: Int32, flips: Tensor) -> None:
        """After a step: take its views.

        An encoder's first call has looked at the first V' of an image's views, image by image: one or all of them,
        according to the method.

        Args:
            index: (B,) int64, on the CPU.
            windows: (B, V, 4) int32 [top, left, height, width], pixels of images of :attr:`sizes`.
            flips: (B, V) bool, the views that were mirrored.
        """
        features = [branch.encoder.seen[0] for branch in self._branches if branch.encoder.seen]
        assert len(features) == len(self._branches), "add without a step"
        self.drop()
        views = len(features[0]) // len(index)
        place = _Place(
            windows[:, :views],
            self.sizes[index.numpy()],
            flips[:, :views],
            grid=self._weights.shape[1:],
            cells=features[0].shape[2:],
            device=self._device,
        )
        index = index.to(self._device, non_blocking=True)
        maps, usable, label, value = self._maps(features, place)
        usable = usable & maps.isfinite().all((2, 3, 4))
        maps = maps.where(usable[..., None, None, None], 0.0)
        # Of an image that the batch holds twice the last counts: which write comes last is not defined on a GPU.
        last = last_occurrence(index)
        rows, decay = place.rows * usable[..., None, None], self._attention.decay
        placed = torch.einsum("bvgi,bvkij,bvhj->bkgh", rows, maps, place.columns)
        covered = torch.einsum("bvg,bvh->bgh", rows.sum(3), place.columns.sum(3))
        # A step that leaves nothing does not fade what is there.
        kept = torch.where(usable.any(1), decay, 1.0)[:, None, None]
        self._sums[index] = (kept[:, None] * self._sums[index] + placed)[last]
        self._weights[index] = (kept * self._weights[index] + covered)[last]
        self._label[index], self._score[index] = label[last], value[last]
        if world_size() > 1:
            self._new.append(index)

    def _maps(self, features: list[Tensor], place: _Place) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps (B, V, K, u, v), which views can be used (B, V) bool, and the first views' labels and scores (B,)."""
        count, score = len(place.rows), self._attention.score
        usable = torch.ones(place.rows.shape[:2], dtype=torch.bool, device=self._device)
        maps, labels, values = [], [], []
        for branch, every in zip(self._branches, features, strict=True):
            _share_statistics(branch.projector)
            with _in_eval_mode(branch.encoder), _in_eval_mode(branch.projector):
                weights, label, value = channel_weights(branch.encoder, branch.projector, every, score)
            own = every.float().view(count, -1, *every.shape[1:])
            if score == "background":
                found, usable = _foreground(own, place.border)
            else:
                found = torch.einsum("bvcij,bvc->bvij", own, weights.view(*own.shape[:3])).relu()
            maps.append(found)
            labels.append(label.view(count, -1)[:, 0] + branch.first_dim)
            values.append(value.view(count, -1)[:, 0])
        value, strongest = torch.stack(values, 1).max(1)
        label = torch.stack(labels, 1).gather(1, strongest[:, None])[:, 0]
        return torch.stack(maps, 2), usable, label, value

    def share(self) -> None:
        """Let every process have the maps of the images that any has seen; all call it at the same steps."""
        if world_size() == 1:
            return
        own = torch.unique(torch.cat(self._new)) if self._new else None
        self._new.clear()

        def gathered(rows: Tensor) -> Tensor:
            return gather_uneven([] if own is None else [rows[own].cpu()]).to(self._device)

        if not any(gather_objects(own is not None)):
            return
        index = gathered(torch.arange(len(self._label), device=self._device))
        # An image that two processes have seen, as the stand-in of a bad one: the last one's counts, everywhere.
        numbers, from_end = np.unique(index.cpu().numpy()[::-1], return_index=True)
        chosen = torch.from_numpy(len(index) - 1 - from_end).to(self._device)
        for rows in self._rows.values():
            rows[torch.from_numpy(numbers).to(self._device)] = gathered(rows)[chosen]

    def table(self, metadata: Mapping[str, str], *, others: BoxTable | None) -> BoxTable:
        """The boxes of the maps as they are.

        Args:
            metadata: for the table.
            others: a table with the rows of images that have not been seen; without it they keep the whole image.
        """
        table = BoxTable.whole(len(self._label)) if others is None else others
        columns = {name: np.array(getattr(table, name)) for name in COLUMNS}
        for index in torch.split(torch.from_numpy(np.flatnonzero(self.seen)).to(self._device), ROWS):
            boxes, found = self._boxes(index)
            new = {"boxes": boxes, "found": found, "pseudo_label": self._label[index], "score": self._score[index]}
            for name, rows in new.items():
                columns[name][index.cpu().numpy()] = rows.cpu().numpy()
        return BoxTable(**columns, metadata=metadata)

    def _boxes(self, index: Tensor) -> tuple[Tensor, Tensor]:
        covered = (self._weights[index] > FADED)[:, None]
        mean = self._sums[index] / self._weights[index][:, None]
        least = mean.where(covered, torch.inf).amin((2, 3), keepdim=True)
        maps = mean.where(covered, least)
        a, branches = self._attention, maps.shape[1]
        if branches > 1:
            ones = maps.new_ones(len(maps), 1)
            maps = torch.stack([scaled_map(one[:, None], ones, a.normalize) for one in maps.unbind(1)], 1)
        weights = maps.new_full((len(maps), branches), 1.0 / branches)
        return attention_boxes(maps, weights, delta=a.delta, size=self._size, normalize=a.normalize)

    @property
    def _rows(self) -> dict[str, Tensor]:
        return {"sums": self._sums, "weights": self._weights, "label": self._label, "score": self._score}

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; see :meth:`share`."""
        return {name: rows.cpu() for name, rows in self._rows.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The counterpart.

        Raises:
            SagaError: maps of another network or data set.
        """
        shapes = {name: tuple(rows.shape) for name, rows in self._rows.items()}
        found = {name: tuple(rows.shape) for name, rows in state.items()}
        if found != shapes:
            raise SagaError(f"the checkpoint's attention maps have shapes {found}, expected {shapes}")
        for name, rows in self._rows.items():
            rows.copy_(state[name])


class _Place:
    """Where the cells of views lie in their images.

    Attributes:
        rows: R (B, V, G, u) float32, the fraction of each row of the image's grid that a row of the view's map covers.
        columns: C (B, V, G', v), columns alike.
        border: (B, V, u, v) bool, the cells whose centre is in an outermost row or column of the image's grid.
    """

    def __init__(
        self,
        windows: Int32,
        sizes: Int32,
        flips: Tensor,
        *,
        grid: Sequence[int],
        cells: Sequence[int],
        device: torch.device,
    ) -> None:
        near, side = (
            torch.from_numpy(part / sizes[:, None]).to(device, non_blocking=True)
            for part in np.split(windows, 2, axis=2)
        )
        parts = []
        for axis in (0, 1):
            # In units of the grid's cells, in float64, so that a whole view's cells are the grid's to the last bit.
            start, step = (grid[axis] * each[..., axis, None] for each in (near, side / cells[axis]))
            edges = start + step * torch.arange(cells[axis] + 1, device=device)
            cell = torch.arange(grid[axis], device=device)[:, None]
            overlap = torch.minimum(edges[..., None, 1:], cell + 1) - torch.maximum(edges[..., None, :-1], cell)
            centre = 0.5 * (edges[..., 1:] + edges[..., :-1])
            outer = (centre < 1.0) | (centre > grid[axis] - 1.0)
            parts.append((overlap.clamp(min=0.0).float(), outer))
        (self.rows, top_bottom), (columns, left_right) = parts
        flips = flips.to(device, non_blocking=True)
        self.columns = torch.where(flips[..., None, None], columns.flip(3), columns)
        left_right = torch.where(flips[..., None], left_right.flip(2), left_right)
        self.border = top_bottom[..., :, None] | left_right[..., None, :]


def _foreground(features: Tensor, border: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`saga_fast.activations.foreground_map`, with the background of all of an image's views.

    The direction has length 1, so that maps of different steps can be added.

    Args:
        features: (B, V, C, u, v) float32.
        border: (B, V, u, v) bool, cells at the image's border.

    Returns:
        Maps (B, V, u, v), and (B, V) bool, False for images whose border no view shows.
    """
    cells, weights = F.normalize(features, dim=2), border.to(features.dtype)
    count = weights.sum((1, 2, 3))
    background = torch.einsum("bvcij,bvij->bc", cells, weights) / count.clamp(min=1.0)[:, None]
    difference = cells - background[:, None, :, None, None]
    direction = torch.einsum("bvcij,bvij->bc", difference, difference.square().sum(2).square())
    found = torch.einsum("bvcij,bc->bvij", difference, F.normalize(direction, dim=1)).relu()
    return found, (count > 0)[:, None].expand(border.shape[:2])


@torch.no_grad()
def _whole_map(branch: Branch) -> tuple[int, int]:
    """The shape of the map of a whole image."""
    was_training = branch.encoder.training
    branch.encoder.eval()
    height, width = branch.encoder.features(branch.images).shape[2:]
    branch.encoder.train(was_training)
    return height, width


def _share_statistics(projector: nn.Module) -> None:
    """Let every process have rank 0's running statistics, which are those of checkpoints, where each has its own.

    Training normalises by the batch and does not use them, but maps do: without this a resumed run had others.
    """
    if world_size() > 1:
        norms = [module for module in projector.modules() if is_own_batchnorm(module)]
        broadcast_tensors([buffer for norm in norms for buffer in norm.buffers()])


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
