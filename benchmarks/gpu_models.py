"""The attention pass, training steps and the rebuild of D^att: ResNet-50 at 224 in bfloat16, channels_last.

On the CPU a tiny ResNet in float32 takes its place; torch.compile and nvJPEG are left out there, and the rows' names
say so. Networks are untrained, which no step's cost depends on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.bench_kernels import MEAN, MOCO_V2, RATIO, SCALE, STD, boxes_of_heatmaps, pictures
from benchmarks.gpu_kernels import boxes_by_torch
from benchmarks.gpu_timing import Bench, Way, autocast, time_ways
from benchmarks.images import cloud_jpegs
from saga_fast.channel_weights import channel_weights
from saga_fast.encoder import EncoderConfig
from saga_fast.kernels import attention_boxes, crop_augment, sample_photometrics, sample_windows
from saga_fast.methods import Method, MethodConfig, build_method
from saga_fast.methods.mocov2 import MoCoV2Config
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.profile.figures import Row, Seconds, compare
from saga_fast.train.optimizer import OptimizerConfig, build_optimizer

IMAGENET = 1_281_167
REBUILD = 240.0  # seconds on one H100: DESIGN 10
QUEUE = 6  # times over the files: the first batch, whose decoding nothing hides, must count little
Features = Callable[[Tensor], Tensor]


def build(bench: Bench, config: MethodConfig) -> Method:
    """A method with fresh weights on the device."""
    torch.manual_seed(0)
    tiny = EncoderConfig(name="resnet18", args={"layers": [1] * 4, "channels": [8, 8, 8, 16]})
    model = build_method(config, tiny if bench.small else EncoderConfig())
    return model.to(bench.device).to(memory_format=torch.channels_last)


def network(bench: Bench) -> str:
    return "tiny resnet18, fp32" if bench.small else f"resnet50, {'bf16' if bench.cuda else 'fp32'}"


def forward(bench: Bench, features: Features, batch: Tensor) -> Tensor:
    """The bare forward: what the attention pass cannot do without."""
    with torch.no_grad(), autocast(bench):
        return features(batch)


def boxes_of(bench: Bench, model: Method, features: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What the attention pass adds, its columns read back as build_box_table does."""
    weights, label, value = channel_weights(model.encoder, model.projector, features, "pseudo_label")
    boxes, found = attention_boxes(features, weights, size=side, impl=bench.impl)
    label.cpu(), value.cpu()
    return boxes.cpu(), found.cpu()


def attention_pass(bench: Bench, model: Method, features: Features, batch: Tensor) -> None:
    boxes_of(bench, model, forward(bench, features, batch), batch.shape[-1])


def grad_cam_by_autograd(bench: Bench, model: Method, batch: Tensor) -> None:
    """Grad-CAM as usually written: the whole network differentiated, then eager torch's boxes."""
    with autocast(bench):
        features = model.encoder.features(batch)
        features.retain_grad()
        z = model.projector(model.encoder.pool(features))
    z.max(1).values.sum().backward()
    assert features.grad is not None
    boxes_by_torch(features.detach(), features.grad.float().mean((2, 3))).cpu()
    model.zero_grad(set_to_none=True)


def grad_cam_by_package(model: Method, batch: Tensor) -> None:
    """pytorch-grad-cam as shipped, which is in float32 (it reads maps as NumPy arrays), boxes per image in NumPy."""
    from pytorch_grad_cam import GradCAM

    last_stage: Any = model.encoder.backbone.layer4
    with GradCAM(nn.Sequential(model.encoder, model.projector), [last_stage[-1]]) as cam:
        boxes_of_heatmaps(cam(batch, targets=None))
    model.zero_grad(set_to_none=True)


