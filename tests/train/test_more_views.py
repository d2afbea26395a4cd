"""Views besides the main ones (PIRL's jigsaw): numbered on from them, augmented their own way, given to the method."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saga_fast.config import TrainConfig
from saga_fast.config_file import config_from_dict
from saga_fast.errors import SagaError
from saga_fast.kernels import PhotometricRecipe, augment, sample_photometrics
from saga_fast.loaders import Batch
from saga_fast.methods import Method, ViewGroup, build_method
from saga_fast.optim import build_optimizer
from saga_fast.train import step
from saga_fast.train.cycle import train
from saga_fast.train.step import Training, views_of_batch


def make_batch(*shapes: tuple[int, int]) -> Batch:
    """Groups of (count, side), the first of them the main views; 12 images from index 100."""
    generator = torch.Generator().manual_seed(0)
    first, *more = (
        torch.randint(256, (12, count, side, side, 3), generator=generator, dtype=torch.uint8) for count, side in shapes
    )
    return Batch(first, torch.arange(100, 112), torch.full((12,), -1), more=tuple(more))


@pytest.fixture
def config(tiny_values: Callable[[], dict[str, Any]]) -> TrainConfig:
    method = {"name": "pirl", "negatives": 4, "jigsaw_size": 15, "jigsaw_patch": 4}
    return config_from_dict({**tiny_values(), "method": method}, where="test")


@pytest.fixture
def model(config: TrainConfig) -> Method:
    return build_method(config.method, config.encoder, num_images=200)


def training(config: TrainConfig, model: Method) -> Training:
    optimizer = build_optimizer(config.optimizer, model)
    return Training(
        config=config,
        model=model,
        network=model,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


def test_photometrics_of_each_group(config: TrainConfig, model: Method) -> None:
    """The main views draw as they do alone; the others go on with the next views' draws and their own recipe."""
    blurred = PhotometricRecipe(blur=1.0, blur_kernel=3)
    model.more_views = (*model.more_views, ViewGroup(size=9, count=2, photometric=blurred))
    batch = make_batch((1, 16), (1, 15), (2, 9))
    found = views_of_batch(training(config, model), batch, 3)
    recipes = (config.photometric, PhotometricRecipe(flip=0.5), blurred)
    numbers = (slice(0, 1), slice(1, 2), slice(2, 4))
    for views, own, recipe, number in zip(found, (batch.views, *batch.more), recipes, numbers, strict=True):
        drawn = sample_photometrics(recipe, config.seed, 3, batch.index, number.stop)[:, number]
        expected = augment(own, drawn, model.encoder.mean, model.encoder.std)
        torch.testing.assert_close(views, expected)
    flips = [
        sample_photometrics(PhotometricRecipe(flip=0.5), config.seed, 3, batch.index, 2)[:, view, 0] for view in (0, 1)
    ]
    assert not torch.equal(*flips)  # the jigsaw is not flipped because the view is


SECOND = PhotometricRecipe(solarize=1.0, blur=0.5, blur_kernel=5)


@pytest.mark.parametrize("extra", [0, 1], ids=["mixed", "paste"])
def test_second_view_has_its_recipe(
    extra: int, tiny_values: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``paste`` the first two views become the first."""
    values = tiny_values() | {"attention": {"views": "paste" if extra else "mixed"}}
    config = config_from_dict({**values, "second_photometric": asdict(SECOND)}, where="test")
    model = build_method(config.method, config.encoder)
    monkeypatch.setattr(step, "paste_views", lambda *arguments, **_: arguments[0])
    batch = make_batch((2 + extra, 16))
    (found,) = views_of_batch(training(config, model), batch, 1)
    recipes = [config.photometric] * (1 + extra) + [SECOND]
    for view, recipe in enumerate(recipes):
        drawn = sample_photometrics(recipe, config.seed, 1, batch.index, 3)[:, view : view + 1]
        expected = augment(batch.views[:, view : view + 1], drawn, model.encoder.mean, model.encoder.std)
        torch.testing.assert_close(found[:, view : view + 1], expected)


def test_second_recipe_needs_a_second_view(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(SagaError, match=r"second_photometric needs a method with two views, and pirl has one"):
        train(replace(config, out=str(tmp_path / "run"), second_photometric=SECOND))


def test_a_step_with_them(config: TrainConfig, model: Method) -> None:
    batch = make_batch((1, 16), (1, 15))
    views = views_of_batch(training(config, model), batch, 0)
    output = model(views[0], batch.index, *views[1:])
    output.loss.backward()
    assert bool(output.loss.isfinite())
