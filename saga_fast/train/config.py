"""The configuration of a run: frozen dataclasses, read from one complete YAML file per experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from saga_fast.attention_config import AttentionConfig
from saga_fast.demo_data import DemoDataConfig
from saga_fast.encoder import EncoderConfig
from saga_fast.errors import SagaError
from saga_fast.kernels import PhotometricRecipe
from saga_fast.loaders import MAX_PIXELS, Place
from saga_fast.methods import METHODS, MethodConfig
from saga_fast.precision import Precision
from saga_fast.strict_yaml import read_yaml
from saga_fast.train.optimizer import OptimizerConfig, PhaseConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and how they are read."""

    train: str
    """Folder of training images: CLASS/*.jpg, or images without classes."""
    val: str | None = None
    """Folder of validation images with the same classes, for kNN during training."""
    classes: str | None = None
    """Text file whose lines begin with the class folders to take (ImageNet-100's list)."""
    true_boxes: bool = False
    """``train`` holds boxes.json with true object boxes: their IoU with the attention boxes is reported."""
    generate: DemoDataConfig | None = None
    """Make the demo's images first, in the folder that holds ``train``, unless they are there."""
    engine: str = "folder"
    """Which loader: a name in ``saga_fast.loaders.ENGINES``."""
    decode: Place = "auto"
    """Where images are decoded: ``cpu``, ``gpu``, or ``auto``, the engine's choice for the device."""
    crop: Place = "auto"
    """Where views are cropped."""
    threads: int | None = None
    """Decoding threads; null: the processor cores at hand."""
    prefetch: int = 2
    """Batches decoded ahead."""
    max_bad_fraction: float = 0.01
    """More undecodable images than this fraction stop the run."""
    max_pixels: int = MAX_PIXELS
    """Larger images count as undecodable; not above the default."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ValueError(f"max_pixels must be in 1 to {MAX_PIXELS}, got {self.max_pixels}")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Random resized crops."""

    size: int = 224
    """Side of the views, pixels; also of the whole images in the attention pass and evaluation."""
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0.0 < low <= high:
                raise ValueError(f"{name} must be an increasing pair of positive numbers, got {[low, high]}")
        if self.scale[1] > 1.0:
            raise ValueError(f"scale must end at 1 or below, got {list(self.scale)}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """kNN evaluation during training."""

    every: int = 10
    """Epochs between evaluations; the first and the last epoch of a run are always evaluated."""
    k: tuple[int, ...] = (20, 200)
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")
        if not self.k or min(self.k) < 1:
            raise ValueError(f"k must be positive numbers, got {list(self.k)}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which checkpoints a run keeps beside last.pt."""

    keep_every: int | None = None
    """Keep epoch_NNNN.pt of every so many epochs; null: none."""
    every_steps: int | None = None
    """Write last.pt also after every so many steps of an epoch; null: at its end alone."""

    def __post_init__(self) -> None:
        for name in ("keep_every", "every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def _method(value: Any) -> Any:
    """A mapping with a name -> that method's own config."""
    if isinstance(value, Mapping):
        name = value.get("name")
        if not isinstance(name, str) or name not in METHODS:
            raise ValueError(f"name must be one of {', '.join(METHODS)}, got {name!r}")
        return TypeAdapter(METHODS[name].Config).validate_python(value)
    return value


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
    """Images per step, all processes' parts together: it stays when their number changes, and they must divide it."""
    sync_batchnorm: bool | None = None
    """Batch norm over all processes' parts of a batch; null: as in the method's paper. One process: no difference."""
    optimizer: OptimizerConfig = OptimizerConfig()
    plain: PhaseConfig = PhaseConfig()
    saga: PhaseConfig = PhaseConfig()
    attention: AttentionConfig | None = AttentionConfig()
    evaluate: EvaluateConfig | None = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False
    """torch.compile the encoder."""
    skip_nonfinite: int = 0
    """Leave out up to so many steps of the run whose loss or gradient is not finite: nothing learns from them. Above 0
    every step waits for the GPU, to look. 0: the first such loss, looked for now and then, ends the run."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 for a contrastive loss, got {self.batch_size}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}")
        if self.skip_nonfinite < 0:
            raise ValueError(f"skip_nonfinite must not be negative, got {self.skip_nonfinite}")
        if self.plain.epochs + self.saga.epochs < 1:
            raise ValueError("plain.epochs + saga.epochs must be at least 1")

    @property
    def attention_size(self) -> int:
        """Side of the whole images in the attention pass, pixels."""
        return (self.attention and self.attention.input_size) or self.crop.size

    @property
    def looking(self) -> dict[str, Any]:
        """How the attention pass looks at images: keyword arguments of ``build_box_table``; without ``attention`` its
        defaults."""
        a = self.attention or AttentionConfig()
        return {
            "delta": a.delta,
            "normalize": a.normalize,
            "score": a.score,
            "mirror": a.mirror,
            "precision": a.precision or self.precision,
            "channels_last": self.channels_last,
            "forward": a.forward,
        }


def config_from_dict(values: Mapping[str, Any], *, where: str) -> TrainConfig:
    """A checked config from nested mappings.

    Raises:
        SagaError: an unknown key, a wrong type or value; one line that begins with ``where`` and names the key.
    """
    unknown = list(_unknown_keys(values, TrainConfig))
    if unknown:
        known = [item.name for item in fields(TrainConfig)]
        raise SagaError(f"{where}: unknown key {', '.join(unknown)}; the top-level keys are {', '.join(known)}")
    try:
        config: TrainConfig = TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        raise SagaError(f"{where}: {_one_line(error)}") from error
    except SagaError as error:
        raise SagaError(f"{where}: {error}") from error
    return config


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Nested mappings of plain YAML types."""
    plain: dict[str, Any] = yaml.safe_load(yaml.safe_dump(asdict(config), sort_keys=False))
    return plain


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply ``key.sub=value`` overrides, whose values are YAML.

    Raises:
        SagaError: no such file, not YAML, a malformed override, or what :func:`config_from_dict` refuses.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SagaError(f"cannot read the config {path}: {error.strerror}") from error
    except ValueError as error:  # a UnicodeDecodeError, too
        raise SagaError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SagaError(f"{path} is not a config: expected keys and values, got {type(values).__name__}")
    for override in overrides:
        apply_override(values, override)
    return config_from_dict(values, where=str(path))


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set ``key.sub=value`` in nested mappings; the value is YAML.

    Raises:
        SagaError: not of that form, or a key below a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SagaError(f"an override is key=value, got {override!r}")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise SagaError(f"cannot set {key!r}: {parent!r} holds a value, not keys")
    try:
        values[last] = read_yaml(text)
    except ValueError as error:
        raise SagaError(f"the value of {override!r} is not YAML: {' '.join(str(error).split())}") from error


def _unknown_keys(given: Mapping[str, Any], kind: type, prefix: str = "") -> Iterator[str]:
    """Keys that are no field of the dataclass ``kind``, or of the dataclasses that its fields hold."""
    hints = get_type_hints(kind)
    for key, value in given.items():
        if key not in hints:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping):
            held = next((t for t in (hints[key], *get_args(hints[key])) if is_dataclass(t)), None)
            if held is MethodConfig:
                name = value.get("name")
                held = METHODS[name].Config if isinstance(name, str) and name in METHODS else None
            if isinstance(held, type):
                yield from _unknown_keys(value, held, f"{prefix}{key}.")


def _one_line(error: ValidationError) -> str:
    """``key: what is wrong, got value`` of the first mistake."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "function-before[_method()]")
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("value_error", "missing") else f", got {first['input']!r}"
    return f"{key}: {message}{got}" if key else f"{message}{got}"