def time_attention(bench: Bench) -> Iterator[Row]:
    """The pass on resident batches, with the encoder eager and compiled."""
    batch, side = (4, 64) if bench.small else (256, 224)
    model = build(bench, SimCLRConfig()).eval()
    batches = [
        torch.randn(batch, 3, side, side, device=bench.device).contiguous(memory_format=torch.channels_last)
        for _ in range(2 if bench.small else 4)
    ]
    encoders: dict[str, Features] = {"eager": model.encoder.features}
    if bench.cuda:
        encoders["compiled"] = torch.compile(model.encoder.features)
    facts: dict[str, Any] = {"batch": batch, "side": side, "network": network(bench)}
    for kind, features in encoders.items():
        how = kind if bench.cuda else f"{kind} (no torch.compile on the CPU)"
        ways = {
            "pass": Way([partial(attention_pass, bench, model, features, x) for x in batches]),
            "forward": Way([partial(forward, bench, features, x) for x in batches]),
            "again": Way([partial(forward, bench, features, x) for x in batches]),
        }
        maps = [forward(bench, features, x) for x in batches]
        ways["beyond"] = Way([partial(boxes_of, bench, model, x, side) for x in maps])
        if kind == "eager":
            ways["autograd"] = Way([partial(grad_cam_by_autograd, bench, model, x) for x in batches[:1]])
        seconds = time_ways(bench, ways, repeats=15, warmup=3 if bench.cuda else 1)
        images: dict[str, Any] = {"images": batch, **facts, "clock": bench.clock(ways["pass"])}
        name, ours, bare = f"attention pass, {how}", seconds["pass"], seconds["forward"]
        yield compare(name, ours, bare, against="bare forward", target=0.97, **images)
        yield compare(f"noise: bare forward again, {how}", seconds["again"], bare, against="bare forward", **images)
        name = f"channel weights and boxes alone, {how}"
        yield compare(name, seconds["beyond"], bare, against="bare forward", **images)
        if "autograd" in seconds:
            name, other = f"attention pass, {how}", seconds["autograd"]
            yield compare(name, ours, other, against="autograd Grad-CAM, eager torch's boxes", **images)
        if kind == "eager" and find_spec("pytorch_grad_cam"):
            peer = Way([partial(grad_cam_by_package, model, batches[0])])
            slow = np.median(time_ways(bench, {"peer": peer}, repeats=5)["peer"])
            against = "pytorch-grad-cam in fp32 + NumPy boxes"
            yield compare(
                f"attention pass, {how}", ours, np.full_like(ours, slow), against=against, target=20.0, **images
            )


