"""The online probe of two processes is that of one process with the whole batch, to rounding, and equal on both."""

from typing import Any

import pytest
import torch
from processes import run
from torch import Tensor, nn

from saga_fast.evaluate.online_probe import OnlineProbe
from saga_fast.methods import METHODS, build_method
from saga_fast.models.encoder import EncoderConfig
from saga_fast.models.sync_batchnorm import synchronise_batchnorm
from saga_fast.runtime.distributed import data_parallel, local_rows

ENCODER = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
CASES: dict[str, dict[str, Any]] = {"simclr": {}, "cmc": {"negatives": 32}, "moco": {"queue_size": 24}}
CPU = torch.device("cpu")


def probes() -> dict[str, tuple[dict[str, Tensor], float | None]]:
    """The classifier after three batches of 12, and its accuracy on them, of each case."""
    found = {}
    for name, fields in CASES.items():
        torch.manual_seed(0)
        model = build_method(METHODS[name].Config(name=name, **fields), ENCODER, num_images=40).train()
        synchronise_batchnorm(model, CPU)
        network: nn.Module = data_parallel(model, CPU)
        probe = OnlineProbe(model, 5)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            views = torch.rand(12, model.num_views, 3, 16, 16, generator=generator)
            index, labels = torch.randperm(40, generator=generator)[:12], torch.randint(5, (12,), generator=generator)
            with probe.recording(local_rows(labels)):
                output = network(local_rows(views), local_rows(index))
            output.loss.backward()
            probe.step()
        found[name] = probe.state()["classifier"], probe.finish_epoch()
    return found


def test_two_processes_learn_as_one() -> None:
    (alone,) = run(1, probes)
    first, second = run(2, probes)
    for name, (classifier, top1) in alone.items():
        for key, tensor in classifier.items():
            assert torch.equal(first[name][0][key], second[name][0][key])
            torch.testing.assert_close(first[name][0][key], tensor, rtol=1e-3, atol=1e-5)
        assert first[name][1] == second[name][1] == pytest.approx(top1)
