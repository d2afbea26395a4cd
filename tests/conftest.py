"""What many tests share: a few small images, a tiny experiment on them, and one finished run of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.train.cycle import train

SLOW = (
    *("distributed/", "demo/", "importers/", "train/test_resume", "train/test_mid_epoch", "train/test_cycle"),
    *("train/test_accumulate",),
    *("train/test_renewal", "train/test_nonfinite", "train/test_crop_plans", "train/test_provider"),
    *("train/test_online_figures", "train/test_transformers", "runtime/test_loggers"),
    *("faults/test_torture", "faults/test_hostile", "faults/test_determinism", "faults/test_damage"),
    *("kernels/test_triton_compiles", "kernels/test_compiled_once", "kernels/test_threads", "kernels/test_bank_logits"),
    *("loaders/test_memory", "loaders/test_dali", "loaders/test_ffcv", "loaders/test_engines", "loaders/test_shards"),
    *("loaders/test_remote", "loaders/test_read_ahead", "loaders/test_hugging_face", "faults/test_addresses"),
    *("evaluate/test_linear", "evaluate/test_pairs", "models/test_compiled_features", "methods/test_contributing"),
    *("test_docs", "test_benchmarks", "test_bench_", "test_gpu_benchmark", "test_study", "test_report_browser"),
    *("test_cli", "test_pack", "test_profile", "test_configs", "test_examples", "test_release"),
)
"""Beginnings of the paths of tests that take seconds each: training runs, processes, compilers, browsers."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of SLOW."""
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        if path.startswith(SLOW) or "_triton" in path:
            item.add_marker(pytest.mark.slow)


pytest.register_assert_rewrite("run_folders")  # its assertions tell what differed


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks run faster on one thread than on two, and tests leave a core to their neighbours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _make_images(
    root: Path,
    *,
    classes: tuple[str, ...] = ("cat", "dog"),
    per_class: int = 8,
    size: tuple[int, int] = (24, 20),
    ending: str = ".jpg",
    seed: int = 0,
) -> Path:
    """Images of ``size`` (width, height) whose pixels are 4 x 4 random colours enlarged; ``ending`` is the format."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
            coarse.resize(size, Image.Resampling.BICUBIC).save(root / name / f"{number:03d}{ending}")
    return root


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    """Write smooth random images as ``root/CLASS/NNN.jpg``: see :func:`_make_images`."""
    return _make_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``train`` (41 images, which 8 does not divide) and ``val`` (16), not to be changed."""
    root = tmp_path_factory.mktemp("images")
    _make_images(root / "train", per_class=20)
    Image.new("RGB", (24, 20), (200, 30, 90)).save(root / "train" / "dog" / "020.jpg")
    _make_images(root / "val", seed=1)
    return root


@pytest.fixture(scope="session")
def tiny_values(images: Path) -> Callable[[], dict[str, Any]]:
    """The tiny experiment, 1 plain and 4 SAGA epochs, as the mappings of its YAML file: fresh ones at each call."""

    def values() -> dict[str, Any]:
        return {
            "out": "not-set",
            "method": {"name": "simclr", "temperature": 0.2, "projection_dim": 12},
            "encoder": {"name": "resnet18", "stem": "small", "args": {"layers": [1] * 4, "channels": [16] * 4}},
            "data": {"train": str(images / "train"), "val": str(images / "val"), "threads": 2},
            "crop": {"size": 16, "scale": [0.2, 1.0]},
            "photometric": {"flip": 0.5, "brightness": 0.4, "jitter": 0.8, "grayscale": 0.2},
            "batch_size": 8,
            "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 5.0e-4},
            "plain": {"epochs": 1, "lr": 0.03},
            "saga": {"epochs": 4, "lr": 0.02, "schedule": "cosine"},
            "attention": {"period": 2},
            "evaluate": {"every": 2, "k": [5]},
            "channels_last": True,
        }

    return values


@pytest.fixture(scope="session")
def tiny_yaml(tiny_values: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment as a file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(tiny_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tiny experiment, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(load_config(tiny_yaml, [f"out={folder}"]))
    return folder


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """refuses(arguments, words, ...): exit code 2, one line on stderr with all the words, nothing on stdout."""

    def check(arguments: list[Any], *words: Any) -> None:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("saga-fast: error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        for word in words:
            assert str(word) in err

    return check


@pytest.fixture(scope="module")
def ckpt(finished_run: Path) -> Path:
    """The last checkpoint of the finished run."""
    return finished_run / "last.pt"
