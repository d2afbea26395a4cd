"""The encoder f: a timm backbone by name, its last convolutional activations, and their pooling."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import timm
import torch
from torch import Tensor, nn

from saga_fast.errors import SagaError
from saga_fast.models.modes import eval_mode
from saga_fast.runtime.exhausted import is_out_of_memory

DEPTHS, WIDTHS = ("layers", "depths", "depth"), ("channels", "dims", "embed_dim", "stem_width")

ARCHITECTURE_ARGUMENTS = frozenset(
    {
        # timm's ResNets
        *("layers", "channels", "cardinality", "base_width", "output_stride", "stem_width", "stem_type"),
        *("replace_stem_pool", "block_reduce_first", "down_kernel_size", "avg_down", "zero_init_last"),
        # DenseNet, ConvNeXt and others
        *("growth_rate", "block_config", "num_init_features", "groups", "width_factor", "expansion"),
        *(
            "depths",
            "dims",
            "kernel_sizes",
            "patch_size",
            "stem_stride",
            "head_init_scale",
            "ls_init_value",
            "conv_mlp",
        ),
        *("use_grn", "conv_bias", "embed_dim", "depth", "num_heads", "window_size", "mlp_ratio", "img_size"),
        # all networks
        *("act_layer", "norm_layer", "aa_layer", "global_pool", "drop_rate", "drop_path_rate", "drop_block_rate"),
        *("channel_multiplier", "depth_multiplier", "fix_stem", "se_ratio"),
    }
)
"""Keyword arguments of ``timm.create_model`` that a config may set: they describe the network. All others are refused:
``pretrained``, ``pretrained_cfg``, ``checkpoint_path`` and ``cache_dir`` read and write files and download."""
MAX_WIDTH, MAX_DEPTH, MAX_WEIGHTS = 2**14, 512, 2**28
"""Largest number of channels, of layers, and of layers times channels squared: a config must not allocate terabytes."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The backbone, and the normalisation of its input.

    Raises:
        SagaError: an unknown name or stem.
    """

    name: str = "resnet50"
    """A timm model name, without weights: ``python -c "import timm; print(timm.list_models('*resnet*'))"``."""
    stem: Literal["imagenet", "medium", "small"] = "imagenet"
    """``imagenet``: the backbone's stem. ``medium``, for images of 64 to 96 px: a 3x3 convolution of stride 2, no max
    pooling. ``small``, for images of 32 px as in CIFAR: a 3x3 convolution of stride 1 and no max pooling."""
    stem_channels: int | None = None
    """Output channels of a ResNet's first convolution; null: 64, as in timm. PyContrast's ResNet-50 x2 has 128."""
    stem_padding: int = 1
    """Padding of the first convolution of ``small`` and ``medium``; solo-learn's ResNets for CIFAR use 2."""
    stem_relu: bool = True
    """False: no ReLU after the first convolution's batch norm, as in lightly's benchmark on CIFAR-10."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for ``timm.create_model``, for example ``{channels: [32, 64, 128, 256]}``."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from the input, per channel, for pixel values in [0, 1]; default: ImageNet's mean."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides the input after the mean is subtracted, per channel; default: ImageNet's standard deviation."""

    def __post_init__(self) -> None:
        if not timm.is_model(self.name):
            close = difflib.get_close_matches(self.name, timm.list_models(), n=3)
            raise SagaError(
                f"encoder.name is not a timm model: {self.name!r}" + (f"; perhaps {', '.join(close)}" if close else "")
            )
        for key, value in self.args.items():
            _check_argument(key, value)
        depth, width = (_total(self.args, keys, combine) for keys, combine in ((DEPTHS, sum), (WIDTHS, max)))
        if depth * width**2 > MAX_WEIGHTS:
            raise SagaError(f"encoder.args describes {depth} layers of up to {width} channels: that is too large")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise SagaError(f"encoder.mean and encoder.std must be finite, got {self.mean}, {self.std}")
        if min(self.std) <= 0.0:
            raise SagaError(f"encoder.std must be positive, got {self.std}")
        if self.stem_channels is not None and not 1 <= self.stem_channels <= MAX_WIDTH:
            raise SagaError(f"encoder.stem_channels must be in 1 to {MAX_WIDTH}, got {self.stem_channels}")
        if not 0 <= self.stem_padding <= 16:
            raise SagaError(f"encoder.stem_padding must be in 0 to 16, got {self.stem_padding}")


