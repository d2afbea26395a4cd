"""The encoder f: a timm backbone by name, the activations that attention is read off, and their pooling."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn

from saga_fast.errors import SagaError
from saga_fast.models.modes import eval_mode
from saga_fast.models.stem import Stem, remove_stem_relu, replace_stem
from saga_fast.models.transformer import (
    check_sides,
    check_transformer,
    class_attention,
    has_class_attention,
    is_transformer,
    patch_activations,
    patch_side,
    pooled_tokens,
)
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
        # vision transformers
        *("class_token", "reg_tokens", "no_embed_class", "pos_embed", "pool_include_prefix", "init_values"),
        *("qkv_bias", "qk_norm", "proj_bias", "pre_norm", "final_norm", "fc_norm"),
        *("pos_drop_rate", "proj_drop_rate", "attn_drop_rate"),
        # all networks
        *("act_layer", "norm_layer", "aa_layer", "global_pool", "drop_rate", "drop_path_rate", "drop_block_rate"),
        *("channel_multiplier", "depth_multiplier", "fix_stem", "se_ratio"),
    }
)
"""Keyword arguments of ``timm.create_model`` that a config may set: they describe the network. All others are refused:
``pretrained``, ``pretrained_cfg``, ``checkpoint_path`` and ``cache_dir`` read and write files and download."""
MAX_WIDTH, MAX_DEPTH, MAX_WEIGHTS = 2**14, 512, 2**28
"""Largest number of channels, of layers, and of layers times channels squared: a config must not allocate terabytes."""
MAX_PATCHES = 2**18
"""Largest number of patches that ``img_size`` may ask position embeddings for: those of 8192 px in patches of 16."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The backbone, and the normalisation of its input.

    Raises:
        SagaError: an unknown name or stem.
    """

    name: str = "resnet50"
    """A timm model name, without weights: ``python -c "import timm; print(timm.list_models('*resnet*'))"``. Networks
    with a convolutional map, and vision transformers such as ``vit_small_patch16_224`` (docs/faq.md)."""
    stem: Stem = "imagenet"
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
        depth, width = sum([1, *_numbers(self.args, DEPTHS)]), max([1, *_numbers(self.args, WIDTHS)])
        if depth * width**2 > MAX_WEIGHTS:
            raise SagaError(f"encoder.args describes {depth} layers of up to {width} channels: that is too large")
        side, patch = max(_numbers(self.args, ("img_size",)) or [0]), min(_numbers(self.args, ("patch_size",)) or [16])
        if (side / max(1, patch)) ** 2 > MAX_PATCHES:
            raise SagaError(f"encoder.args.img_size={side} has over {MAX_PATCHES} patches of {patch} px: too many")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise SagaError(f"encoder.mean and encoder.std must be finite, got {self.mean}, {self.std}")
        if min(self.std) <= 0.0:
            raise SagaError(f"encoder.std must be positive, got {self.std}")
        if self.stem_channels is not None and not 1 <= self.stem_channels <= MAX_WIDTH:
            raise SagaError(f"encoder.stem_channels must be in 1 to {MAX_WIDTH}, got {self.stem_channels}")
        if not 0 <= self.stem_padding <= 16:
            raise SagaError(f"encoder.stem_padding must be in 0 to 16, got {self.stem_padding}")


class Activations(NamedTuple):
    """What an image's attention is read off, and the remaining input of the pooling.

    Attributes:
        features: A (B, C, u, v).
        prefix: class token and registers of a vision transformer (B, P, C); None: a convolutional network.
    """

    features: Tensor
    prefix: Tensor | None = None


class Encoder(nn.Module):
    """f(x) = pool(activations(x)).

    A are the last convolutional activations, or the patch tokens of a vision transformer
    (:func:`saga_fast.models.transformer.patch_activations`).

    Attributes:
        dim: length of h.
        in_channels: channels of the input.
        is_global_average: whether h is the mean of A over the positions: the attention pass then needs no gradient
            through the pooling (:mod:`saga_fast.attention.channel_weights`).
        is_transformer: whether A are patch tokens.
        has_class_attention: whether :meth:`class_attention` is defined.
        mean, std: of the input, per channel.
        compiled: replaces ``activations`` for the batches that it does not return None for; set by
            :func:`saga_fast.models.compiled_features.compiled_features`.

    Raises:
        SagaError: a backbone that has neither a convolutional map nor timm's ``VisionTransformer``; arguments that timm
            refuses; or another stem for a backbone that is not a ResNet with a single first convolution.
    """

    converts_colours: ClassVar[bool] = False
    """Whether the input is converted to another colour space first, which takes float32."""
    can_compile: ClassVar[bool] = True
    """Whether :func:`saga_fast.models.compiled_features.compiled_features` supports the encoder."""

    def __init__(self, config: EncoderConfig, *, in_channels: int = 3) -> None:
        super().__init__()
        self.mean, self.std = config.mean, config.std
        self.in_channels = in_channels
        self.compiled: Callable[[Tensor], Activations | None] | None = None
        self.is_transformer = is_transformer(config.name)
        more: dict[str, Any] = {} if in_channels == 3 else {"in_chans": in_channels}
        if self.is_transformer:
            more["dynamic_img_size"] = True
        try:
            self.backbone = cast(
                Any, timm.create_model(config.name, pretrained=False, num_classes=0, **more, **config.args)
            )
            self._name = config.name
            self._channels_last_map = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
            if self.is_transformer:
                check_transformer(self.backbone, config.name)
            if config.stem != "imagenet" or config.stem_channels is not None:
                channels, padding = config.stem_channels, config.stem_padding
                replace_stem(self.backbone, config.name, config.stem, channels=channels, padding=padding)
            if not config.stem_relu:
                remove_stem_relu(self.backbone, config.name)
            self.dim, self.is_global_average = self._probe()
        except SagaError:
            raise
        except Exception as error:  # the arguments are the user's, and timm trips over them in many ways
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise SagaError(f"timm cannot build encoder {config.name!r} with {dict(config.args)}: {reason}") from error
        self.has_class_attention = self.is_transformer and has_class_attention(self.backbone)

    def activations(self, x: Tensor) -> Activations:
        """A and what else is pooled: (B, in_channels, S, S) -> (B, C, u, v), (B, P, C).

        Raises:
            SagaError: see :meth:`check_size`.
        """
        if self.compiled is not None and (compiled := self.compiled(x)) is not None:
            return compiled
        if self.is_transformer:
            self.check_size(*x.shape[2:])
            return Activations(*patch_activations(self.backbone, x))
        features = cast(Tensor, self.backbone.forward_features(x))
        return Activations(features.permute(0, 3, 1, 2) if self._channels_last_map else features)

    def features(self, x: Tensor) -> Tensor:
        """A alone: (B, in_channels, S, S) -> (B, C, u, v)."""
        return self.activations(x).features

    def pool(self, features: Tensor, prefix: Tensor | None = None) -> Tensor:
        """h from :class:`Activations`: (B, C, u, v), (B, P, C) -> (B, dim)."""
        if self.is_transformer:
            assert prefix is not None
            return pooled_tokens(self.backbone, features, prefix)
        native = features.permute(0, 2, 3, 1) if self._channels_last_map else features
        return cast(Tensor, self.backbone.forward_head(native, pre_logits=True))

    def forward(self, x: Tensor) -> Tensor:
        """h: (B, in_channels, S, S) -> (B, dim).

        Raises:
            SagaError: see :meth:`check_size`.
        """
        if self.is_transformer:
            self.check_size(*x.shape[2:])
            return cast(Tensor, self.backbone.forward_head(self.backbone.forward_features(x), pre_logits=True))
        return self.pool(*self.activations(x))

    def class_attention(self, activations: Activations) -> Tensor:
        """See :func:`saga_fast.models.transformer.class_attention`: (B, 1, u, v) float32.

        Raises:
            SagaError: see :meth:`check_class_attention`.
        """
        self.check_class_attention()
        assert activations.prefix is not None
        return class_attention(self.backbone, activations.features, activations.prefix)[:, None]

    def check_class_attention(self) -> None:
        """Check that the encoder pools a class token whose attention can be read.

        Raises:
            SagaError: it does not.
        """
        if not self.has_class_attention:
            raise SagaError(
                f"score token is the attention of a vision transformer's class token, which encoder {self._name!r}"
                " does not pool: choose pseudo_label, activation or background"
            )

    def check_size(self, *sides: int) -> None:
        """Check that images of these sides, in pixels, can be encoded.

        Raises:
            SagaError: a vision transformer's patches do not divide a side.
        """
        if self.is_transformer:
            check_sides(self.backbone, self._name, sides)

    @torch.no_grad()
    def _probe(self) -> tuple[int, bool]:
        """The output dimension, and whether pooling is the mean, found by pooling a known map."""
        fixed = self.backbone.default_cfg.get("fixed_input_size", False)
        side = self.backbone.default_cfg["input_size"][-1] if fixed else 64
        if self.is_transformer:
            side = 2 * patch_side(self.backbone)
        with eval_mode(self):
            features, prefix = self.activations(torch.zeros(1, self.in_channels, side, side))
            if features.ndim != 4:
                raise SagaError(
                    f"encoder {self._name!r} has no convolutional map (B, C, u, v) but {tuple(features.shape)}: of the"
                    " networks with tokens, those of timm's vision_transformer and deit are supported"
                )
            trial = torch.linspace(-1.0, 2.0, features.numel()).view(features.shape).contiguous()
            pooled = self.pool(trial, prefix)
        if pooled.ndim != 2:
            raise SagaError(
                f"encoder {self._name!r} pools to {tuple(pooled.shape)}, not to (B, dim): leave global_pool as it is"
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


def _numbers(args: Mapping[str, Any], keys: Sequence[str]) -> list[int]:
    """The numbers that these arguments hold, alone or in lists."""
    values = [args[key] if isinstance(args[key], list | tuple) else [args[key]] for key in keys if key in args]
    return [int(item) for items in values for item in items if isinstance(item, int | float)]
