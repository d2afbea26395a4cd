"""The demo: plain training, then fine-tuning, SAGA and saga+ from the same checkpoint, and a report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.configs import shipped_config
from saga_fast.demo.data import make_demo_data
from saga_fast.loaders import ImageFolder
from saga_fast.loaders.engines import require_engine
from saga_fast.loaders.true_boxes import copy_true_boxes
from saga_fast.report import write_report
from saga_fast.runtime.threads import usable_cores
from saga_fast.train.cycle import train

log = logging.getLogger(__name__)

TINY = (
    "data.generate.num_train=96",
    "data.generate.num_val=48",
    "crop.size=32",
    "batch_size=32",
    "plain.epochs=1",
    "plain.warmup_epochs=0",
    "saga.epochs=2",
    "attention.period=1",
    "evaluate.k=[20]",
)
"""Overrides of the demo's config for ``--tiny``: each step runs, but the network learns nothing."""


def run_demo(
    out: Path, *, engine: str = "folder", tiny: bool = False, overrides: Sequence[str] = (), progress: bool = True
) -> Path:
    """Run the demo in a folder and return the path of the report.

    An interrupted demo resumes; for a finished one only the report is written again.

    Args:
        out: the folder of ``data/``, ``plain/``, ``finetune/``, ``saga/``, ``saga_plus/`` and ``report.html``.
        engine: loader engine; for ``ffcv`` the images are packed first, as raw pixels.
        tiny: a few dozen images and epochs: a smoke test of seconds.
        overrides: further ``key=value`` overrides of the demo's config.
        progress: show progress bars on stderr.

    Raises:
        SagaError: a config that training refuses, or a folder with another demo.
    """
    start = time.perf_counter()
    changes = [*(TINY if tiny else ()), *overrides]
    config, plus = (load_config(shipped_config(name), changes) for name in ("demo", "demo_plus"))
    paper = load_config(shipped_config("demo"), ["attention.views=att", *changes])
    train_data, val_data = (str(path) for path in _data(out / "data", engine, config, progress=progress))
    config = replace(config, data=replace(config.data, engine=engine, train=train_data, val=val_data))
    arms: dict[str, TrainConfig] = {
        "plain": replace(config, attention=None, saga=replace(config.saga, epochs=0)),
        "finetune": replace(config, attention=None),
        "saga": replace(config, attention=paper.attention),
        "saga_plus": replace(config, attention=plus.attention),
    }
    plain = out / "plain" / "last.pt"
    for name, arm in arms.items():
        log.info("demo: %s", name)
        train(
            replace(arm, out=str(out / name)), resume=True, ckpt=None if name == "plain" else plain, progress=progress
        )
    report = out / "report.html"
    epochs = f"{config.plain.epochs} plain epochs, then {config.saga.epochs} more"
    write_report(
        [out / name for name in arms],
        report,
        title="saga-fast demo",
        intro=f"SimCLR on generated images with known objects: {epochs},"
        " on whole images (finetune), with crops from the network's own attention as in the paper (saga), and with the"
        " recipe of docs/study.md (saga_plus).",
    )
    log.info("demo: %.0f s in total", time.perf_counter() - start)
    return report


def _data(folder: Path, engine: str, config: TrainConfig, *, progress: bool) -> list[Path]:
    """Generate the training and validation images and return their paths; for ffcv, pack them."""
    require_engine(engine)
    if config.data.generate:
        make_demo_data(folder, config.data.generate)
    splits = [folder / "train", folder / "val"]
    if engine != "ffcv":
        return splits
    from saga_fast.loaders.ffcv.pack import PackOptions, pack

    packed = [split.with_suffix(".beton") for split in splits]
    for split, file in zip(splits, packed, strict=True):
        if not file.exists():
            pack(ImageFolder(split), file, PackOptions(mode="raw"), workers=usable_cores(), progress=progress)
            copy_true_boxes(split, file)
    return packed
