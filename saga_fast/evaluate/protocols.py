"""The linear-probe protocols that papers report, as presets. Each number cites its source: MC is
facebookresearch/moco, PC HobbitLong/PyContrast, SC google-research/simclr, LY lightly-ai/lightly.

All four train on random resized crops with a flip and test on the centre crop of 224 from images whose shorter side is
256: the fraction 0.875, kept at other sizes. None of them augments colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from saga_fast.errors import SagaError
from saga_fast.optim import PhaseConfig


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How a linear classifier is trained on a frozen encoder, with SGD."""

    name: str
    """Of the protocol."""
    phase: PhaseConfig
    """Epochs and learning rate."""
    batch_size: int = 256
    lr_per_256: bool = False
    """``phase.lr`` is for 256 images and multiplied by batch_size / 256."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    init_std: float | None = None
    """Of the classifier's weights, 0 for zeros, biases 0; None: torch's initialisation of a linear layer."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the training crops."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    centre: float | None = 0.875
    """Side of the test crop over the shorter side; None: the whole image, squashed to a square."""

    def __post_init__(self) -> None:
        if self.phase.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.phase.epochs}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.weight_decay < 0.0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")

    @property
    def peak_lr(self) -> float:
        """The first learning rate, for the batch size."""
        return self.phase.lr * (self.batch_size / 256 if self.lr_per_256 else 1.0)

    @property
    def test_crop(self) -> str:
        """The test crop in words."""
        return "whole image" if self.centre is None else f"centre {self.centre:g}"


PROTOCOLS = {
    # MC main_lincls.py: --lr 30 --epochs 100 --schedule 60 80 --wd 0 --batch-size 256; fc.weight N(0, 0.01), fc.bias 0.
    "moco": ProbeConfig(
        name="moco",
        phase=PhaseConfig(epochs=100, lr=30.0, schedule="step", milestones=(60, 80), gamma=0.1),
        init_std=0.01,
    ),
    # PC options/test_options.py: 60 epochs, lr 30, x 0.2 at 30, 40, 50, wd 0, crop 0.2; build_linear.py: nn.Linear.
    "pycontrast": ProbeConfig(
        name="pycontrast",
        phase=PhaseConfig(epochs=60, lr=30.0, schedule="step", milestones=(30, 40, 50), gamma=0.2),
        scale=(0.2, 1.0),
    ),
    # SC README.md ("Finetuning the linear head", ImageNet) and SimCLR's appendix B.6: 90 epochs, batches of 4096,
    # lr 0.1 B / 256, Nesterov, cosine, wd 1e-6, --zero_init_logits_layer.
    "simclr": ProbeConfig(
        name="simclr",
        phase=PhaseConfig(epochs=90, lr=0.1, schedule="cosine"),
        batch_size=4096,
        lr_per_256=True,
        nesterov=True,
        weight_decay=1e-6,
        init_std=0.0,
    ),
    # LY benchmarks/imagenet/resnet50/linear_eval.py: 90 epochs, SGD, base lr 0.1, cosine without warm-up, wd 0.
    "lightly": ProbeConfig(
        name="lightly",
        phase=PhaseConfig(epochs=90, lr=0.1, schedule="cosine"),
        lr_per_256=True,
    ),
}


def choose_protocol(
    name: str,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    centre: float | str | None = None,
) -> ProbeConfig:
    """A preset, with the given values in place of its values.

    Args:
        name: a key of PROTOCOLS.
        epochs: the schedule's milestones move in proportion.
        batch_size: images per step.
        lr: the first learning rate, as it is: never rescaled.
        weight_decay: of the classifier.
        centre: a fraction, or ``"whole"`` for the squashed whole image.

    Raises:
        SagaError: no such protocol, or a value out of its range.
    """
    if name not in PROTOCOLS:
        raise SagaError(f"no such protocol: {name!r}, have {', '.join(PROTOCOLS)}")
    config = PROTOCOLS[name]
    try:
        phase = config.phase
        if epochs is not None:
            moved = tuple(max(round(at * epochs / phase.epochs), 1) for at in phase.milestones)
            phase = replace(phase, epochs=epochs, milestones=moved)
        if lr is not None:
            phase = replace(phase, lr=lr)
        return replace(
            config,
            phase=phase,
            batch_size=config.batch_size if batch_size is None else batch_size,
            lr_per_256=config.lr_per_256 and lr is None,
            weight_decay=config.weight_decay if weight_decay is None else weight_decay,
            centre=config.centre if centre is None else None if isinstance(centre, str) else centre,
        )
    except ValueError as error:
        raise SagaError(f"protocol {name}: {error}") from error
