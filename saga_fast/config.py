"""The configuration of a run: frozen dataclasses, read from one complete YAML file per experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, TypeAdapter

from saga_fast.attention.config import AttentionConfig, AttentionPass
from saga_fast.kernels import PhotometricRecipe
from saga_fast.loaders import LoaderOptions
from saga_fast.loaders.config import MAX_SIDE, CropConfig, DataConfig
from saga_fast.methods import METHODS, MethodConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.precision import Precision
from saga_fast.optim import OptimizerConfig, PhaseConfig
from saga_fast.runtime.loggers import LoggerName


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluation during training: kNN, and figures that cost almost nothing."""

    every: int = 10
    """Epochs between evaluations; the first and the last epoch of a run are always evaluated."""
    k: tuple[int, ...] = (20, 200)
    temperature: float = 0.07
    online_probe: bool = True
    """Train a linear classifier on the detached features of the training steps, if the training images are labelled."""
    rankme: bool = True
    """Compute RankMe, an effective rank, of the training images' features at each evaluation."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if not self.k or min(self.k) < 1 or max(self.k) > 2**24:
            raise ValueError(f"k must be numbers in 1 to 2**24, got {list(self.k)}")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The checkpoints that a run keeps."""

    keep_every: int | None = None
    """Keep epoch_NNNN.pt every keep_every epochs; null: only last.pt."""
    every_steps: int | None = None
    """Also write last.pt every every_steps steps of an epoch; null: only at its end."""

    def __post_init__(self) -> None:
        for name in ("keep_every", "every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def _method(value: Any) -> Any:
    """The config of a method from a mapping with its ``name``."""
    if isinstance(value, Mapping):
        name = value.get("name")
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"name must be one of {', '.join(METHODS)}, got {name!r}")
        return TypeAdapter(METHODS[name].Config).validate_python(value)
    return value


def _names(value: Any) -> Any:
    """A single name as a list of one."""
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One experiment: a plain phase, then a SAGA phase (or, with ``attention: null``, a fine-tuning phase)."""

    out: str
    """The run folder."""
    method: Annotated[MethodConfig, BeforeValidator(_method)]
    data: DataConfig
    encoder: EncoderConfig = EncoderConfig()
    crop: CropConfig = CropConfig()
    photometric: PhotometricRecipe = PhotometricRecipe()
    batch_size: int = 256
    """Images per step over all processes, whose number must divide it."""
    accumulate: int = 1
    """Equal parts in which a process computes its images of a step, with the memory of one: for a batch that does not
    fit. Loss and gradient are those of the whole batch, but batch norm covers a part. N parts cost the forward passes
    of N - 1 parts more."""
    sync_batchnorm: bool | None = None
    """Batch norm over the batch of all processes; null: as in the method's paper. Without effect in one process."""
    optimizer: OptimizerConfig = OptimizerConfig()
    plain: PhaseConfig = PhaseConfig()
    saga: PhaseConfig = PhaseConfig()
    attention: AttentionConfig | None = AttentionConfig()
    evaluate: EvaluateConfig | None = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logger: Annotated[tuple[LoggerName, ...], BeforeValidator(_names)] = ("tensorboard",)
    """Where figures and pictures go besides ``metrics.jsonl``: a name or a list, [] for nowhere (docs/loggers.md)."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    """Compile the encoder's training step with torch.compile."""
    skip_nonfinite: int = 0
    """Number of steps of the run that may be skipped because their loss or gradient is not finite. Above 0 each step
    waits for the GPU to check. 0: the first such loss, checked for every 50 steps, ends the run."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 for a contrastive loss, got {self.batch_size}")
        if self.batch_size > 2**24:
            raise ValueError(f"batch_size must be at most 2**24, got {self.batch_size}")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}")
        if self.attention and (self.attention.input_size or 1) > MAX_SIDE:
            raise ValueError(f"attention.input_size must be at most {MAX_SIDE}, got {self.attention.input_size}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        if self.skip_nonfinite < 0:
            raise ValueError(f"skip_nonfinite must not be negative, got {self.skip_nonfinite}")
        if len(set(self.logger)) < len(self.logger):
            raise ValueError(f"logger has a name twice, got {list(self.logger)}")
        if self.plain.epochs + self.saga.epochs < 1:
            raise ValueError("plain.epochs + saga.epochs must be at least 1")

    @property
    def attention_pass(self) -> AttentionPass:
        """The options of a renewal's attention pass; without ``attention``, those of its defaults."""
        attention = self.attention or AttentionConfig()
        return attention.attention_pass(size=self.crop.size, precision=self.precision, channels_last=self.channels_last)

    def loader_options(self, device: torch.device | str) -> LoaderOptions:
        """The options of the loaders of this config's images, in one process and not shuffled."""
        return LoaderOptions(
            batch_size=self.batch_size,
            seed=self.seed,
            threads=self.data.threads,
            prefetch=self.data.prefetch,
            device=device,
            decode=self.data.decode,
            crop=self.data.crop,
            max_pixels=self.data.max_pixels,
        )
