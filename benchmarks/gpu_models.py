"""The attention pass by hand: ResNet-50 at 224 in bfloat16, channels_last.

On the CPU a tiny ResNet in float32 replaces it, and torch.compile is left out; the rows' names say so. Networks are
untrained, which does not change the cost of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_kernels import boxes_by_torch
from benchmarks.gpu_timing import Bench, Way, autocast, time_ways
from benchmarks.kernel_peers import boxes_of_heatmaps
from saga_fast.attention.channel_weights import channel_weights
from saga_fast.kernels import attention_boxes
from saga_fast.methods import Method, MethodConfig, build_method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.profile.figures import Row, compare

Features = Callable[[Tensor], Tensor]


def build(bench: Bench, config: MethodConfig) -> Method:
    """A method with fresh weights on the device."""
    torch.manual_seed(0)
    tiny = EncoderConfig(name="resnet18", args={"layers": [1] * 4, "channels": [8, 8, 8, 16]})
    model = build_method(config, tiny if bench.small else EncoderConfig())
    return model.to(bench.device).to(memory_format=torch.channels_last)


def network(bench: Bench) -> str:
    """The name of the network and its number format."""
    return "tiny resnet18, fp32" if bench.small else f"resnet50, {'bf16' if bench.cuda else 'fp32'}"


def bare_forward(bench: Bench, features: Features, batch: Tensor) -> Tensor:
    """The bare forward pass: the floor of the attention pass."""
    with torch.no_grad(), autocast(bench):
        return features(batch)


def boxes_of(bench: Bench, model: Method, features: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The work that the attention pass adds. Its columns stay on the device, as in build_box_table."""
    weights, _, _ = channel_weights(model.encoder, model.projector, features, "pseudo_label")
    return attention_boxes(features, weights, size=side, impl=bench.impl)


def attention_pass(bench: Bench, model: Method, features: Features, batch: Tensor) -> None:
    """The forward pass and the boxes of one batch."""
    boxes_of(bench, model, bare_forward(bench, features, batch), batch.shape[-1])


def grad_cam_by_autograd(bench: Bench, model: Method, batch: Tensor) -> None:
    """Grad-CAM as it is usually written: the whole network differentiated, then boxes by eager torch."""
    with autocast(bench):
        features = model.encoder.features(batch)
        features.retain_grad()
        z = model.projector(model.encoder.pool(features))
    z.max(1).values.sum().backward()
    assert features.grad is not None
    boxes_by_torch(features.detach(), features.grad.float().mean((2, 3))).cpu()
    model.zero_grad(set_to_none=True)


def grad_cam_by_package(model: Method, batch: Tensor) -> None:
    """pytorch-grad-cam as shipped, in float32 (it reads maps as NumPy arrays), and boxes per image in NumPy."""
    from pytorch_grad_cam import GradCAM

    last_stage: Any = model.encoder.backbone.layer4
    with GradCAM(nn.Sequential(model.encoder, model.projector), [last_stage[-1]]) as cam:
        boxes_of_heatmaps(cam(batch, targets=None))
    model.zero_grad(set_to_none=True)


def resize_of_peer() -> str:
    """What replaces OpenCV's resize in pytorch-grad-cam, where OpenCV is missing; else nothing."""
    import cv2

    return "" if hasattr(cv2, "imread") else ", resized by torch in place of OpenCV"


def time_attention(bench: Bench) -> Iterator[Row]:
    """The pass on batches in the device's memory, next to other ways to compute Grad-CAM boxes; eager, like them."""
    images, side = (4, 64) if bench.small else (256, 224)
    model = build(bench, SimCLRConfig()).eval()
    batches = [
        torch.randn(images, 3, side, side, device=bench.device).contiguous(memory_format=torch.channels_last)
        for _ in range(2 if bench.small else 4)
    ]
    features = model.encoder.features
    maps = [bare_forward(bench, features, x) for x in batches]
    ways = {
        "pass": Way([partial(attention_pass, bench, model, features, x) for x in batches]),
        "forward": Way([partial(bare_forward, bench, features, x) for x in batches]),
        "again": Way([partial(bare_forward, bench, features, x) for x in batches]),
        "beyond": Way([partial(boxes_of, bench, model, x, side) for x in maps]),
    }
    peers = not bench.dry  # they have no kernels to compile, and take 25 GB
    if peers:
        ways["autograd"] = Way([partial(grad_cam_by_autograd, bench, model, x) for x in batches[:1]])
    seconds = time_ways(bench, ways, repeats=15, warmup=3 if bench.cuda else 1)
    ours, bare = seconds["pass"], seconds["forward"]
    compared = partial(compare, images=images)
    rows = [
        compared("attention pass", ours, bare, against="bare forward", target=0.97),
        compared("noise: bare forward again", seconds["again"], bare, against="bare forward"),
        compared("channel weights and boxes alone", seconds["beyond"], bare, against="bare forward"),
    ]
    if peers:
        against = "autograd Grad-CAM, eager torch's boxes"
        rows.append(compared("attention pass", ours, seconds["autograd"], against=against))
    if peers and find_spec("pytorch_grad_cam"):
        peer = Way([partial(grad_cam_by_package, model, batches[0])])
        slow = np.full_like(ours, np.median(time_ways(bench, {"peer": peer}, repeats=5)["peer"]))
        against = "pytorch-grad-cam in fp32 + NumPy boxes" + resize_of_peer()
        rows.append(compared("attention pass", ours, slow, against=against, target=20.0))
    facts: Row = {"batch": images, "side": side, "network": network(bench), "clock": bench.clock(ways["pass"])}
    for row in rows:
        yield row | facts
