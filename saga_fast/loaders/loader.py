"""The contract that every engine keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.batch import Batch
from saga_fast.loaders.image_folder import ImageFolder
from saga_fast.loaders.plan import Plan


class Loader(Protocol):
    """Batches of an epoch: the same ones whatever the engine, batch size, thread count or resume."""

    source: ImageFolder
    plan: Plan
    bad: BadImages
    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order and windows the next iteration takes."""

    def set_plan(self, plan: Plan) -> None:
        """The plan that the next iteration takes: a new box table, say. SagaError if it is another data set's."""

    def __len__(self) -> int:
        """Batches per epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The epoch's batches; iteration may be stopped at any point."""
