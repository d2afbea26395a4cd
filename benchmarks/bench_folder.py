"""The folder engine beside decoding alone, and the MoCo v2 pipeline beside a torch DataLoader with torchvision on PIL.

Every way visits the same JPEG files once per round, on the same cores (the process binds itself to as many as there are
threads), and the ways take turns, so a ratio compares neighbours in time. One way is there twice: how far its two rows
differ is the machine's noise. Files are in the page cache after the warm-up round.

Run it as ``PYTHONPATH=. python benchmarks/bench_folder.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.loading import (
    RATIO,
    SCALE,
    SEED,
    consume,
    decode_bytes,
    decode_files,
    half_side_boxes,
    read_arguments,
)
from benchmarks.swaps import memory_over_epochs, table_swap
from saga_fast.kernels import PhotometricRecipe, augment, sample_photometrics
from saga_fast.loaders import CropPlan, ImageFolder, Loader, Plan, WholePlan, open_loader
from saga_fast.profile.figures import Row, Ways, compare, line, time_pairs, write

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def mocov2_recipe(size: int) -> PhotometricRecipe:
    """MoCo v2's photometrics (REFERENCE 2), the blur's kernel a tenth of the view's side."""
    return PhotometricRecipe(flip=0.5, **JITTER, jitter=0.8, grayscale=0.2, blur=0.5, blur_kernel=_blur_kernel(size))


def _blur_kernel(size: int) -> int:
    return size // 20 * 2 + 1  # 23 at 224


class TwoViewsByTorchvision(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """MoCo v2's two views with torchvision's transforms on PIL images, as its own code composes them."""

    def __init__(self, source: ImageFolder, size: int) -> None:
        self.paths, self.labels = [str(source.root / path) for path in source.paths], source.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, SCALE, RATIO),
                transforms.RandomApply([transforms.ColorJitter(**JITTER)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([transforms.GaussianBlur(_blur_kernel(size), (0.1, 2.0))], p=0.5),
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


def augmented(loader: Loader, recipe: PhotometricRecipe) -> Iterator[torch.Tensor]:
    """The loader's batches as a training step gets them: (B, 2, 3, S, S) float32."""
    for batch in loader:
        photometrics = sample_photometrics(recipe, SEED, loader.epoch, batch.index, 2)
        yield augment(batch.views, photometrics, MEAN, STD)


def bench(source: ImageFolder, *, size: int, threads: int, batch_size: int, repeats: int) -> list[Row]:
    """All rows; ``against`` in each names the way that ``limit`` and ``ratio`` refer to."""
    count = len(source)
    paths = [source.root / path for path in source.paths]
    contents = [path.read_bytes() for path in paths]
    crops = CropPlan(size=size, seed=SEED, scale=SCALE, ratio=RATIO)
    boxes = CropPlan(size=size, seed=SEED, scale=SCALE, ratio=RATIO, table=half_side_boxes(count))

    def engine(plan: Plan, *, shuffle: bool = True) -> Loader:
        return open_loader("folder", source, plan, batch_size=batch_size, shuffle=shuffle, seed=SEED, threads=threads)

    # Spawned and kept: a fork would inherit this process's thread pools, and starting up is no part of an epoch.
    peer: DataLoader[Any] = DataLoader(
        TwoViewsByTorchvision(source, size),
        batch_size=batch_size,
        shuffle=True,
        num_workers=threads,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    decode = partial(decode_files, paths, threads)
    ways: Ways = {
        "decode": decode,
        "two views": partial(consume, engine(crops)),
        "two views of boxes": partial(consume, engine(boxes)),
        "decode again": decode,
        "one whole view": partial(consume, engine(WholePlan(size=size), shuffle=False)),
        "decode from memory": partial(decode_bytes, contents, threads),
        "MoCo v2": lambda: consume(augmented(engine(crops), mocov2_recipe(size))),
        "MoCo v2 by torchvision": partial(consume, peer),
    }
    seconds = time_pairs(ways, repeats=repeats)  # the warm-up round compiles, reads every file, starts the workers
    del peer, ways  # ends the workers

    facts: dict[str, Any] = {"threads": threads, "rounds": repeats}
    return [
        compare(name, seconds[way], seconds[other], against=against, images=count, **facts, **more)
        for name, way, other, against, more in (
            ("folder, two views", "two views", "decode", "read and decode alone", {"target": 0.75}),
            (
                "folder, two views of attention boxes",
                "two views of boxes",
                "two views",
                "folder, two views",
                {"target": 1.0},
            ),
            ("folder, two views of attention boxes", "two views of boxes", "decode", "read and decode alone", {}),
            ("folder, one whole view", "one whole view", "decode", "read and decode alone", {}),
            ("read and decode alone", "decode", "decode from memory", "decode alone, bytes in memory", {}),
            ("noise: read and decode alone, again", "decode again", "decode", "read and decode alone", {}),
            ("MoCo v2, folder + augment", "MoCo v2", "decode", "read and decode alone", {}),
            (
                "MoCo v2, folder + augment",
                "MoCo v2",
                "MoCo v2 by torchvision",
                f"DataLoader ({threads} workers), torchvision on PIL",
                {"target": 8.0},
            ),
        )
    ]


def main() -> None:
    arguments, root = read_arguments(__doc__)
    source, sizes = ImageFolder(root), {"size": arguments.size, "batch_size": arguments.batch_size}
    rows = bench(source, threads=arguments.threads, repeats=arguments.repeats, **sizes)
    loader = open_loader("folder", source, CropPlan(size=arguments.size, seed=SEED), batch_size=arguments.batch_size)
    rows.append(memory_over_epochs(loader, "folder", epochs=arguments.epochs))
    rows += table_swap("folder", root, count=arguments.rows, repeats=arguments.repeats, **sizes)
    write(arguments.out, rows)
    print(*map(line, rows), sep="\n")


if __name__ == "__main__":
    main()
