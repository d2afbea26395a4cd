"""``data.max_pixels``: larger images are bad ones in every engine, before memory is taken for them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from saga_fast.cli import main
from saga_fast.config_file import load_config
from saga_fast.errors import SagaError
from saga_fast.loaders import MAX_PIXELS, BadImages, LoaderOptions, WholePlan, open_loader, open_source
from saga_fast.loaders.engines import require_engine
from saga_fast.train.cycle import train


@pytest.fixture
def root(make_images: Callable[..., Path], tmp_path: Path) -> Path:
    """Images of 24 x 20 pixels, but for two of 60 x 50."""
    root = make_images(tmp_path / "images", per_class=4)
    for name in ("cat/001.jpg", "dog/003.jpg"):
        Image.new("RGB", (60, 50)).save(root / name)
    return root


@pytest.mark.parametrize("engine", ["folder", "ffcv", "dali"])
def test_larger_images_are_bad(root: Path, tmp_path: Path, engine: str) -> None:
    require_engine(engine)
    data = root
    if engine == "ffcv":
        data = tmp_path / "x.beton"
        assert main(["pack", str(root), str(data)]) == 0
    source = open_source(engine, data)
    for limit, expected in ((2999, [1, 7]), (3000, []), (480, [1, 7]), (479, list(range(8)))):
        bad = BadImages(source, max_fraction=1.0)
        options = LoaderOptions(batch_size=3, threads=2, max_pixels=limit)
        loader = open_loader(engine, source, WholePlan(size=4), options, bad=bad)
        seen = [index for batch in loader for index in batch.index]
        assert bad.indices.tolist() == expected
        assert sorted(map(int, seen)) == sorted(set(range(8)) - set(expected))
    bad.write(tmp_path / "bad.txt")
    assert "24 x 20 pixels are more than 479" in (tmp_path / "bad.txt").read_text()


@pytest.mark.parametrize("limit", [0, -1, MAX_PIXELS + 1])
def test_a_limit_out_of_range_is_refused(root: Path, tiny_yaml: Path, limit: int) -> None:
    with pytest.raises(SagaError, match=f"max_pixels must be in 1 to {MAX_PIXELS}, got {limit}"):
        open_loader("folder", root, WholePlan(size=4), LoaderOptions(max_pixels=limit), batch_size=1)
    with pytest.raises(SagaError, match=f"max_pixels must be in 1 to {MAX_PIXELS}, got {limit}"):
        load_config(tiny_yaml, [f"data.max_pixels={limit}"])


def test_training_and_the_attention_pass_obey_it(root: Path, tiny_yaml: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = f"data={{train: {root}, threads: 1, max_bad_fraction: 0.5, max_pixels: 2999}}"
    config = load_config(tiny_yaml, [f"out={run}", data, "batch_size=4", "saga.epochs=1", "evaluate=null"])
    train(config)
    assert [line.split("\t")[0] for line in (run / "bad_images.txt").read_text().splitlines()] == ["1", "7"]
    arguments = ["--ckpt", str(run / "last.pt"), "--out", str(tmp_path / "t.safetensors"), "--device", "cpu"]
    assert main(["build-att", *arguments]) == 0
    assert len((tmp_path / "t.bad_images.txt").read_text().splitlines()) == 2