def time_training(bench: Bench) -> Iterator[Row]:
    """A step of SimCLR and of MoCo v2, windows and parameters drawn for it, beside the same step on ready views."""
    batch, height, width, side = (4, 40, 53, 32) if bench.small else (256, 375, 500, 224)
    images = bench.put(pictures(min(batch, 32), height, width)).repeat(-(-batch // 32), 1, 1, 1)
    sizes, index = np.tile([height, width], (batch, 1)), np.arange(batch)
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (batch, 1))
    on_device = bench.put(index)
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    epochs = iter(range(2**31))

    def augmentation() -> Tensor:
        epoch = next(epochs)
        keys: dict[str, Any] = {"seed": bench.seed, "epoch": epoch, "indices": index, "num_views": 2}
        windows = sample_windows(whole, sizes, **keys, scale=SCALE, ratio=RATIO)
        photometrics = sample_photometrics(MOCO_V2, bench.seed, epoch, index, 2)
        options: dict[str, Any] = {"channels_last": True, "dtype": dtype, "impl": bench.impl}
        windows_there, photometrics_there = torch.from_numpy(windows), torch.from_numpy(photometrics)
        return crop_augment(images, windows_there, photometrics_there, side, MEAN, STD, **options)

    configs: list[MethodConfig] = [SimCLRConfig(), MoCoV2Config(queue_size=64 if bench.small else 65536)]
    for config in configs:
        model = build(bench, config).train()
        optimizer = build_optimizer(OptimizerConfig(), model)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3

        def step(ready: Tensor | None, model: Method = model, optimizer: Optimizer = optimizer) -> None:
            views = augmentation() if ready is None else ready
            with autocast(bench):
                loss = model(views, on_device).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            model.after_step()

        rounds = 3 if bench.cuda else 1
        ways = {
            "step": Way([partial(step, None)], rounds),
            "ready": Way([partial(step, augmentation())], rounds),
            "augmentation": Way([augmentation], rounds),
        }
        if bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = time_ways(bench, ways, repeats=10)
        facts: dict[str, Any] = {"images": batch, "side": side, "network": network(bench), "impl": bench.impl}
        if bench.cuda:
            facts["peak_bytes"] = torch.cuda.max_memory_allocated()
        alone = float(np.median(seconds["augmentation"]))
        facts["augmentation_seconds"] = alone
        facts["augmentation_share"] = alone / float(np.median(seconds["step"]))
        facts["clock"] = bench.clock(ways["step"])
        name = f"training step, {config.name}, views by crop_augment"
        yield compare(name, seconds["step"], seconds["ready"], against="the step on ready views", **facts)
        del model, optimizer, step, ways


def jpegs_in_memory(bench: Bench) -> list[Tensor]:
    """JPEGs of ImageNet's size, of which 64 are different: no decoder remembers what it has seen."""
    files = cloud_jpegs(8, width=96, height=72) if bench.small else cloud_jpegs(64) * 8
    return [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]


def padded(bench: Bench, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Planar images of any size to a padded batch (B, Hmax, Wmax, 3) on the device, and whole windows (B, 1, 4).

    The upload is from page-locked memory and not waited for: it would wait for the forward that runs meanwhile.
    """
    sizes = np.array([image.shape[1:] for image in images])
    height, width = (int(side) for side in sizes.max(0))
    source = images[0].device
    locked = bench.cuda and source.type == "cpu"
    batch = torch.empty((len(images), height, width, 3), dtype=torch.uint8, device=source, pin_memory=locked)
    for target, image in zip(batch, images, strict=True):
        target[: image.shape[1], : image.shape[2]] = image.permute(1, 2, 0)
    windows = np.concatenate([np.zeros_like(sizes), sizes], 1)[:, None].astype(np.int32)
    return batch.to(bench.device, non_blocking=True), torch.from_numpy(windows)


def time_rebuild(bench: Bench) -> Iterator[Row]:
    """JPEGs in memory to boxes on the host: each stage alone, all of them with decoding a batch ahead, and ImageNet."""
    batch, side = (4, 64) if bench.small else (256, 224)
    jpegs = jpegs_in_memory(bench)
    batches = [jpegs[i : i + batch] for i in range(0, len(jpegs), batch)]
    queue = batches * QUEUE
    cores = len(os.sched_getaffinity(0))
    model = build(bench, SimCLRConfig()).eval()
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    facts: dict[str, Any] = {"batch": batch, "side": side, "network": network(bench), "impl": bench.impl}

    def whole(images: Tensor, windows: Tensor) -> Tensor:
        options: dict[str, Any] = {"channels_last": True, "dtype": dtype, "impl": bench.impl}
        return crop_augment(images, windows, None, side, MEAN, STD, **options)[:, 0]

    with ThreadPoolExecutor(cores) as threads, ThreadPoolExecutor(1) as ahead:
        one = partial(decode_jpeg, mode=ImageReadMode.RGB)

        def by_threads(files: list[Tensor]) -> tuple[Tensor, Tensor]:
            return padded(bench, list(threads.map(one, files)))

        def by_nvjpeg(files: list[Tensor]) -> tuple[Tensor, Tensor]:
            return padded(bench, decode_jpeg(files, mode=ImageReadMode.RGB, device="cuda"))

        decoders = {f"libjpeg-turbo, {cores} threads": by_threads}
        if bench.cuda:
            decoders["nvJPEG"] = by_nvjpeg
        stored = by_threads(batches[0])
        views = whole(*stored)
        features = forward(bench, model.encoder.features, views)
        stages = {
            "crop_resize and normalise": Way([partial(whole, *stored)], 4 if bench.cuda else 1),
            "forward": Way([partial(forward, bench, model.encoder.features, views)]),
            "weights and boxes": Way([partial(boxes_of, bench, model, features, side)]),
        }
        alone = time_ways(bench, stages, repeats=10)
        for decoder, decode in decoders.items():
            apart = float((decode(batches[0])[0].int() - stored[0].int()).abs().float().mean())
            if not apart < 2.0:  # levels; decoders differ in the chroma's upsampling
                raise ValueError(f"{decoder} decodes {apart:.2f} levels away from libjpeg-turbo in the mean")

            def rebuild(decode: Callable[[list[Tensor]], tuple[Tensor, Tensor]] = decode) -> None:
                following = ahead.submit(decode, queue[0])
                for i in range(len(queue)):
                    images = following.result()
                    if i + 1 < len(queue):
                        following = ahead.submit(decode, queue[i + 1])
                    attention_pass(bench, model, model.encoder.features, whole(*images))

            ways = {"rebuild": Way([rebuild]), "decode": Way([partial(decode, files) for files in batches])}
            seconds = time_ways(bench, ways, repeats=8)
            per_image = {name: values / batch for name, values in alone.items()}
            per_image["decode and upload"] = seconds["decode"] * len(batches) / len(jpegs)
            rates = {name: 1.0 / float(np.median(values)) for name, values in per_image.items()}
            bottleneck = min(rates, key=lambda name: rates[name])
            ours: Seconds = seconds["rebuild"] / (QUEUE * len(jpegs))
            found: dict[str, Any] = {**facts, "decoder": decoder, "stages_images_per_second": rates}
            found |= {
                "bottleneck": bottleneck,
                "mean_levels_from_libjpeg": apart,
                "clock": bench.clock(ways["rebuild"]),
            }
            floor = np.full_like(ours, 1.0 / rates[bottleneck])
            name = f"rebuild, {decoder}"
            yield compare(name, ours, floor, against=f"{bottleneck} alone", images=1, **found)
            limit = np.full_like(ours, REBUILD)
            against = f"4 minutes on one H100; bottleneck: {bottleneck}"
            name = f"rebuild of {IMAGENET:,} images, {decoder}, predicted"
            yield compare(name, ours * IMAGENET, limit, against=against, target=1.0, **found)
