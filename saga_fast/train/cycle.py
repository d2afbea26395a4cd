"""The training cycle: plain epochs, then SAGA epochs with D^att renewed every P of them (SAGA, section 2.3)."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from saga_fast.checkpoint import read_checkpoint, save_checkpoint
from saga_fast.config import TrainConfig
from saga_fast.config_file import config_to_dict
from saga_fast.errors import SagaError
from saga_fast.evaluate.boxes import unhelpful
from saga_fast.evaluate.features import FrozenModel, Layer, extract_features
from saga_fast.evaluate.knn import align_labels, knn_accuracy
from saga_fast.evaluate.rankme import MAX_IMAGES, rankme
from saga_fast.loaders import WholePlan
from saga_fast.loaders.bad_images import FOUND_EARLIER
from saga_fast.optim import PhaseConfig
from saga_fast.report.sheet import draw_sheet, evenly_spaced
from saga_fast.runtime.distributed import barrier, broadcast, is_main
from saga_fast.runtime.files import write_text
from saga_fast.runtime.loggers import require_loggers
from saga_fast.runtime.signals import deferring_sigterm, stop, stop_requested
from saga_fast.runtime.terminal import printable
from saga_fast.train.epoch import EpochPosition, EpochResult, train_epoch
from saga_fast.train.folder import run_folder
from saga_fast.train.plan import crop_plan
from saga_fast.train.run import Run, open_run
from saga_fast.train.state import position
from saga_fast.train.steps import NonFiniteLossError, Steps

log = logging.getLogger(__name__)


def train(config: TrainConfig, *, resume: bool = False, ckpt: Path | None = None, progress: bool = False) -> Path:
    """Run an experiment into ``config.out``, in all processes that torchrun started together, or in this one.

    SIGTERM ends it at the next step, with a checkpoint and SystemExit 143.

    Args:
        config: the experiment.
        resume: resume from ``out/last.pt``; a run without one starts afresh, a finished one returns at once.
        ckpt: start from this checkpoint's weights at the SAGA phase; the plain phase counts as finished.
        progress: show progress bars on stderr.

    Returns:
        The path of ``last.pt``.

    Raises:
        SagaError: a run folder in use, a config that differs from the one being resumed, unreadable images, and so on.
    """
    require_loggers(config.logger)
    with deferring_sigterm(), run_folder(Path(config.out), resume=resume):
        run, finished = open_run(config, ckpt=ckpt, progress=progress and is_main()), False
        try:
            _run_epochs(run)
            finished = True
        finally:
            run.metrics.close(finished=finished)
        return run.last


def _run_epochs(run: Run) -> None:
    """Train from the current epoch to the end."""
    config = run.config
    total = config.plain.epochs + config.saga.epochs
    log.info("device %s, torch on %d threads", run.device, torch.get_num_threads())
    if not run.resumed:
        _save(run)
    if run.evaluation_is_missing:
        _evaluate(run)
    while run.epoch < total:
        in_saga = run.epoch >= config.plain.epochs
        name, phase = ("saga", config.saga) if in_saga else ("plain", config.plain)
        phase_epoch = run.epoch - config.plain.epochs * in_saga
        if in_saga and run.renewals.is_due(phase_epoch) and not run.partial_epoch:
            _renew(run)
        run.loader.set_plan(crop_plan(config, run.training.model, run.renewals.table))
        run.bad.share()
        run.known_bad = run.bad.indices.tolist()
        result = _train_epoch(run, phase, phase_epoch)
        run.epoch += 1
        run.metrics.add("epoch", run.epoch, phase=name, **asdict(result))
        log.info(
            "epoch %d/%d (%s): loss %.4f, %.0f images/s, waiting for data %.0f %%",
            run.epoch,
            total,
            name,
            result.loss,
            result.images_per_second,
            100 * result.data_wait,
        )
        run.bad.share()
        run.training.share_statistics()
        _save(run)  # before the evaluation, which may fail or be stopped
        if config.evaluate and (run.epoch % config.evaluate.every == 0 or run.epoch == total):
            _evaluate(run)


def _train_epoch(run: Run, phase: PhaseConfig, phase_epoch: int) -> EpochResult:
    at = EpochPosition(
        epoch=run.epoch, phase=phase, phase_epoch=phase_epoch, skipped=run.skipped, partial=run.partial_epoch
    )
    try:
        result = train_epoch(
            run.training, run.loader, at, progress=run.progress, after_step=lambda steps: _after_step(run, steps)
        )
    except NonFiniteLossError as error:
        raise _explained(run, error, phase) from error
    run.partial_epoch = None
    run.skipped += result.skipped
    run.bad.update(dict.fromkeys(run.found_bad, FOUND_EARLIER))
    run.found_bad = []
    return result


def _after_step(run: Run, steps: Steps) -> None:
    """Save last.pt if it is due, and stop if any process received SIGTERM."""
    every = run.config.checkpoint.every_steps
    stopping = run.stop_request.update(stop_requested())
    if stopping or (every and steps.done % every == 0 and steps.done < len(steps.losses)):
        _save(run, steps)
    if stopping:
        log.info("stopped after step %d of epoch %d; go on with --resume", steps.done, run.epoch + 1)
        stop()


def _explained(run: Run, error: NonFiniteLossError, phase: PhaseConfig) -> SagaError:
    """The error with the images of the batch, and the checkpoint to resume from."""
    state = broadcast(position(read_checkpoint(run.last)) if is_main() else "")
    path = run.folder / "nonfinite.txt"
    if is_main():
        write_text(path, "".join(f"{index}\t{printable(run.source.paths[index])}\n" for index in error.indices))
    some = ", ".join(map(str, error.indices[:16])) + (", ..." if len(error.indices) > 16 else "")
    return SagaError(
        f"the {error.what} is not finite since step {error.step} of epoch {run.epoch + 1}: loss {error.value},"
        f" images {some}, see {path}; lower the learning rate ({phase.lr:g}), raise the precision or set"
        f" skip_nonfinite; last.pt holds {state}"
    )


def _renew(run: Run) -> None:
    figures = run.renewals.renew(run.epoch, progress=run.progress)
    table = run.renewals.table
    assert table is not None
    run.metrics.add("renewal", run.epoch, **asdict(figures))
    if is_main():
        shown = evenly_spaced(np.arange(len(table)), 32).tolist()
        sheet = draw_sheet(run.source, table, shown, columns=8)
        run.metrics.add_picture("attention/boxes", run.epoch, np.asarray(sheet))
        run.bad.write(run.folder / "bad_images.txt")
    log.info(
        "renewed D^att: computed %d images, boxes found in %.1f %%, mean area %.3f, %.0f images/s",
        figures.computed,
        100 * table.found_fraction,
        table.mean_area,
        figures.images_per_second,
    )
    if reason := unhelpful(figures.box_area, figures.agreement, figures.chance_agreement):
        log.warning("these boxes will hardly help: %s", reason)


def _evaluate(run: Run) -> None:
    """Add kNN accuracies of the validation images among the training images to the run's figures."""
    evaluate = run.config.evaluate
    if evaluate is None or run.val is None:
        return
    known_bad = len(run.bad)
    whole = WholePlan(size=run.config.crop.size)
    frozen = FrozenModel(
        model=run.training.model, precision=run.config.precision, channels_last=run.config.channels_last
    )
    bank, bank_labels = extract_features(frozen, run.open_whole(whole))
    queries, labels = extract_features(frozen, run.open_whole(whole, run.val))
    if len(run.bad) > known_bad:
        _save(run)  # the next epoch leaves them out, and so must a run that is resumed here
    labels = align_labels(labels, run.val, run.source)
    if evaluate.rankme:
        _add_rankme(run, bank)
    probe = run.training.probe
    if probe and probe.has_learned and run.val.classes:
        top1 = probe.top1(queries["backbone"], labels)
        run.metrics.add("online", run.epoch, top1=top1, images=len(labels))
        log.info("epoch %d: online probe %.1f %%", run.epoch, 100 * top1)
    ks = [k for k in evaluate.k if k <= len(bank_labels)]
    if len(ks) < len(evaluate.k) and is_main():
        log.warning("kNN leaves out k > %d, the number of training images", len(bank_labels))
    for layer in bank if ks else ():
        tensors = [x.to(run.device) for x in (bank[layer], bank_labels, queries[layer], labels)]
        accuracies = knn_accuracy(*tensors, ks=ks, temperature=evaluate.temperature)
        for k, top1 in accuracies.items():
            run.metrics.add("knn", run.epoch, layer=layer, k=k, top1=top1, images=len(labels))
            log.info("epoch %d: kNN (%s, k %d) %.1f %%", run.epoch, layer, k, 100 * top1)


