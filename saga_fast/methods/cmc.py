"""CMC (Tian et al., "Contrastive multiview coding", ECCV 2020), with the two views luminance and chrominance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.kernels import rgb_to_lab, rgb_to_ydbdr
from saga_fast.methods.bank import BankConfig, BankMethod, MemoryBank
from saga_fast.methods.method import Branch, MethodConfig, StepOutput
from saga_fast.models.encoder import Encoder, EncoderConfig

Color = Literal["lab", "ydbdr"]
LAB_MEAN = ((0.0 + 100.0) / 2, (-86.183 + 98.233) / 2, (-107.857 + 94.478) / 2)
LAB_STD = ((100.0 - 0.0) / 2, (86.183 + 98.233) / 2, (107.857 + 94.478) / 2)
"""The range of each channel becomes [-1, 1] (the authors' code)."""
YDBDR_MEAN, YDBDR_STD = (0.457, -0.082, -0.052), (0.5, 1.331, 1.333)
"""PyContrast's."""


@dataclass(frozen=True, kw_only=True)
class CMCConfig(BankConfig):
    """Hyperparameters of CMC. The authors use ``lab``, ``nce``, 4096 negatives, PyContrast ``ydbdr`` and ``softmax``.

    ``encoder.args`` sets the backbone's width: PyContrast's half-width ResNet-50 is ``{channels: [32, 64, 128, 256]}``,
    except for its first convolution, which stays 64 wide here.
    """

    name: str = "cmc"
    color: Color = "lab"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.color not in get_args(Color):
            raise ValueError(f"color must be one of {', '.join(get_args(Color))}, got {self.color!r}")


class ColorPair(Encoder):
    """Two encoders of one kind, for luminance (1 channel) and chrominance (2): f(x) = [f_1(x), f_2(x)].

    The input is RGB in [0, 1], so mean is 0 and std is 1: the encoder config's values are not used. It has no
    activations of its own: attention is read off its two encoders.
    """

    converts_colours: ClassVar[bool] = True

    def __init__(self, config: EncoderConfig, color: Color) -> None:
        nn.Module.__init__(self)  # not Encoder.__init__, which would build a third backbone
        self.mean, self.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self.in_channels, self.compiled = 3, None
        self.color = color
        self.luminance, self.chrominance = Encoder(config, in_channels=1), Encoder(config, in_channels=2)
        self.dim = self.luminance.dim + self.chrominance.dim

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """RGB in [0, 1] (B, 3, S, S) -> the encoders' inputs, (B, 1, S, S) and (B, 2, S, S), normalised."""
        image = rgb_to_lab(x, LAB_MEAN, LAB_STD) if self.color == "lab" else rgb_to_ydbdr(x, YDBDR_MEAN, YDBDR_STD)
        return image[:, :1], image[:, 1:]

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Encoder.forward`."""
        luminance, chrominance = self.split(x)
        return torch.cat([self.luminance(luminance), self.chrominance(chrominance)], dim=1)


class HeadPair(nn.Module):
    """g(h) = [g_1(h_1), g_2(h_2)], two linear layers."""

    def __init__(self, encoder: ColorPair, projection_dim: int) -> None:
        super().__init__()
        self.luminance = nn.Linear(encoder.luminance.dim, projection_dim)
        self.chrominance = nn.Linear(encoder.chrominance.dim, projection_dim)

    def forward(self, h: Tensor) -> Tensor:
        """(B, dim) -> (B, 2 * projection_dim)."""
        luminance, chrominance = h.chunk(2, dim=1)
        return torch.cat([self.luminance(luminance), self.chrominance(chrominance)], dim=1)


class CMC(BankMethod):
    """An image's luminance attracts its row of the chrominance bank and repels drawn rows, and the reverse."""

    Config: ClassVar[type[MethodConfig]] = CMCConfig
    num_views: ClassVar[int] = 1
    encoder: ColorPair
    projector: HeadPair

    def __init__(self, config: CMCConfig, encoder: EncoderConfig, num_images: int) -> None:
        super().__init__(config, ColorPair(encoder, config.color), num_images)
        self.projector = HeadPair(self.encoder, config.projection_dim)
        self.luminance_bank = MemoryBank(num_images, config)
        self.chrominance_bank = MemoryBank(num_images, config)

    def branches(self, images: Tensor) -> tuple[Branch, ...]:
        """See :meth:`Method.branches`."""
        luminance, chrominance = self.encoder.split(images)
        first, second = self.projector.luminance, self.projector.chrominance
        return (
            Branch(self.encoder.luminance, first, luminance),
            Branch(self.encoder.chrominance, second, chrominance, first_dim=first.out_features),
        )

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """See :attr:`Method.encoders`."""
        return self.encoder.luminance, self.encoder.chrominance

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """See :attr:`Method.projectors`."""
        return self.projector.luminance, self.projector.chrominance

    def forward(self, views: Tensor, index: Tensor) -> StepOutput:
        """See :meth:`Method.forward`; both channels' features are compared with the same drawn images."""
        luminance, chrominance = (
            F.normalize(self.in_parts(branch.images, branch.encoder, branch.projector).float(), dim=1)
            for branch in self.branches(views[:, 0])
        )
        idx = self.draw(index)
        to_chrominance = self.chrominance_bank.contrast(luminance, idx)
        to_luminance = self.luminance_bank.contrast(chrominance, idx)
        self.record(index, (self.luminance_bank, luminance), (self.chrominance_bank, chrominance))
        return StepOutput(
            to_chrominance.loss + to_luminance.loss,
            0.5 * (to_chrominance.positive_similarity + to_luminance.positive_similarity),
        )
