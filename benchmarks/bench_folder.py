"""The folder engine against decoding alone, and MoCo v2's views against torch's DataLoader with torchvision on PIL.

All ways visit the same JPEG files once per round, on the same cores (the process restricts itself to ``--threads``),
and take turns, so a ratio compares neighbours in time. One way is timed twice: the difference of its two rows is the
machine's noise. Files are in the page cache after the warm-up round.

Run it as ``PYTHONPATH=. python benchmarks/bench_folder.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.kernel_peers import JITTER
from benchmarks.loading import (
    RATIO,
    SCALE,
    SEED,
    InMemory,
    LoadingBench,
    consume,
    decode_alone,
    half_side_boxes,
    read_loading_bench,
)
from benchmarks.scaffold import Pair, compare_pairs, record
from benchmarks.swaps import memory_over_epochs, table_swap
from saga_fast.kernels import PhotometricRecipe, augment, sample_photometrics
from saga_fast.loaders import ImageFolder, Loader, Plan, WholePlan, open_loader
from saga_fast.profile.figures import Row, Ways, time_pairs
from saga_fast.profile.kernels import MEAN, MOCO_V2, STD


def blur_kernel(size: int) -> int:
    """MoCo v2's kernel, a tenth of the view's side: 23 at 224 px."""
    return size // 20 * 2 + 1


class TwoViewsByTorchvision(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """MoCo v2's two views with torchvision's transforms on PIL images, as its own code composes them."""

    def __init__(self, source: ImageFolder, size: int) -> None:
        self.paths, self.labels = [str(source.root / path) for path in source.paths], source.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, SCALE, RATIO),
                transforms.RandomApply([transforms.ColorJitter(**JITTER)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.GaussianBlur(blur_kernel(size), (0.1, 2.0))], p=0.5),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        return self.transform(image), self.transform(image), self.labels[index]


def torch_loader(source: ImageFolder, bench: LoadingBench) -> DataLoader[Any]:
    """The peer. Its workers are spawned, because a fork would inherit thread pools, and persist between epochs."""
    return DataLoader(
        TwoViewsByTorchvision(source, bench.size),
        batch_size=bench.batch_size,
        shuffle=True,
        num_workers=bench.threads,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )


def augmented(loader: Loader, recipe: PhotometricRecipe) -> Iterator[torch.Tensor]:
    """The loader's batches as a training step gets them: (B, 2, 3, S, S) float32."""
    for batch in loader:
        photometrics = sample_photometrics(recipe, SEED, loader.epoch, batch.index, 2)
        yield augment(batch.views, photometrics, MEAN, STD)


def time_loaders(source: ImageFolder, bench: LoadingBench) -> Iterator[Row]:
    """The rows; ``against`` names the way that ``limit`` and ``ratio`` refer to."""
    in_memory, peer = InMemory(source.root), torch_loader(source, bench)
    decode = partial(decode_alone, source, bench)
    recipe = replace(MOCO_V2, blur_kernel=blur_kernel(bench.size))

    def engine(plan: Plan, *, shuffle: bool = True) -> Loader:
        return open_loader("folder", source, plan, bench.options, shuffle=shuffle)

    ways: Ways = {
        "decode": decode,
        "two views": partial(consume, engine(bench.crops())),
        "two views of boxes": partial(consume, engine(bench.crops(half_side_boxes(len(source))))),
        "decode again": decode,
        "one whole view": partial(consume, engine(WholePlan(size=bench.size), shuffle=False)),
        "decode from memory": partial(decode_alone, in_memory, bench),
        "MoCo v2": lambda: consume(augmented(engine(bench.crops()), recipe)),
        "MoCo v2 by torchvision": partial(consume, peer),
    }
    seconds = time_pairs(ways, repeats=bench.repeats)  # the warm-up compiles, reads the files and starts the workers
    del peer, ways  # ends the workers
    alone, boxes, moco = "read and decode alone", "folder, two views of attention boxes", "MoCo v2, folder + augment"
    by_torch = f"DataLoader ({bench.threads} workers), torchvision on PIL"
    pairs = (
        Pair("folder, two views", "two views", "decode", alone, 0.75),
        Pair(boxes, "two views of boxes", "two views", "folder, two views", 1.0),
        Pair(boxes, "two views of boxes", "decode", alone),
        Pair("folder, one whole view", "one whole view", "decode", alone),
        Pair(alone, "decode", "decode from memory", "decode alone, bytes in memory"),
        Pair(f"noise: {alone}, again", "decode again", "decode", alone),
        Pair(moco, "MoCo v2", "decode", alone),
        Pair(moco, "MoCo v2", "MoCo v2 by torchvision", by_torch, 8.0),
    )
    facts: Row = {"threads": bench.threads, "rounds": bench.repeats}
    yield from compare_pairs(seconds, pairs, images=len(source), facts=facts)


def rows(bench: LoadingBench) -> Iterator[Row]:
    """All rows."""
    yield from time_loaders(ImageFolder(bench.root), bench)
    yield memory_over_epochs("folder", bench.root, bench)
    yield from table_swap("folder", bench)


def main() -> None:
    bench = read_loading_bench(__doc__)
    record(bench.out, rows(bench))


if __name__ == "__main__":
    main()