class Encoder(nn.Module):
    """f(x) = pool(features(x)).

    Attributes:
        dim: length of h.
        in_channels: channels of the input.
        is_global_average: whether h is the mean of A over the positions: the attention pass then needs no gradient
            through the pooling (:mod:`saga_fast.attention.channel_weights`).
        mean, std: of the input, per channel.
        compiled: replaces ``features`` for the batches that it does not return None for; set by
            :func:`saga_fast.models.compiled_features.compiled_features`.

    Raises:
        SagaError: a backbone without a convolutional map, such as a vision transformer; arguments that timm refuses; or
            another stem for a backbone that is not a ResNet with a single first convolution.
    """

    converts_colours: ClassVar[bool] = False
    """Whether the input is converted to another colour space first, which takes float32."""

    def __init__(self, config: EncoderConfig, *, in_channels: int = 3) -> None:
        super().__init__()
        self.mean, self.std = config.mean, config.std
        self.in_channels = in_channels
        self.compiled: Callable[[Tensor], Tensor | None] | None = None
        channels: dict[str, Any] = {} if in_channels == 3 else {"in_chans": in_channels}
        try:
            self.backbone = cast(
                Any, timm.create_model(config.name, pretrained=False, num_classes=0, **channels, **config.args)
            )
            self._channels_last_map = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
            if config.stem != "imagenet" or config.stem_channels is not None:
                _replace_stem(self.backbone, config)
            if not config.stem_relu:
                _remove_stem_relu(self.backbone, config)
            self.dim, self.is_global_average = self._probe(config.name, in_channels)
        except SagaError:
            raise
        except Exception as error:  # the arguments are the user's, and timm trips over them in many ways
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SagaError(f"timm cannot build encoder {config.name!r} with {dict(config.args)}: {reason}") from error

    def features(self, x: Tensor) -> Tensor:
        """Last convolutional activations A: (B, in_channels, S, S) -> (B, C, u, v)."""
        if self.compiled is not None and (compiled := self.compiled(x)) is not None:
            return compiled
        features = cast(Tensor, self.backbone.forward_features(x))
        return features.permute(0, 3, 1, 2) if self._channels_last_map else features

    def pool(self, features: Tensor) -> Tensor:
        """h from A: (B, C, u, v) -> (B, dim)."""
        native = features.permute(0, 2, 3, 1) if self._channels_last_map else features
        return cast(Tensor, self.backbone.forward_head(native, pre_logits=True))

    def forward(self, x: Tensor) -> Tensor:
        """h = pool(features(x)): (B, in_channels, S, S) -> (B, dim)."""
        return self.pool(self.features(x))

    @torch.no_grad()
    def _probe(self, name: str, in_channels: int) -> tuple[int, bool]:
        """The output dimension, and whether pooling is the mean, found by pooling a known map."""
        fixed = self.backbone.default_cfg.get("fixed_input_size", False)
        side = self.backbone.default_cfg["input_size"][-1] if fixed else 64
        with eval_mode(self):
            features = self.features(torch.zeros(1, in_channels, side, side))
            if features.ndim != 4:
                raise SagaError(f"encoder {name!r} has no convolutional map (B, C, u, v) but {tuple(features.shape)}")
            trial = torch.linspace(-1.0, 2.0, features.numel()).view(features.shape).contiguous()
            pooled = self.pool(trial)
        if pooled.ndim != 2:
            raise SagaError(
                f"encoder {name!r} pools to {tuple(pooled.shape)}, not to (B, dim): leave global_pool as it is"
            )
        mean = trial.mean((2, 3))
        is_mean = pooled.shape == mean.shape and torch.allclose(pooled, mean, rtol=1e-5, atol=1e-6)
        return pooled.shape[1], is_mean


def _check_argument(key: str, value: Any) -> None:
    """
    Raises:
        SagaError: a key that is not in ARCHITECTURE_ARGUMENTS, or a value that no network of a sensible size has.
    """
    if key not in ARCHITECTURE_ARGUMENTS:
        raise SagaError(f"encoder.args.{key} is not allowed, it does not describe a network: remove it")
    items = value if isinstance(value, list | tuple) else [value]
    limit = MAX_DEPTH if key in DEPTHS else MAX_WIDTH
    plain = all(item is None or isinstance(item, bool | int | float | str) for item in items)
    numbers = [item for item in items if isinstance(item, int | float)]
    if not plain or len(items) > 64 or not all(math.isfinite(number) and abs(number) <= limit for number in numbers):
        raise SagaError(f"encoder.args.{key} must be numbers up to {limit}, words or a list of them, got {value!r:.80}")


def _total(args: Mapping[str, Any], keys: Sequence[str], combine: Callable[[list[int]], int]) -> int:
    """The layers or the channels that the arguments ask for; at least 1."""
    values = [args[key] if isinstance(args[key], list | tuple) else [args[key]] for key in keys if key in args]
    return combine([1, *(int(item) for items in values for item in items if isinstance(item, int | float))])


def _replace_stem(backbone: Any, config: EncoderConfig) -> None:
    stem = getattr(backbone, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise SagaError(
            "encoder.stem small or medium and stem_channels need a ResNet with one first convolution,"
            f" not {config.name!r}"
        )
    channels = config.stem_channels or stem.out_channels
    if config.stem == "imagenet":
        backbone.conv1 = nn.Conv2d(stem.in_channels, channels, 7, stride=2, padding=3, bias=False)
    else:
        stride = 1 if config.stem == "small" else 2
        backbone.conv1 = nn.Conv2d(stem.in_channels, channels, 3, stride, config.stem_padding, bias=False)
        backbone.maxpool = nn.Identity()
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet does
    if channels != stem.out_channels:
        _connect_stem(backbone, channels)


def _remove_stem_relu(backbone: Any, config: EncoderConfig) -> None:
    if not isinstance(getattr(backbone, "act1", None), nn.ReLU):
        raise SagaError(f"encoder.stem_relu false needs a ResNet with a ReLU in its stem, not {config.name!r}")
    backbone.act1 = nn.Identity()


def _connect_stem(backbone: Any, channels: int) -> None:
    """Make a ResNet's first normalisation and first block take another number of channels."""
    backbone.bn1 = nn.BatchNorm2d(channels)
    block = backbone.layer1[0]
    first, last = block.conv1, block.bn3 if hasattr(block, "bn3") else block.bn2
    block.conv1 = nn.Conv2d(channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=False)
    block.downsample = None
    if channels != last.num_features:
        block.downsample = nn.Sequential(
            nn.Conv2d(channels, last.num_features, 1, bias=False), nn.BatchNorm2d(last.num_features)
        )
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
