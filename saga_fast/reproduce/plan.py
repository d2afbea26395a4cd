"""The steps of a reproduction in the order in which they run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saga_fast.config import TrainConfig
from saga_fast.config_file import config_to_dict, load_config
from saga_fast.configs import shipped_config, shipped_configs
from saga_fast.errors import SagaError
from saga_fast.evaluate.protocols import PROTOCOLS
from saga_fast.reproduce.step import Step
from saga_fast.reproduce.targets import ARM_TITLES, Arm, Target

KEEP_DEMO = 2  # epochs between the checkpoints that are kept on the demo's data: Fig. 3 and 4 need some of them
PAIR_PASSES = 5  # of eval pairs for a checkpoint: one for the boxes, two pairs of views


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is reproduced, with which data, and where.

    Attributes:
        data: folder with train and val, as folders or .beton files; None: the demo's images, made in ``out/data``.
        methods: keys of ``METHODS``.
        seeds: the runs have the seeds 0 to seeds - 1.
        plain_ckpts: method -> its plain checkpoint, in place of one that is trained.
        classifier: checkpoint for supervised attention, in place of one that is trained.
        with_plus: also the recipe ``saga+``, which the paper does not have.
        overrides: ``key=value`` for each training.
        protocol: of the linear probe.
        cached: linear probes on cached features: estimates.
    """

    name: str
    target: Target
    out: Path
    data: Path | None
    methods: tuple[str, ...]
    seeds: int
    plain_ckpts: Mapping[str, Path] = field(default_factory=dict)
    classifier: Path | None = None
    with_plus: bool = False
    overrides: tuple[str, ...] = ()
    protocol: str = "moco"
    cached: bool = False

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, in the order of the table's columns."""
        return (*self.target.arms, *(("saga_plus",) if self.with_plus else ()))

    @property
    def probe_passes(self) -> int:
        """Forward passes over the training images of a linear probe."""
        return 1 if self.cached else PROTOCOLS[self.protocol].phase.epochs

    def folder(self, method: str, seed: int, arm: Arm) -> Path:
        """The run folder of an arm; of a given plain checkpoint there is one for all seeds."""
        return self.out / method / f"seed{0 if arm == 'plain' and method in self.plain_ckpts else seed}" / arm

    def config_name(self, method: str) -> str:
        """The shipped config of a method."""
        if self.data is not None:
            return f"{self.target.configs}/{method}"
        return "demo" if method == "simclr" else f"demo_{method}"

    def split(self, name: str) -> Path:
        """The images of ``train`` or ``val``."""
        folder = self.out / "data" if self.data is None else self.data
        packed = folder / f"{name}.beton"
        return packed if packed.is_file() and not (folder / name).is_dir() else folder / name


def plan(reproduction: Reproduction) -> list[Step]:
    """The steps in the order in which they run; those that are done are among them.

    Raises:
        SagaError: a config that cannot be used, or checkpoints that it does not keep.
    """
    steps: list[Step] = []
    if "supervised" in reproduction.arms and reproduction.classifier is None:
        steps.append(_classifier(reproduction))
    for seed in range(reproduction.seeds):
        for method in reproduction.methods:
            steps += _of_method(reproduction, method, seed)
    return list({step.output: step for step in steps}.values())  # one evaluation of a given checkpoint for all seeds


def kept_epochs(config: TrainConfig) -> list[int]:
    """The epochs after the plain phase whose checkpoints are kept.

    Raises:
        SagaError: there are none.
    """
    first, last = config.plain.epochs + 1, config.plain.epochs + config.saga.epochs
    keep = config.checkpoint.keep_every
    epochs = [epoch for epoch in range(first, last + 1) if keep and epoch % keep == 0]
    if not epochs:
        raise SagaError(f"checkpoint.keep_every={keep} keeps no checkpoint of the epochs {first} to {last}: lower it")
    return epochs


def _of_method(reproduction: Reproduction, method: str, seed: int) -> Iterator[Step]:
    target = reproduction.target
    for arm in reproduction.arms:
        config, words = _training(reproduction, method, seed, arm)
        folder = reproduction.folder(method, seed, arm)
        title = f"{method}, seed {seed}, {ARM_TITLES[arm].lower()}"
        is_given = arm == "plain" and method in reproduction.plain_ckpts
        if not is_given:
            yield Step(title=title, words=words, config=config, output=folder)
        if target.evaluation == "linear":
            for epoch, ckpt in _checkpoints(reproduction, method, seed, arm, config):
                yield _probe(reproduction, title, seed, config, folder, epoch, ckpt)
    if target.evaluation == "pairs":
        yield _pairs(reproduction, method, seed)


def _training(reproduction: Reproduction, method: str, seed: int, arm: Arm) -> tuple[TrainConfig, tuple[str, ...]]:
    """The config of an arm's training, and the arguments that train it."""
    name, folder = reproduction.config_name(method), reproduction.folder(method, seed, arm)
    overrides = [*_of_data(reproduction), f"seed={seed}", *reproduction.overrides]
    overrides += _of_arm(reproduction, method, arm)  # last: an override of saga.epochs must not undo a plain arm's
    words = ["train", "--config", name, "--out", str(folder), "--resume"]
    if arm != "plain":
        words += ["--ckpt", str(_plain_ckpt(reproduction, method, seed))]
    config = load_config(shipped_config(name), [*overrides, f"out={folder}"])
    return config, (*words, "--set", *overrides)


