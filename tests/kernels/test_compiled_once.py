"""A kernel is bit-identical in the process that compiles it and in those that load it from the cache."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
import numpy as np
import torch
from safetensors.numpy import save_file
from saga_fast import kernels

torch.manual_seed(0)
rng, index = np.random.default_rng(0), np.arange(24)
jitter = {"flip": 0.5, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "jitter": 0.8}
recipe = kernels.PhotometricRecipe(**jitter, grayscale=0.2, blur=0.5, blur_kernel=5, solarize=0.2)
photometrics = kernels.sample_photometrics(recipe, 0, 0, index, 2, impl="numba")
boxes, sizes = np.tile(np.float32([0.1, 0.1, 0.7, 0.7]), (24, 1)), np.tile(np.int64([40, 50]), (24, 1))
drawn = {"seed": 0, "epoch": 0, "indices": index, "num_views": 2, "scale": (0.2, 1.0), "ratio": (0.75, 1.33)}
windows = kernels.sample_windows(boxes, sizes, **drawn, impl="numba")
views = kernels.crop_resize(rng.integers(0, 256, (24, 40, 50, 3), np.uint8), windows, 16, impl="numba")
results = {"photometrics": photometrics, "windows": windows, "views": views}
for last in (False, True):
    arguments = torch.from_numpy(views), photometrics, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    results[f"augment {last}"] = kernels.augment(*arguments, channels_last=last, impl="numba").numpy()
features, weights = torch.rand(24, 24, 5, 7), torch.randn(24, 24)
for name, memory_format in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
    boxes, found = kernels.attention_boxes(features.to(memory_format=memory_format), weights, impl="numba")
    results |= {f"boxes {name}": boxes.numpy(), f"found {name}": found.numpy()}
query = torch.randn(8, 33, requires_grad=True)
logits = kernels.bank_logits(query, torch.randn(90, 33), torch.randint(0, 90, (8, 20)), impl="numba")
logits.square().sum().backward()
results |= {"bank logits": logits.detach().numpy(), "bank gradient": query.grad.numpy()}
save_file({name: np.ascontiguousarray(value) for name, value in results.items()}, sys.argv[1])
"""


def test_compiled_and_loaded_kernels_agree(tmp_path: Path) -> None:
    """A resumed run loads compiled kernels and must equal the uninterrupted run that compiled them."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    for name in ("compiled", "loaded"):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / name)]
        completed = subprocess.run(command, env=environment, capture_output=True, timeout=300)
        assert completed.returncode == 0, completed.stderr.decode()
    assert list((tmp_path / "cache").rglob("*.nbc"))
    assert (tmp_path / "compiled").read_bytes() == (tmp_path / "loaded").read_bytes()
