"""The attention pass of a vision transformer and of a ConvNeXt, compared with the network's own forward pass.

The ways visit the same files with the same folder engine, batch size and network, and take turns:

- *forward*: engine, normalisation, and timm's own forward pass up to h, in eval mode without gradient;
- *attention pass*: :func:`saga_fast.attention.build_box_table`, for each score that the network has.

Both run in eager mode, in fp32 and in bf16; the *compiled* pass, without the compiling, is compared with the eager
forward pass too. The forward pass is timed twice: the difference is the machine's noise. What a score adds to the pass
is a matter of floating-point operations, and column ``flops`` has those of both ways: a vision transformer that pools
its class token needs of its last block the keys and values of all tokens and the remainder for the class token, so the
pass may be faster than the forward pass. The networks are untrained, which does not change the cost.

Run it as ``PYTHONPATH=. python benchmarks/bench_tokens.py --out FILE`` on an otherwise idle machine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.images import make_images
from benchmarks.networks import CPU, whole_images
from benchmarks.scaffold import Pair, add_data, add_threads, benchmark_parser, compare_pairs, record, use_cores
from saga_fast.attention import AttentionPass, build_box_table
from saga_fast.attention.channel_weights import Score
from saga_fast.attention.heatmap import attention_maps
from saga_fast.loaders import ImageFolder, Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.methods import Method, build_method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.compiled_features import compiled_features
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.precision import Precision, autocast
from saga_fast.models.transformer import is_transformer
from saga_fast.profile.figures import Row, Ways, time_pairs

TARGET = 0.9
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def forward(model: Method, loader: Loader, options: AttentionPass) -> None:
    """The network's own forward pass over the images, up to h."""
    with torch.no_grad(), autocast(CPU, options.precision):
        for _, images in whole_images(model, loader, options):
            model.encoder(images)


def flops_of_pass(model: Method, size: int, score: Score | None) -> int:
    """Floating-point operations of one image's pass up to the map, or of its forward pass."""
    image = torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        if score is None:
            with torch.no_grad():
                model.encoder(image)
        else:
            attention_maps(model, image, AttentionPass(score=score))
    return int(counter.get_total_flops())


def time_network(encoder: str, loader: Loader, *, threads: int, repeats: int) -> Iterator[Row]:
    """The rows of one network, in one number format after the other."""
    size, channels_last = loader.plan.size, not is_transformer(encoder)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model = build_method(SimCLRConfig(), EncoderConfig(name=encoder)).eval().to(memory_format=layout)
    scores: list[Score] = ["pseudo_label", "activation", "background"]
    if model.encoder.has_class_attention:
        scores.append("token")
    # torch's counter cannot follow a gradient to a leaf, which A of a network without tokens is.
    counted = [score for score in scores if score != "pseudo_label" or model.encoder.is_transformer]
    flops = {score: flops_of_pass(model, size, score) for score in counted}
    whole = flops_of_pass(model, size, None)
    for precision in PRECISIONS:
        options = AttentionPass(size=size, channels_last=channels_last, precision=precision, forward="eager")
        bare = partial(forward, model, loader, options)
        ways: Ways = {
            "forward": bare,
            **{score: partial(build_box_table, model, loader, replace(options, score=score)) for score in scores},
            "forward again": bare,
        }
        pairs = [Pair(f"attention pass, {score}", score, "forward", "forward pass", TARGET) for score in scores]
        pairs.append(Pair("noise: forward pass, again", "forward again", "forward", "forward pass"))
        pairs.append(Pair("compiled attention pass, pseudo_label", "compiled", "forward", "forward pass"))
        fast = copy.deepcopy(model)
        with compiled_features([fast.encoder], batch_size=loader.global_batch_size, precision=precision):
            ways = {**ways, "compiled": partial(build_box_table, fast, loader, options)}
            seconds = time_pairs(ways, repeats=repeats)
        facts: Row = {"encoder": encoder, "size": size, "precision": precision, "batch": loader.global_batch_size}
        facts |= {"threads": threads, "rounds": repeats, "layout": "channels_last" if channels_last else "contiguous"}
        named = [pair._replace(name=f"{pair.name}, {encoder} at {size}, {precision}") for pair in pairs]
        compared = compare_pairs(seconds, named, images=len(loader.source), facts=facts)
        for pair, row in zip(pairs, compared, strict=True):
            yield row | ({"flops": flops[pair.way], "flops_forward": whole} if pair.way in flops else {})


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--encoder", nargs="+", default=["vit_small_patch16_224", "convnext_tiny"])
    parser.add_argument("--size", type=int, default=224, help="input side")
    parser.add_argument("--images", type=int, default=64, help="whole batches: another is not compiled")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the passes")
    add_threads(parser, default=2)
    add_data(parser)
    options = parser.parse_args()
    use_cores(options.threads)
    # Stored images are to the input as ImageNet's are to 224, so that decoding has the same weight.
    width, height = round(options.size * 500 / 224), round(options.size * 375 / 224)
    root = make_images(options.data, options.images, width=width, height=height)
    how = LoaderOptions(threads=options.threads, batch_size=options.batch_size)
    loader = open_loader("folder", ImageFolder(root), WholePlan(size=options.size), how)
    shared = {"threads": options.threads, "repeats": options.repeats}
    record(options.out, chain.from_iterable(time_network(name, loader, **shared) for name in options.encoder))


if __name__ == "__main__":
    main()
