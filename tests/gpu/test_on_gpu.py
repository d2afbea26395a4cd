"""What only a GPU can show: steps that do not wait for it, and results equal to the CPU's. Skipped without one."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.build import boxes_of_batch
from saga_fast.config import TrainConfig
from saga_fast.config_file import load_config
from saga_fast.kernels import crop_resize
from saga_fast.loaders import Batch, CropPlan, ImageFolder, Loader, LoaderOptions, Place, WholePlan, open_loader
from saga_fast.loaders.bad_images import BadImages
from saga_fast.loaders.device_images import ImageStream
from saga_fast.methods import METHODS, build_method
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.modes import place_model
from saga_fast.optim import build_optimizer
from saga_fast.train.paste import paste_views
from saga_fast.train.step import Training, backward_step, update_step

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

GPU = torch.device("cuda")
SIZE = 32
TINY = EncoderConfig(name="resnet18", args={"layers": [1] * 4, "channels": [8, 8, 8, 16]})


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Smooth, as photographs are."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 JPEGs of all kinds and sizes, three of them damaged, and two PNGs."""
    root = tmp_path_factory.mktemp("images")
    kinds: list[tuple[str, dict[str, Any]]] = [("RGB", {}), ("L", {}), ("RGB", {"progressive": True})]
    kinds += [("CMYK", {}), ("RGB", {"keep_rgb": True}), ("RGB", {"subsampling": 0})]
    for number in range(48):
        mode, options = kinds[number % len(kinds)]
        data = jpeg(picture(number, 20 + 7 * number, 400 - 6 * number).convert(mode), **options)
        name, data = f"{number:02}.jpg", data[: len(data) // 2] if number in (6, 17, 40) else data
        (root / name).write_bytes(data)
    picture(99, 50, 60).save(root / "98.png")
    picture(98, 60, 50).save(root / "99.png")
    return root


def open_on(root: Path, engine: str, device: torch.device, decode: Place, crop: Place) -> Loader:
    source = ImageFolder(root)
    options = LoaderOptions(batch_size=12, shuffle=True, threads=4, device=device, decode=decode, crop=crop)
    bad = BadImages(source, max_fraction=0.2)
    return open_loader(engine, source, CropPlan(size=SIZE, seed=3), options, bad=bad)


@pytest.mark.parametrize(("engine", "decode"), [("folder", "cpu"), ("folder", "gpu"), ("dali", "cpu"), ("dali", "gpu")])
def test_views_and_bad_images_are_the_cpus(root: Path, engine: str, decode: Place) -> None:
    if engine == "dali":
        pytest.importorskip("nvidia.dali")
    ours = open_on(root, engine, GPU, decode, "gpu")
    cpu = open_on(root, "folder", torch.device("cpu"), "cpu", "cpu")
    for epoch in range(3):
        ours.set_epoch(epoch)
        cpu.set_epoch(epoch)
        for batch, expected in zip(ours, cpu, strict=True):
            assert batch.views.is_cuda
            assert torch.equal(batch.index, expected.index)
            apart = (batch.views.cpu().int() - expected.views.int()).abs().flatten(1)
            assert int(apart.max()) <= (1 if decode == "cpu" else 40)
            assert float(apart.float().mean(1).max()) < (0.01 if decode == "cpu" else 2.0)
        assert ours.bad.indices.tolist() == cpu.bad.indices.tolist()


def test_decoding_beside_other_work_spoils_no_image() -> None:
    """nvJPEG writes in its own stream: in memory that the caller's stream has just freed it would be overwritten."""
    files = [torch.frombuffer(bytearray(jpeg(picture(n, 375, 500))), dtype=torch.uint8) for n in range(16)]
    stream = ImageStream(GPU)
    expected = [image.clone() for image in stream.decode(files).received() if image is not None]
    torch.cuda.synchronize()
    a = torch.randn(2048, 2048, device=GPU)
    different = torch.zeros((), device=GPU, dtype=torch.int64)
    for _ in range(50):
        scratch = [torch.full((375, 500, 3), 255, dtype=torch.uint8, device=GPU) for _ in files]
        b = a @ a
        for image in scratch:
            image.add_(b[0, 0].to(torch.uint8))
        del scratch, image
        images = [image for image in stream.decode(files).received() if image is not None]
        for image, reference in zip(images, expected, strict=True):
            different += (image != reference).sum()
        stream.keep(images)
        del images, image
    assert int(different) == 0


def config_of(name: str, *more: str) -> TrainConfig:
    overrides = [f"method={{name: {name}}}", "precision=bf16", "device=cuda", "data.generate=null"]
    return load_config(
        Path(__file__).parents[2] / "configs" / "demo.yaml", [*overrides, "data.true_boxes=false", *more]
    )


def training_of(config: TrainConfig) -> Training:
    model = build_method(config.method, TINY, num_images=500, parts=config.accumulate)
    place_model(model, GPU, channels_last=True).train()
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    return Training(config=config, model=model, network=model, optimizer=optimizer, scaler=scaler)


def batch_of(model: Any) -> Batch:
    """Page-locked, as the engines return them."""

    def views(count: int, size: int) -> torch.Tensor:
        return torch.randint(0, 256, (16, count, size, size, 3), dtype=torch.uint8).pin_memory()

    more = tuple(views(group.count, group.size) for group in model.more_views)
    return Batch(views(model.num_views, 64), torch.arange(16), torch.zeros(16, dtype=torch.int64), more)


def without_waiting(work: Callable[[], object]) -> None:
    """Call it with an error for each operation that makes the host wait."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"supervised"}))
def test_no_training_step_waits_for_the_gpu(name: str, parts: int) -> None:
    config = config_of(name, f"accumulate={parts}")
    training = training_of(config)
    batch = batch_of(training.model)

    def step() -> None:
        backward_step(training, batch, 0)
        update_step(training)

    for _ in range(2):
        step()
    without_waiting(step)


RECIPES: list[dict[str, Any]] = [{}, {"score": "background", "region": "largest", "delta": 0.6}]


@pytest.mark.parametrize("recipe", RECIPES, ids=["paper", "saga+"])
def test_no_batch_of_the_attention_pass_waits_for_the_gpu(recipe: dict[str, Any]) -> None:
    config = config_of("simclr")
    model = training_of(config).model.eval()
    views = torch.randint(0, 256, (16, 1, 64, 64, 3), dtype=torch.uint8).pin_memory()
    batch = Batch(views, torch.arange(16), torch.zeros(16, dtype=torch.int64))
    options = AttentionPass(size=64, precision="bf16", channels_last=True, **recipe)
    boxes_of_batch(model, batch, options)
    without_waiting(lambda: boxes_of_batch(model, batch, options))


@pytest.mark.parametrize("recipe", RECIPES, ids=["paper", "saga+"])
def test_boxes_are_the_cpus(root: Path, recipe: dict[str, Any]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = place_model(build_method(config_of("simclr").method, TINY, num_images=50), GPU, channels_last=True)
    tables = []
    for device in (GPU, torch.device("cpu")):
        options = LoaderOptions(batch_size=16, device=device, threads=4, decode="cpu", crop="cpu")
        bad = BadImages(ImageFolder(root), max_fraction=0.2)
        loader = open_loader("folder", root, WholePlan(size=64), options, bad=bad)
        options_of_pass = AttentionPass(size=64, channels_last=True, **recipe)
        tables.append(build_box_table(model.to(device), loader, options_of_pass))
    gpu, cpu = tables
    assert (gpu.found == cpu.found).all()
    # float32 rounds otherwise there: a pixel next to delta may fall on the other side.
    assert (np.abs(gpu.boxes - cpu.boxes) <= 1.001 / 64).mean() > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pasted_views_are_the_cpus(dtype: torch.dtype) -> None:
    views, index = torch.randn(16, 3, 3, 40, 40).to(dtype), torch.arange(16)
    on_gpu, index_there = views.to(GPU), index.to(GPU)
    options: dict[str, Any] = {"seed": 1, "epoch": 2, "share": 0.7}
    expected, result = paste_views(views, index, **options), paste_views(on_gpu, index_there, **options)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-2 if dtype == torch.bfloat16 else 1e-4)
    without_waiting(lambda: paste_views(on_gpu, index_there, **options))


def test_a_table_of_images_is_read_where_they_lie() -> None:
    images = [torch.randint(0, 256, (3, 50 + n, 90 - n), dtype=torch.uint8, device=GPU) for n in range(20)]
    windows = np.array([[[0, 0, 50 + n, 90 - n], [n, 3, 20, 40]] for n in range(20)], np.int32)
    views = crop_resize([image.permute(1, 2, 0) for image in images], windows, 33)
    expected = crop_resize([image.permute(1, 2, 0).cpu() for image in images], windows, 33)
    apart = (views.cpu().int() - expected.int()).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).float().mean()) < 0.01
