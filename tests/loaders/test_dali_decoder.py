"""Where the DALI engine can work and where it cannot, and that it says so."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nvidia.dali.pipeline import Pipeline

from saga_fast.errors import SagaError
from saga_fast.loaders import Loader, LoaderOptions, WholePlan, open_loader
from saga_fast.loaders.dali.decoder import Decoder

OPTIONS = LoaderOptions(threads=2)


def open_source(images: Path, options: LoaderOptions = OPTIONS) -> Loader:
    return open_loader("dali", images / "train", WholePlan(size=8), options, batch_size=4)


@pytest.mark.parametrize("decode_on_gpu", [False, True])
def test_the_gpus_graph_is_one_that_dali_accepts(monkeypatch: pytest.MonkeyPatch, decode_on_gpu: bool) -> None:
    """As far as that can be told without a GPU: the graph is made and its arguments are checked, nothing runs."""
    monkeypatch.setattr(Pipeline, "build", Pipeline._build_graph)
    decoder = Decoder(batch_size=4, threads=1, depth=2, gpu=torch.device("cuda", 0), decode_on_gpu=decode_on_gpu)
    assert [output.device for output in decoder._pipeline._graph_outputs] == ["gpu"]


def test_places_that_do_not_go_together_are_refused(images: Path) -> None:
    with pytest.raises(SagaError, match="crop must be auto or gpu, got 'cpu'"):
        open_source(images, LoaderOptions(device="cuda", decode="gpu", crop="cpu"))
    for options in (LoaderOptions(decode="gpu"), LoaderOptions(crop="gpu")):
        with pytest.raises(SagaError, match="needs a GPU"):
            open_source(images, options)
    assert (open_source(images).options.decode, open_source(images).options.crop) == ("cpu", "cpu")


def test_without_dali_the_error_says_how_to_install_it(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(SagaError, match=r"engine dali needs nvidia\.dali.*pip install 'saga-fast\[dali\]'"):
        open_source(images)


def test_python_exits_quietly_in_the_middle_of_an_epoch(images: Path) -> None:
    script = (
        "import sys; from saga_fast.loaders import LoaderOptions, WholePlan, open_loader\n"
        "options = LoaderOptions(batch_size=4, threads=2)\n"
        "batches = iter(open_loader('dali', sys.argv[1], WholePlan(size=8), options)); next(batches)"
    )
    run = subprocess.run([sys.executable, "-c", script, images / "train"], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
