"""Cost of the online figures: a training step with the online probe and without, and RankMe of an evaluation.

- *step*: ``backward_step`` and ``update_step`` of a method's shipped config on one batch in memory, with the probe and
  without, interleaved, each with a network of its own. The step without is timed with two networks: the difference is
  the machine's noise, which is above the probe's cost. So the probe's own work is also timed, on the step's features in
  memory, compared with the step without: ``share`` is that part of a step.
- *RankMe*: compared with ``torch.linalg.svdvals`` of the same features.

Run it on an idle machine as ``PYTHONPATH=. python benchmarks/bench_online.py --out FILE``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.scaffold import add_threads, benchmark_parser, record, use_cores
from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.configs import shipped_config
from saga_fast.evaluate.online_probe import OnlineProbe
from saga_fast.evaluate.rankme import rankme
from saga_fast.loaders import Batch
from saga_fast.methods import Method, MethodConfig, build_method
from saga_fast.models.modes import place_model
from saga_fast.optim import build_optimizer
from saga_fast.profile.figures import Row, Seconds, Ways, compare, line, time_pairs
from saga_fast.train.step import Training, backward_step, update_step

TARGET = 0.98
"""Of the rate of a step without the probe: 2 %."""
IMAGES = 2000
"""Of a made data set, which has a row for each in memory banks."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A shipped config, with as many classes as its data set has, and a batch for this machine."""

    config: str
    classes: int
    batch_size: int
    overrides: tuple[str, ...] = ()


CASES = (
    Case(config="demo", classes=10, batch_size=64),
    Case(config="demo_mocov2", classes=10, batch_size=64),
    Case(config="demo_cmc", classes=10, batch_size=64),
    Case(config="imagenet100/simclr", classes=100, batch_size=4),
    Case(config="imagenet/moco", classes=1000, batch_size=4, overrides=("method.queue_size=4096",)),
)
FEATURES = ((2000, 128), (25_600, 2048))
"""The demo's training images, and RankMe's sample of a ResNet-50."""


def training(config: TrainConfig, classes: int | None) -> Training:
    """A training with fresh weights, with a probe of this many classes or without."""
    torch.manual_seed(0)
    model = place_model(
        build_method(config.method, config.encoder, num_images=IMAGES), CPU, channels_last=config.channels_last
    )
    model.train()
    return Training(
        config=config,
        model=model,
        network=model,
        optimizer=build_optimizer(config.optimizer, model),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        probe=OnlineProbe(model, classes) if classes else None,
    )


def made_batch(config: TrainConfig, views: int, classes: int) -> Batch:
    """A batch of random views."""
    generator, size = torch.Generator().manual_seed(0), config.crop.size
    pixels = torch.randint(256, (config.batch_size, views, size, size, 3), generator=generator, dtype=torch.uint8)
    index = torch.randperm(IMAGES, generator=generator)[: config.batch_size]
    return Batch(pixels, index, torch.randint(classes, (config.batch_size,), generator=generator))


def take_step(each: Training, batch: Batch) -> None:
    """One training step."""
    backward_step(each, batch, 0)
    update_step(each)


def step_rows(case: Case, precision: str, repeats: int, batch_size: int | None) -> Iterator[Row]:
    """The rows of a case: a step with the probe, its noise, and the probe alone."""
    size = batch_size or case.batch_size
    overrides = [*case.overrides, f"batch_size={size}", f"precision={precision}"]
    config = load_config(shipped_config(case.config), overrides)
    probed, plain, again = (training(config, classes) for classes in (case.classes, None, None))
    batch = made_batch(config, plain.model.num_views, case.classes)
    source, features = FeatureSource(plain.model), recorded_inputs(plain, batch)
    probe = OnlineProbe(source, case.classes)

    def probe_alone() -> None:
        with probe.recording(batch.label):
            for projector, h in zip(source.projectors, features, strict=True):
                projector(h)
        probe.step()

    ways: Ways = {
        "with": partial(take_step, probed, batch),
        "without": partial(take_step, plain, batch),
        "again": partial(take_step, again, batch),
        "alone": probe_alone,
    }
    seconds = time_pairs(ways, repeats=repeats, warmup=2)
    name = f"{case.config}, {config.encoder.name} at {config.crop.size}, {case.classes} classes"
    facts: Row = {"batch_size": size, "precision": precision}
    step = "the step without"
    yield compare(f"step with the probe, {name}", seconds["with"], seconds["without"], against=step, target=TARGET) | (
        facts | {"noise": noise(seconds)}
    )
    row = compare(f"the probe alone, {name}", seconds["alone"], seconds["without"], against=step)
    yield row | facts | {"share": row["seconds"] / row["limit"]}


def noise(seconds: dict[str, Seconds]) -> float:
    """The median difference between equal steps, as a part of one."""
    return float(abs(np.median(seconds["again"] / seconds["without"]) - 1.0))


class FeatureSource(Method):
    """Stands for a model whose features are in memory: its projectors do nothing."""

    def __init__(self, model: Method) -> None:
        super().__init__(MethodConfig(name=model.method), model.encoder)
        self._places = tuple(nn.Identity() for _ in model.projectors)

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """As many as the model's."""
        return self._places


def recorded_inputs(each: Training, batch: Batch) -> list[Tensor]:
    """The features that a step passes to the projectors."""
    kept: list[Tensor] = []
    hooks = [
        projector.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach().clone()))
        for projector in each.model.projectors
    ]
    take_step(each, batch)
    for hook in hooks:
        hook.remove()
    return kept


def rankme_rows(sizes: Sequence[tuple[int, int]], repeats: int) -> Iterator[Row]:
    """A row per number of images and dimensions."""
    for count, dim in sizes:
        features = torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)))
        ways: Ways = {"ours": partial(rankme, features), "svdvals": partial(torch.linalg.svdvals, features)}
        seconds = time_pairs(ways, repeats=repeats)
        yield compare(f"RankMe, {count} x {dim}", seconds["ours"], seconds["svdvals"], against="torch.linalg.svdvals")


def main() -> None:
    parser = benchmark_parser(__doc__)
    add_threads(parser, default=2)
    parser.add_argument("--cases", nargs="+", default=[case.config for case in CASES], help="configs of CASES")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, help="default: each case's")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--features", type=int, nargs=2, action="append", metavar=("N", "D"), help="RankMe's sizes")
    options = parser.parse_args()
    use_cores(options.threads)
    steps = (
        step_rows(case, options.precision, options.repeats, options.batch_size)
        for case in CASES
        if case.config in options.cases
    )
    ranks = rankme_rows(options.features or FEATURES, max(options.repeats // 5, 1))
    record(options.out, chain(chain.from_iterable(steps), ranks), show=shown)


def shown(row: Row) -> str:
    """A row as text."""
    more = [f"{key} {100 * row[key]:.2f} %" for key in ("noise", "share") if key in row]
    return ", ".join([line(row), *more])


if __name__ == "__main__":
    main()