def _of_data(reproduction: Reproduction) -> list[str]:
    keep = [f"checkpoint.keep_every={KEEP_DEMO}"] if reproduction.data is None else ["data.generate=null"]
    engine = ["data.engine=ffcv"] if reproduction.split("train").suffix == ".beton" else []
    return [f"data.{name}={reproduction.split(name)}" for name in ("train", "val")] + keep + engine


def _of_arm(reproduction: Reproduction, method: str, arm: Arm) -> list[str]:
    """The overrides that make an arm of a method's config, whose ``attention`` is the paper's but for the demo."""
    if arm == "plain":
        return ["saga.epochs=0", "attention=null"]
    if arm == "finetune":
        return ["attention=null"]
    if arm == "saga_plus":
        return _plus(reproduction.config_name(method))
    paper = [] if reproduction.data is not None else ["attention.views=att"]
    if arm == "saga":
        return paper
    return [*paper, "attention.provider=supervised", f"attention.provider_ckpt={_classifier_ckpt(reproduction)}"]


def _plus(name: str) -> list[str]:
    """The overrides that make the ``attention`` of ``saga+`` of a config's."""
    configs = shipped_configs()
    recipe = f"{name}_plus" if f"{name}_plus" in configs else "demo_plus"
    plus, base = (config_to_dict(load_config(configs[each]))["attention"] for each in (recipe, name))
    return [f"attention.{key}={json.dumps(value)}" for key, value in plus.items() if value != base[key]]


def _plain_ckpt(reproduction: Reproduction, method: str, seed: int) -> Path:
    given = reproduction.plain_ckpts.get(method)
    return given or reproduction.folder(method, seed, "plain") / "last.pt"


def _classifier_ckpt(reproduction: Reproduction) -> Path:
    return reproduction.classifier or reproduction.out / "classifier" / "last.pt"


def _classifier(reproduction: Reproduction) -> Step:
    """The training of the classifier of Table 2's last row."""
    name = "demo_supervised" if reproduction.data is None else f"{reproduction.target.configs}/supervised"
    folder = _classifier_ckpt(reproduction).parent
    contrastive = ("method.", "attention.", "saga.")  # keys that a classifier's config has not, or has at 0
    changes = [override for override in reproduction.overrides if not override.startswith(contrastive)]
    overrides = [*_of_data(reproduction), *changes]
    return Step(
        title="classifier for supervised attention",
        words=("train", "--config", name, "--out", str(folder), "--resume", "--set", *overrides),
        config=load_config(shipped_config(name), [*overrides, f"out={folder}"]),
        output=folder,
    )


def _checkpoints(
    reproduction: Reproduction, method: str, seed: int, arm: Arm, config: TrainConfig
) -> Iterator[tuple[int, Path]]:
    """(epoch, checkpoint) of an arm's linear probes."""
    folder, last = reproduction.folder(method, seed, arm), config.plain.epochs + config.saga.epochs
    if arm == "plain":
        yield last, _plain_ckpt(reproduction, method, seed)
    elif reproduction.target.is_curve:
        yield from ((epoch, folder / f"epoch_{epoch:04d}.pt") for epoch in kept_epochs(config))
    else:
        yield last, folder / "last.pt"


def _probe(
    reproduction: Reproduction, title: str, seed: int, config: TrainConfig, folder: Path, epoch: int, ckpt: Path
) -> Step:
    output = folder / "eval" / f"linear_{epoch:04d}.json"
    words = ["eval", "linear", "--ckpt", str(ckpt), *_images(reproduction, config), "--seed", str(seed)]
    words += ["--protocol", reproduction.protocol, *(["--cached"] if reproduction.cached else [])]
    words += ["--out", str(folder / f"probe_{epoch:04d}"), "--json", str(output)]
    return Step(
        title=f"{title}, linear probe at epoch {epoch}",
        words=tuple(words),
        config=config,
        output=output,
        passes=reproduction.probe_passes,
    )


def _images(reproduction: Reproduction, config: TrainConfig) -> list[str]:
    classes = ["--classes", config.data.classes] if config.data.classes else []
    return ["--data", str(reproduction.split("train")), "--val", str(reproduction.split("val")), *classes]


def _pairs(reproduction: Reproduction, method: str, seed: int) -> Step:
    """Fig. 4: the plain checkpoint, and that of SAGA after two thirds of its epochs: 200 and 240 in the paper."""
    config, _ = _training(reproduction, method, seed, "saga")
    folder = reproduction.folder(method, seed, "saga")
    middle = config.plain.epochs + 2 / 3 * config.saga.epochs
    epoch = min(kept_epochs(config), key=lambda each: abs(each - middle))
    output = folder / "eval" / "pairs.json"
    words = ["eval", "pairs", "--ckpt", str(_plain_ckpt(reproduction, method, seed))]
    words += [str(folder / f"epoch_{epoch:04d}.pt"), "--data", str(reproduction.split("train")), "--seed", str(seed)]
    words += ["--json", str(output), "--png", str(reproduction.out / f"{reproduction.name}_{method}_seed{seed}.png")]
    return Step(
        title=f"{method}, seed {seed}, positive pairs",
        words=tuple(words),
        config=config,
        output=output,
        passes=2 * PAIR_PASSES,
    )
