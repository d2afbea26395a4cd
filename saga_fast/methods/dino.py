"""DINO (Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from saga_fast.kernels import PhotometricRecipe
from saga_fast.loaders.config import MAX_SIDE
from saga_fast.methods.heads import check_count, check_temperature, check_widths
from saga_fast.methods.method import Method, MethodConfig, StepOutput, ViewGroup
from saga_fast.methods.momentum import average_of, check_momentum, cosine_momentum, move_averages
from saga_fast.models.encoder import Encoder, EncoderConfig
from saga_fast.models.precision import autocast
from saga_fast.runtime.distributed import mean

LOCAL_PHOTOMETRIC = PhotometricRecipe(
    flip=0.5, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grayscale=0.2, blur=0.5
)
"""The official code's recipe of local views; it blurs with Pillow, without a kernel's side."""
MAX_LOCAL_VIEWS = 64


@dataclass(frozen=True, kw_only=True)
class DINOConfig(MethodConfig):
    """DINO's hyperparameters (section 3.2, appendix C and the official code's defaults)."""

    name: str = "dino"
    prototypes: int = 65536
    """Output dimensions K of the head's last layer."""
    projection_dim: int = 256
    """Output dimensions of the projector, the bottleneck before the last layer."""
    hidden_dim: int = 2048
    """Width of the projector's hidden layers."""
    projection_norm: Literal["none", "hidden"] = "none"
    """``hidden``: batch norm after the projector's two hidden layers (the code's use_bn_in_head)."""
    unit_prototypes: bool = True
    """Keep the prototypes' norms at 1 (the code's norm_last_layer). False: they are trained, which the code advises for
    ViT-S alone."""
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    warmup_temperature: float = 0.04
    """The teacher's temperature in the run's first epoch; it then moves linearly to ``teacher_temperature``."""
    warmup_epochs: int = 0
    """Epochs of that warm-up."""
    centre_momentum: float = 0.9
    momentum: float = 0.996
    """Momentum of the teacher's moving average at a phase's beginning; at its end it is 1."""
    frozen_epochs: int = 1
    """Epochs at the run's beginning in which the prototypes are not trained."""
    local_views: int = 8
    """Local views per image (multi-crop), which the student alone gets."""
    local_size: int = 96
    """Side of the local views, pixels."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Range of a local view's area over the image's, or over its attention box's."""
    local_photometric: PhotometricRecipe = LOCAL_PHOTOMETRIC
    """Photometric augmentation of the local views, with the keys of ``photometric``."""

    def __post_init__(self) -> None:
        check_count("prototypes", self.prototypes, least=2)
        check_widths(self.projection_dim, self.hidden_dim)
        if self.projection_norm not in ("none", "hidden"):
            raise ValueError(f"projection_norm must be none or hidden, got {self.projection_norm}")
        for temperature in (self.student_temperature, self.teacher_temperature, self.warmup_temperature):
            check_temperature(temperature)
        for name in ("momentum", "centre_momentum"):
            check_momentum(name, getattr(self, name))
        for name in ("warmup_epochs", "frozen_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.local_views <= MAX_LOCAL_VIEWS:
            raise ValueError(f"local_views must be in 0 to {MAX_LOCAL_VIEWS}, got {self.local_views}")
        if not 1 <= self.local_size <= MAX_SIDE:
            raise ValueError(f"local_size must be in 1 to {MAX_SIDE}, got {self.local_size}")
        if not 0.0 < self.local_scale[0] <= self.local_scale[1] <= 1.0:
            raise ValueError(f"local_scale must be an increasing pair in (0, 1], got {list(self.local_scale)}")


class DINO(Method):
    """A student's distribution over prototypes approaches that of its moving average, the teacher, on another view.

    The teacher gets the two main views, which are global, the student also the local ones. ``encoder`` and
    ``projector`` are the teacher's: attention, evaluation and export use the teacher, as in the paper. z is the output
    of the three-layer projector, before its L2 normalisation and the prototypes.

    With ``attention.views: mixed`` both global views are crops of the whole image and the local ones of the attention
    box. Without local views the second global view is the attention crop.
    """

    Config: ClassVar[type[MethodConfig]] = DINOConfig
    sync_batchnorm: ClassVar[bool] = True  # the official code synchronises it, where a network has any
    centre: Tensor

    def __init__(self, config: DINOConfig, encoder: EncoderConfig) -> None:
        student = Encoder(encoder)
        super().__init__(config, teacher_of(student, encoder))
        self.config = config
        self.student_encoder = student
        self.student_projector = new_projector(student.dim, config)
        self.student_prototypes = new_prototypes(config)
        self.projector = average_of(self.student_projector)
        self.prototypes = average_of(self.student_prototypes)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self._batch_centre: Tensor | None = None
        if config.local_views:
            local = ViewGroup(
                size=config.local_size,
                count=config.local_views,
                scale=config.local_scale,
                photometric=config.local_photometric,
            )
            self.more_views, self.whole_views = (local,), 2

    @property
    def teacher(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Encoder, projector and prototypes of the teacher."""
        return self.encoder, self.projector, self.prototypes

    @property
    def student(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Encoder, projector and prototypes of the student."""
        return self.student_encoder, self.student_projector, self.student_prototypes

    def forward(self, views: Tensor, index: Tensor, *local: Tensor) -> StepOutput:  # noqa: ARG002 - no bank
        """See :meth:`Method.forward`; local (B, L, 3, local_size, local_size), if there are local views."""
        with torch.no_grad():
            z_teacher, teacher = self._outputs(self.teacher, views)
        (z_student, student), *of_local = (self._outputs(self.student, group) for group in (views, *local))
        student = torch.cat([student, *(logits for _, logits in of_local)], 1)
        self._batch_centre = mean(teacher.mean((0, 1)))
        loss = cross_entropy(
            student / self.config.student_temperature, (teacher - self.centre) / self.teacher_temperature
        )
        return StepOutput(loss, (z_student.detach() * z_teacher.flip(1)).sum(2).mean())

    def _outputs(self, network: tuple[nn.Module, nn.Module, nn.Module], views: Tensor) -> tuple[Tensor, Tensor]:
        """Unit z (B, V, D) and logits (B, V, K), float32, of views (B, V, 3, S, S) of one size.

        Batch statistics are of all V views, as in the official code.
        """
        encoder, projector, prototypes = network
        z = F.normalize(self.in_parts(views.flatten(0, 1), encoder, projector).float(), dim=1)
        return z.view(*views.shape[:2], -1), prototypes(z).float().view(*views.shape[:2], -1)

    def after_backward(self) -> None:
        """Leave the prototypes as they are in the first epochs (the official code's freeze_last_layer)."""
        if self.progress.epochs < self.config.frozen_epochs:
            for parameter in self.student_prototypes.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher towards the student (section 3.1) and the centre towards the batch's mean (Eq. 4)."""
        assert self._batch_centre is not None, "after_step without a forward"
        move_averages(self.teacher, self.student, cosine_momentum(self.config.momentum, self.progress.phase))
        self.centre.lerp_(self._batch_centre, 1.0 - self.config.centre_momentum)
        self._batch_centre = None

    @property
    def teacher_temperature(self) -> float:
        """The teacher's temperature in the current epoch; the last one of the warm-up has the final temperature."""
        config, epoch = self.config, int(self.progress.epochs)
        if epoch >= config.warmup_epochs:
            return config.teacher_temperature
        finished = epoch / max(config.warmup_epochs - 1, 1)
        return config.warmup_temperature + finished * (config.teacher_temperature - config.warmup_temperature)


def teacher_of(student: Encoder, config: EncoderConfig) -> Encoder:
    """The beginning of the student's moving average: its weights, without stochastic depth and dropout."""
    args = {key: value for key, value in config.args.items() if not key.startswith("drop_")}
    teacher = Encoder(replace(config, args=args)).requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    return teacher


def new_projector(dim: int, config: DINOConfig) -> nn.Sequential:
    """Three linear layers with GELU; weights from a truncated normal of standard deviation 0.02, biases 0."""
    hidden = config.hidden_dim
    layers = [nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, config.projection_dim)]
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    modules: list[nn.Module] = []
    for layer in layers[:-1]:
        modules.append(layer)
        if config.projection_norm == "hidden":
            modules.append(nn.BatchNorm1d(hidden))
        modules.append(nn.GELU())
    return nn.Sequential(*modules, layers[-1])


def new_prototypes(config: DINOConfig) -> nn.Module:
    """The last layer of the head: a linear layer without bias whose rows are a direction times a norm of 1 at first."""
    layer: nn.Module = weight_norm(nn.Linear(config.projection_dim, config.prototypes, bias=False))
    norms = layer.get_parameter("parametrizations.weight.original0")
    nn.init.ones_(norms)
    norms.requires_grad_(not config.unit_prototypes)
    return layer


def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """H(P_t, P_s) = -sum_k P_t log P_s, the mean over images and pairs of different views (Eq. 3).

    Args:
        student: logits over the temperature, (B, V, K): of the G global views, then of the local ones.
        teacher: centred logits over the temperature, (B, G, K), without gradient.
    """
    with autocast(student.device, "fp32"):  # 16 bits are for the networks, not for the loss
        entropies = -(teacher.softmax(2) @ student.log_softmax(2).mT).mean(0)  # (G, V)
    pairs = 1.0 - torch.eye(*entropies.shape, dtype=entropies.dtype, device=entropies.device)
    return (entropies * pairs).sum() / (entropies.numel() - len(entropies))
