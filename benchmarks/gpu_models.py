"""The attention pass and training steps: ResNet-50 at 224 in bfloat16, channels_last.

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

from benchmarks.gpu_inputs import draws, finished_views, photographs
from benchmarks.gpu_kernels import boxes_by_torch
from benchmarks.gpu_timing import Bench, Way, autocast, time_ways
from benchmarks.kernel_peers import boxes_of_heatmaps
from saga_fast.attention.channel_weights import channel_weights
from saga_fast.kernels import attention_boxes
from saga_fast.methods import Method, MethodConfig, build_method
from saga_fast.methods.mocov2 import MoCoV2Config
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.encoder import EncoderConfig
from saga_fast.optim import OptimizerConfig, build_optimizer
from saga_fast.profile.figures import Row, Seconds, compare

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
    """The work that the attention pass adds, with its columns copied to the host as in build_box_table."""
    weights, label, value = channel_weights(model.encoder, model.projector, features, "pseudo_label")
    boxes, found = attention_boxes(features, weights, size=side, impl=bench.impl)
    label.cpu(), value.cpu()
    return boxes.cpu(), found.cpu()


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


def time_attention(bench: Bench) -> Iterator[Row]:
    """The pass on batches in the device's memory, with the encoder eager and compiled."""
    batch, side = (4, 64) if bench.small else (256, 224)
    model = build(bench, SimCLRConfig()).eval()
    batches = [
        torch.randn(batch, 3, side, side, device=bench.device).contiguous(memory_format=torch.channels_last)
        for _ in range(2 if bench.small else 4)
    ]
    encoders: dict[str, Features] = {"eager": model.encoder.features}
    if bench.cuda:
        encoders["compiled"] = torch.compile(model.encoder.features)
    facts: Row = {"batch": batch, "side": side, "network": network(bench)}
    for kind, features in encoders.items():
        for row in _time_encoder(bench, model, kind, features, batches):
            yield row | facts


def _time_encoder(bench: Bench, model: Method, kind: str, features: Features, batches: list[Tensor]) -> Iterator[Row]:
    """The rows of the eager or the compiled encoder."""
    images, side = len(batches[0]), batches[0].shape[-1]
    maps = [bare_forward(bench, features, x) for x in batches]
    ways = {
        "pass": Way([partial(attention_pass, bench, model, features, x) for x in batches]),
        "forward": Way([partial(bare_forward, bench, features, x) for x in batches]),
        "again": Way([partial(bare_forward, bench, features, x) for x in batches]),
        "beyond": Way([partial(boxes_of, bench, model, x, side) for x in maps]),
    }
    if kind == "eager":
        ways["autograd"] = Way([partial(grad_cam_by_autograd, bench, model, x) for x in batches[:1]])
    seconds = time_ways(bench, ways, repeats=15, warmup=3 if bench.cuda else 1)
    how = kind if bench.cuda else f"{kind} (no torch.compile on the CPU)"
    name, ours, bare = f"attention pass, {how}", seconds["pass"], seconds["forward"]
    rows = [
        compare(name, ours, bare, against="bare forward", images=images, target=0.97),
        compare(f"noise: bare forward again, {how}", seconds["again"], bare, against="bare forward", images=images),
        compare(
            f"channel weights and boxes alone, {how}", seconds["beyond"], bare, against="bare forward", images=images
        ),
    ]
    if kind == "eager":
        against = "autograd Grad-CAM, eager torch's boxes"
        rows.append(compare(name, ours, seconds["autograd"], against=against, images=images))
    if kind == "eager" and find_spec("pytorch_grad_cam"):
        peer = Way([partial(grad_cam_by_package, model, batches[0])])
        slow = np.full_like(ours, np.median(time_ways(bench, {"peer": peer}, repeats=5)["peer"]))
        against = "pytorch-grad-cam in fp32 + NumPy boxes"
        rows.append(compare(name, ours, slow, against=against, images=images, target=20.0))
    for row in rows:
        yield row | {"clock": bench.clock(ways["pass"])}


def time_training(bench: Bench) -> Iterator[Row]:
    """A step of SimCLR and of MoCo v2, draws included, against the same step on finished views."""
    stock = photographs(bench)
    dtype = torch.bfloat16 if bench.cuda else torch.float32
    epochs = iter(range(2**31))

    def augmentation() -> Tensor:
        windows, photometrics = draws(bench, stock.sizes, next(epochs))
        return finished_views(bench, stock.images, windows, photometrics, stock.side, dtype)

    configs: list[MethodConfig] = [SimCLRConfig(), MoCoV2Config(queue_size=64 if bench.small else 65536)]
    facts: Row = {"side": stock.side, "network": network(bench), "impl": bench.impl}
    for config in configs:
        yield _time_steps(bench, config, augmentation, images=len(stock.sizes)) | facts


def _time_steps(bench: Bench, config: MethodConfig, augmentation: Callable[[], Tensor], *, images: int) -> Row:
    """The row of one method; ``augmentation`` gives new views for each step."""
    model, index = build(bench, config).train(), bench.put(np.arange(images))
    optimizer = build_optimizer(OptimizerConfig(), model)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3

    def step(ready: Tensor | None) -> None:
        views = augmentation() if ready is None else ready
        with autocast(bench):
            loss = model(views, index).loss
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
    seconds: dict[str, Seconds] = time_ways(bench, ways, repeats=10)
    facts: Row = {"peak_bytes": torch.cuda.max_memory_allocated()} if bench.cuda else {}
    alone = float(np.median(seconds["augmentation"]))
    facts |= {"augmentation_seconds": alone, "augmentation_share": alone / float(np.median(seconds["step"]))}
    name, against = f"training step, {config.name}, views by crop_resize and augment", "the step on ready views"
    row = compare(name, seconds["step"], seconds["ready"], against=against, images=images)
    return row | facts | {"clock": bench.clock(ways["step"])}
