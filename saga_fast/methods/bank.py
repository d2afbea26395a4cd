"""The memory bank of InsDis, PIRL and CMC: one row per image, and the losses against rows drawn from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_fast.kernels import bank_logits
from saga_fast.methods.heads import check_count, check_temperature, check_widths
from saga_fast.methods.method import Method, MethodConfig, StepOutput
from saga_fast.methods.momentum import check_momentum
from saga_fast.models.encoder import Encoder
from saga_fast.runtime.distributed import gather, local_rows, world_size

Loss = Literal["softmax", "nce"]


@dataclass(frozen=True, kw_only=True)
class BankConfig(MethodConfig):
    """Hyperparameters of a method with a memory bank; defaults: PyContrast's."""

    loss: Loss = "softmax"
    """``softmax``: cross-entropy over the image's own row and the drawn ones (PyContrast). ``nce``: noise-contrastive
    estimation as in the papers of InsDis and CMC, which draw 4096."""
    negatives: int = 65536
    """Rows drawn for each image, with replacement."""
    temperature: float = 0.07
    projection_dim: int = 128
    bank_momentum: float = 0.5
    """A row becomes normalise(bank_momentum * row + (1 - bank_momentum) * feature)."""

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, got {self.loss!r}")
        check_count("negatives", self.negatives)
        check_temperature(self.temperature)
        check_widths(self.projection_dim, None)
        check_momentum("bank_momentum", self.bank_momentum)


class BankMethod(Method):
    """A method that keeps a bank row for each of ``num_images`` images, the third argument of its subclasses.

    :meth:`forward` calls :meth:`record` with the features that :meth:`after_step` then moves the banks' rows towards.
    """

    def __init__(self, config: BankConfig, encoder: Encoder, num_images: int) -> None:
        super().__init__(config, encoder)
        self.num_images, self.negatives = num_images, config.negatives
        self._recorded: tuple[Tensor, tuple[tuple[MemoryBank, Tensor], ...]] | None = None

    def draw(self, index: Tensor) -> Tensor:
        """Bank rows to compare with: index (B,) -> (B, 1 + K), each image's row first, then K drawn uniformly.

        The generator is torch's default one of the device, whose state is in the checkpoint. An image's row may also be
        among its drawn ones, as in PyContrast. Each process draws for the whole batch and keeps the part of its images.
        """
        drawn = torch.randint(self.num_images, (world_size() * len(index), self.negatives), device=index.device)
        return torch.cat([index[:, None], local_rows(drawn)], dim=1)

    def record(self, index: Tensor, *features: tuple[MemoryBank, Tensor]) -> None:
        """Keep a step's features for :meth:`after_step`: index (B,), and for each bank its features (B, D)."""
        self._recorded = index, tuple((bank, each.detach()) for bank, each in features)

    def after_step(self) -> None:
        """Move the rows of the step's images towards the recorded features."""
        assert self._recorded is not None, "after_step without a forward"
        index, features = self._recorded
        for bank, each in features:
            bank.update(index, each)
        self._recorded = None


class MemoryBank(nn.Module):
    """L2-normalised features, one row per image, random at first.

    Attributes:
        rows: (N, D) float32.
        log_z: (), with ``loss: nce`` only: log of the constant Z of P(i | f) = exp(f . row_i / tau) / Z; infinite
            before the first batch in train mode.
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
        """Noise-contrastive estimation with K noise samples of P_n = 1 / N (Wu et al. 2018, Eq. 4 to 7).

        h = P / (P + K / N) is the probability that a row is the image's; the loss is -log h(positive) - sum log(1 - h).
        Z is N times the mean of exp(logits) of the first batch, and constant from then on (section 3.2).
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
        """Move rows ``index`` (B,) towards features (B, D), of all processes; of equal indices the last one counts."""
        index, features = gather(index), gather(features)
        moved = F.normalize(torch.lerp(features, self.rows[index], self.momentum), dim=1)
        # All occurrences write the last one's row: on a GPU the order of writes is undefined.
        self.rows[index] = moved[_last_occurrence(index)]


def _last_occurrence(index: Tensor) -> Tensor:
    """The position of each entry's last occurrence in index (B,): (B,) int64, without waiting for a GPU."""
    position = torch.arange(len(index), device=index.device)
    return torch.where(index[:, None] == index[None, :], position, -1).amax(1)


def num_bank_rows(state: Mapping[str, Tensor]) -> int | None:
    """Number of rows of the banks in a model state; None if there is no bank."""
    return next((len(tensor) for name, tensor in state.items() if name.endswith("bank.rows")), None)
