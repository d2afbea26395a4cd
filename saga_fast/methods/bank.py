"""What InsDis, PIRL and CMC share: a memory bank with one row per image, and the losses against rows drawn from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.distributed import gather, own_rows, world_size
from saga_fast.encoder import Encoder
from saga_fast.kernels import bank_logits
from saga_fast.methods.heads import check_temperature, check_widths
from saga_fast.methods.method import Method, MethodConfig, StepOutput

Loss = Literal["softmax", "nce"]


@dataclass(frozen=True, kw_only=True)
class BankConfig(MethodConfig):
    """The numbers of a method with a memory bank (PyContrast's, REFERENCE 2)."""

    loss: Loss = "softmax"
    """``softmax``: cross-entropy over the image's own row and the drawn ones (PyContrast). ``nce``: noise-contrastive
    estimation as in the papers of InsDis and CMC, which draw 4096."""
    negatives: int = 65536
    """Rows drawn for every image, with replacement."""
    temperature: float = 0.07
    projection_dim: int = 128
    bank_momentum: float = 0.5
    """A row becomes normalise(bank_momentum * row + (1 - bank_momentum) * feature)."""

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, got {self.loss!r}")
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {self.negatives}")
        check_temperature(self.temperature)
        check_widths(self.projection_dim, None)
        if not 0.0 <= self.bank_momentum < 1.0:
            raise ValueError(f"bank_momentum must be in [0, 1), got {self.bank_momentum}")


class BankMethod(Method):
    """A method that keeps a row for each of ``num_images`` images; subclasses take it as their third argument."""

    def __init__(self, config: BankConfig, encoder: Encoder, num_images: int) -> None:
        super().__init__(config, encoder)
        self.num_images, self.negatives = num_images, config.negatives

    def draw(self, index: Tensor) -> Tensor:
        """Rows to compare with: index (B,) -> (B, 1 + K), the image's own first, then K drawn uniformly.

        The generator is torch's own for the device, which a checkpoint holds. An image may meet its own row among
        the drawn ones, as in PyContrast. Every process draws for the whole batch and takes its own images' part.
        """
        drawn = torch.randint(self.num_images, (world_size() * len(index), self.negatives), device=index.device)
        return torch.cat([index[:, None], own_rows(drawn)], dim=1)


class MemoryBank(nn.Module):
    """L2-normalised features, one row per image; rows start at random.

    Attributes:
        rows: (N, D) float32.
        log_z: (), with ``loss: nce`` only: log of the constant Z of P(i | f) = exp(f . row_i / tau) / Z, infinite until
            the first batch has been seen in train mode.
    """

    rows: Tensor
    log_z: Tensor

    def __init__(self, num_images: int, config: BankConfig) -> None:
        super().__init__()
        self.loss, self.temperature, self.momentum = config.loss, config.temperature, config.bank_momentum
        self.register_buffer("rows", F.normalize(torch.randn(num_images, config.projection_dim), dim=1))
        if self.loss == "nce":
            self.register_buffer("log_z", torch.full((), math.inf))

    def contrast(self, features: Tensor, idx: Tensor) -> StepOutput:
        """The loss of features (B, D) float32, L2-normalised, against rows idx (B, 1 + K), the positive first."""
        similarity = bank_logits(features, self.rows, idx)
        logits = similarity / self.temperature
        loss = self._nce(logits) if self.loss == "nce" else -logits.log_softmax(dim=1)[:, 0].mean()
        return StepOutput(loss, similarity[:, 0].detach().mean())

    def _nce(self, logits: Tensor) -> Tensor:
        """Wu et al. 2018, Eq. 4 to 7: tell the image's row from K draws of noise with P_n = 1 / N.

        h = P / (P + K / N) is the probability that a row is the image's; the loss is -log h(positive) - sum log(1 - h).
        Z is N times the mean of exp(logits) of the first batch, and then kept (section 3.2).
        """
        log_images, log_negatives = math.log(len(self.rows)), math.log(logits.shape[1] - 1)
        total = gather(logits.flatten().logsumexp(0)[None]).logsumexp(0)  # over all processes' logits
        estimate = total - math.log(world_size() * logits.numel()) + log_images
        log_z = torch.where(self.log_z.isinf(), estimate, self.log_z)  # no branch, which would wait for the GPU
        if self.training:
            self.log_z.copy_(log_z.nan_to_num(nan=math.inf))  # a first batch that is NaN may be skipped
        odds = logits - log_z - (log_negatives - log_images)  # log of P / (K / N)
        return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor) -> None:
        """Rows ``index`` (B,) of all processes move towards features (B, D); of an image that the batch holds twice,
        the last counts."""
        index, features = gather(index), gather(features)
        moved = F.normalize(torch.lerp(features, self.rows[index], self.momentum), dim=1)
        # All occurrences write the last one's row: which write comes last is not defined on a GPU.
        self.rows[index] = moved[last_occurrence(index)]


def last_occurrence(index: Tensor) -> Tensor:
    """Where each entry of index (B,) occurs last: (B,) int64, without waiting for a GPU."""
    position = torch.arange(len(index), device=index.device)
    return torch.where(index[:, None] == index[None, :], position, -1).amax(1)


def num_bank_rows(state: Mapping[str, Tensor]) -> int | None:
    """Images that a model state's banks have rows for; None where there is no bank."""
    return next((len(tensor) for name, tensor in state.items() if name.endswith("bank.rows")), None)
