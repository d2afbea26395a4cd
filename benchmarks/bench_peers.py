"""Two random resized crops of the same JPEGs by today's loaders: images/s, the time to the first batch, memory.

Each loader has a process of its own, restricted to the same cores, and the processes take turns: in each round every
one of them runs an epoch while the others wait. A loader's process has opened its data set, and compiled or packed what
it needs, before the first round. All return uint8 views of 224 px with the same ranges of area and aspect ratio, and
shuffle. One process is there twice: the difference of its two rows is the machine's noise.

- *folder*, *ffcv jpg*, *ffcv yuv420*, *ffcv raw*: our engines, which decode an image once for both crops;
- *torch*: torch's DataLoader with as many workers as cores; torchvision's decode_jpeg and v2.RandomResizedCrop;
- *FFCV*: its loader with a decoder per crop; *DALI*: image_random_crop and resize per crop, on the CPU;
- *SPDL*: its thread pipeline around torchvision's decode_jpeg and v2.RandomResizedCrop;
- *LitData*: a streaming data set of the JPEG files, its loader's workers, and the same transforms;
- *slipstream jpg*, *slipstream yuv420*: harvard-visionlab/slipstream with its fused multi-crop decoder.

The memory is that of the process and its children after the last round, shared pages counted in part (PSS).

``pip install spdl litdata`` brings two of them; slipstream is a checkout whose extension is built, named in PYTHONPATH.
A loader that cannot be imported is said and left out.

Run it as ``PYTHONPATH=. python benchmarks/bench_peers.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from benchmarks.bench_ffcv import packed, stock_loader
from benchmarks.loading import RATIO, SCALE, SEED, LoadingBench, consume, loading_parser, read_loading_options
from benchmarks.scaffold import record, use_cores
from saga_fast.loaders import ImageFolder, open_loader
from saga_fast.loaders.ffcv.pack import Mode
from saga_fast.profile.figures import Row, Seconds, compare

Epoch = Callable[[], Iterable[object]]
TARGET = 1.3
"""Of the fastest peer that reads JPEGs."""
WAIT = 900.0
"""Longest time until a process answers, seconds."""


def ours(engine: str, mode: Mode | None = None) -> Callable[[LoadingBench], Epoch]:
    """One of our engines, on the folder or a .beton file."""

    def make(bench: LoadingBench) -> Epoch:
        path = packed(bench.root, mode, bench.threads) if mode else bench.root
        loader = open_loader(engine, path, bench.crops(), bench.options)
        return lambda: loader

    return make


class TwoCrops:
    """torchvision's decode_jpeg and two of v2.RandomResizedCrop: (2, 3, S, S) uint8 of a file's bytes."""

    def __init__(self, size: int) -> None:
        from torchvision.transforms import v2

        self.crop = v2.RandomResizedCrop(size, SCALE, RATIO, antialias=True)

    def __call__(self, content: bytes) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_jpeg

        image = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        return torch.stack([self.crop(image), self.crop(image)])


class CropsOfFolder(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """A folder of images as a data set of torch."""

    def __init__(self, root: Path, size: int) -> None:
        self.source, self.crops = ImageFolder(root), TwoCrops(size)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.crops(self.source.read(index)), int(self.source.labels[index])


def torch_epochs(bench: LoadingBench) -> Epoch:
    """torch's DataLoader; its workers persist between epochs."""
    loader = torch.utils.data.DataLoader(
        CropsOfFolder(bench.root, bench.size),
        batch_size=bench.batch_size,
        shuffle=True,
        num_workers=bench.threads,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    return lambda: loader


def ffcv_epochs(bench: LoadingBench) -> Epoch:
    """FFCV's own loader."""
    loader = stock_loader(packed(bench.root, "jpg", bench.threads), bench, views=2)
    return lambda: loader


def dali_epochs(bench: LoadingBench) -> Epoch:
    """DALI's pipeline as its documentation composes one."""
    from benchmarks.bench_dali import Stock

    stock = Stock(bench, views=2)

    def epoch() -> Iterator[object]:
        for _ in range(stock.batches):
            stock.pipeline.schedule_run()
            yield stock.pipeline.share_outputs()
            stock.pipeline.release_outputs()

    return epoch


def spdl_epochs(bench: LoadingBench) -> Epoch:
    """SPDL's pipeline of threads."""
    from spdl.pipeline import PipelineBuilder

    source, crops = ImageFolder(bench.root), TwoCrops(bench.size)
    generator = np.random.default_rng(SEED)

    def views(index: int) -> tuple[torch.Tensor, int]:
        return crops(source.read(index)), int(source.labels[index])

    def joined(items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([view for view, _ in items]), torch.tensor([label for _, label in items])

    def epoch() -> Iterator[object]:
        torch.set_num_threads(1)  # the pipeline's threads are as many as the cores
        builder: Any = PipelineBuilder().add_source(generator.permutation(len(source)).tolist())
        builder.pipe(views, concurrency=bench.threads).aggregate(bench.batch_size).pipe(joined).add_sink(2)
        pipeline = builder.build(num_threads=bench.threads)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


class LitCrops:
    """LitData's ``transform`` of a sample."""

    def __init__(self, size: int) -> None:
        self.crops = TwoCrops(size)

    def __call__(self, sample: dict[str, Any], *_: Any) -> tuple[torch.Tensor, int]:
        return self.crops(sample["image"]), sample["label"]


class LitItem:
    """A sample of LitData's format: the file's bytes and the label."""

    def __init__(self, root: Path) -> None:
        self.source = ImageFolder(root)

    def __call__(self, index: int) -> dict[str, Any]:
        return {"image": self.source.read(index), "label": int(self.source.labels[index])}


def litdata_epochs(bench: LoadingBench) -> Epoch:
    """LitData's streaming data set and loader."""
    import litdata

    folder = bench.root.with_name(f"{bench.root.name}_litdata")
    if not (folder / "index.json").exists():
        indices = list(range(len(ImageFolder(bench.root))))
        litdata.optimize(LitItem(bench.root), indices, str(folder), chunk_bytes="64MB", num_workers=1)
    data = litdata.StreamingDataset(str(folder), shuffle=True, seed=SEED, transform=LitCrops(bench.size))
    loader = litdata.StreamingDataLoader(
        data, batch_size=bench.batch_size, num_workers=bench.threads, persistent_workers=True
    )
    return lambda: loader


def slipstream_epochs(image_format: str) -> Callable[[LoadingBench], Epoch]:
    """slipstream's loader with its fused decoder of several crops."""

    def make(bench: LoadingBench) -> Epoch:
        from slipstream import SlipstreamDataset, SlipstreamLoader
        from slipstream.decoders import DecodeUniformMultiRandomResizedCrop

        crops = DecodeUniformMultiRandomResizedCrop(
            num_crops=2, size=bench.size, scale=SCALE, ratio=RATIO, num_threads=bench.threads
        )
        loader = SlipstreamLoader(
            SlipstreamDataset(str(bench.root)),
            batch_size=bench.batch_size,
            shuffle=True,
            seed=SEED,
            drop_last=False,
            pipelines={"image": [crops]},
            exclude_fields=["path"],
            image_format=image_format,
            verbose=False,
        )
        return lambda: loader

    return make


class Way(NamedTuple):
    """A loader: the package that must be importable, what opens it, and whether it decodes the JPEG files."""

    module: str
    open: Callable[[LoadingBench], Epoch]
    jpeg: bool = True
    ours: bool = False


OURS, AGAIN = "folder, two views", "noise: folder, two views, again"
WAYS: dict[str, Way] = {
    OURS: Way("saga_fast", ours("folder"), ours=True),
    "ffcv jpg, two views": Way("ffcv", ours("ffcv", "jpg"), ours=True),
    "ffcv yuv420, two views": Way("ffcv", ours("ffcv", "yuv420"), jpeg=False, ours=True),
    "ffcv raw, two views": Way("ffcv", ours("ffcv", "raw"), jpeg=False, ours=True),
    "torch DataLoader, torchvision v2": Way("torchvision", torch_epochs),
    "FFCV, two decoders": Way("ffcv", ffcv_epochs),
    "DALI, two image_random_crop": Way("nvidia.dali", dali_epochs),
    "SPDL, torchvision v2": Way("spdl.pipeline", spdl_epochs),
    "LitData, torchvision v2": Way("litdata", litdata_epochs),
    "slipstream jpg": Way("slipstream", slipstream_epochs("jpeg")),
    "slipstream yuv420": Way("slipstream", slipstream_epochs("yuv420"), jpeg=False),
    AGAIN: Way("saga_fast", ours("folder"), ours=True),
}


def serve(name: str, bench: LoadingBench, connection: Connection) -> None:
    """A loader's process: open it, send the time to its first batch, then run an epoch per message."""
    use_cores(bench.threads)
    begin = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        epoch = WAYS[name].open(bench)
    for number, _ in enumerate(epoch()):  # the whole epoch: an iteration that is broken off leaves batches behind
        if number == 0:
            first = time.perf_counter() - begin
    connection.send(first)
    while connection.recv():
        begin = time.perf_counter()
        consume(epoch())
        connection.send(time.perf_counter() - begin)


class Server:
    """A loader's process, seen from the one that measures."""

    def __init__(self, name: str, bench: LoadingBench) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, bench, theirs))
        self._process.start()
        theirs.close()
        self.first = self._answer()

    def epoch(self) -> float:
        """Run an epoch; its seconds."""
        self._connection.send(True)
        return self._answer()

    def memory(self) -> int:
        """Bytes of the process and its children."""
        process = psutil.Process(self._process.pid)
        return sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True)))

    def close(self) -> None:
        """End the process and its children."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            child.kill()
        self._process.kill()
        self._process.join()

    def _answer(self) -> float:
        if not self._connection.poll(WAIT):
            raise SystemExit(f"{self.name} has not answered in {WAIT:.0f} s")
        try:
            return float(self._connection.recv())
        except EOFError as error:
            raise SystemExit(f"{self.name} failed") from error


def rows(bench: LoadingBench, names: list[str]) -> Iterator[Row]:
    """A row per loader, compared with the fastest peer of its kind: those that decode JPEG, or those that do not."""
    images = len(ImageFolder(bench.root))
    servers = [Server(name, bench) for name in names]
    try:
        for server in servers:
            server.epoch()
        times = [[server.epoch() for server in servers] for _ in range(bench.repeats)]
        seconds: dict[str, Seconds] = dict(zip(names, np.array(times).T, strict=True))
        memory = {server.name: server.memory() for server in servers}
    finally:
        for server in servers:
            server.close()
    for server in servers:
        name, way = server.name, WAYS[server.name]
        peers = [each for each in names if WAYS[each].jpeg == way.jpeg and not WAYS[each].ours]
        best = min(peers, key=lambda each: float(np.median(seconds[each]))) if peers else OURS
        against = OURS if name == AGAIN or not peers else best
        row = compare(name, seconds[name], seconds[against], against=against, images=images, rounds=bench.repeats)
        row |= {"threads": bench.threads, "first_batch_seconds": server.first, "memory_bytes": memory[name]}
        yield row | ({"target": TARGET} if way.ours and way.jpeg and name != AGAIN and peers else {})


def main() -> None:
    parser = loading_parser(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="default: all")
    options = parser.parse_args()
    bench, names = read_loading_options(options), []
    for name in options.ways:
        try:
            importlib.import_module(WAYS[name].module)
            names.append(name)
        except ImportError as error:
            print(f"left out: {name} ({error})")
    record(bench.out, rows(bench, names))


if __name__ == "__main__":
    main()