def _add_rankme(run: Run, features: dict[Layer, Tensor]) -> None:
    """Add RankMe of the training images' features to the run's figures."""
    ranks = {layer: rankme(rows.to(run.device)) for layer, rows in features.items()}
    run.metrics.add("rankme", run.epoch, **ranks, images=min(len(features["backbone"]), MAX_IMAGES))
    log.info("epoch %d: RankMe %.1f (backbone), %.1f (projector)", run.epoch, ranks["backbone"], ranks["projector"])


def _save(run: Run, steps: Steps | None = None) -> None:
    """Write last.pt at an epoch's end, before its evaluation, or after some steps of an epoch."""
    partial = steps.state() if steps else None
    run.bad.share()
    if is_main():
        found = sorted({*run.bad.indices.tolist(), *run.found_bad})
        content = {
            "config": config_to_dict(run.config),
            "epoch": run.epoch,
            "so_far": partial,
            "skipped": run.skipped,
            **run.training.state(),
            **run.renewals.state(),
            "dataset": run.source.fingerprint,
            # An epoch's order leaves out the images that are known to be bad at its beginning.
            "bad_images": run.known_bad if steps else found,
            "bad_found": found,
        }
        run.bad.write(run.folder / "bad_images.txt")
        keep = run.config.checkpoint.keep_every
        if keep and run.epoch % keep == 0 and not steps:
            save_checkpoint(run.folder / f"epoch_{run.epoch:04d}.pt", content)
        save_checkpoint(run.last, content)  # last, because a resumed run does not write the other files again
    barrier()
