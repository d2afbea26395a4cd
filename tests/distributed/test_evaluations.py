"""Evaluations in several processes: kNN and pairs equal one process's exactly, the linear probe to rounding."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from processes import run
from torch import Tensor

from saga_fast import load_model
from saga_fast.cli import parse
from saga_fast.errors import SagaError
from saga_fast.evaluate import linear
from saga_fast.evaluate.features import FrozenModel, extract_features
from saga_fast.evaluate.knn import knn_accuracy
from saga_fast.evaluate.linear import Accuracy, ProbeLoaders, linear_probe
from saga_fast.evaluate.pairs import pair_similarities
from saga_fast.evaluate.protocols import choose_protocol
from saga_fast.kernels import PhotometricRecipe
from saga_fast.loaders import BadImages, CentrePlan, CropPlan, ImageFolder, LoaderOptions, WholePlan, open_loader
from saga_fast.runtime import distributed

BATCH = 12
"""Of 43 training images: the last batch has 7, in parts of 6 and 1, or 4, 3 and 0; of 42, without the bad one, 6."""


class Killed(BaseException):
    """As kill -9 ends a process: nothing catches it."""


@pytest.fixture(scope="module")
def six(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train (43 images) and val (13) of 6 classes, in each an image that cannot be decoded."""
    root = tmp_path_factory.mktemp("six")
    for split, count, seed in (("train", 7, 0), ("val", 2, 1)):
        make_images(root / split, classes=tuple("abcdef"), per_class=count, seed=seed)
        shutil.copy(root / split / "a" / "000.jpg", root / split / "f" / "007.jpg")
        (root / split / "c" / "001.jpg").write_bytes(b"broken")
    return root


# ---------------------------------------------------------------- the linear probe

Result = tuple[list[Accuracy], list[int], list[int]]


def probe_of(ckpt: str, root: str, out: str, cached: bool, epochs: int | None = None) -> Result | None:
    """The tests of each epoch and the bad images of train and val; None if killed after so many epochs."""
    train, val = ImageFolder(Path(root) / "train"), ImageFolder(Path(root) / "val")
    bad, val_bad = (BadImages(source, max_fraction=0.5) for source in (train, val))
    crops, centre = CropPlan(size=16, seed=0, num_views=1), CentrePlan(size=16)
    options = LoaderOptions(
        batch_size=BATCH, threads=1, shuffle=True, rank=distributed.rank(), world_size=distributed.world_size()
    )
    whole = LoaderOptions(batch_size=4, threads=1)
    loaders = ProbeLoaders(
        train=open_loader("folder", train, crops, options, bad=bad),
        val=open_loader("folder", val, centre, whole, bad=val_bad),
        cached=open_loader("folder", train, centre, whole, bad=bad) if cached else None,
    )
    protocol = choose_protocol("lightly", epochs=4, batch_size=BATCH, lr=1.0)
    real, calls = linear._train_epoch, 0

    def dying(*arguments: Any) -> float:
        nonlocal calls
        if calls == epochs:
            raise Killed
        calls += 1
        return real(*arguments)

    setattr(linear, "_train_epoch", dying)  # noqa: B010 - mypy
    try:
        history = linear_probe(FrozenModel(model=load_model(Path(ckpt))), loaders, protocol, every=1, out=Path(out))
    except Killed:
        return None
    finally:
        linear._train_epoch = real
    return history, bad.indices.tolist(), val_bad.indices.tolist()


def assert_same_probe(result: Result | None, out: Path, expected: Result, reference: Path) -> None:
    """Equal accuracies and lists; losses and weights alike to float32's rounding, which 16 steps add up to 5e-7."""
    assert result is not None
    for test, other in zip(result[0], expected[0], strict=True):
        assert (test.epoch, test.top1, test.top5, test.images) == (other.epoch, other.top1, other.top5, other.images)
        assert test.loss == pytest.approx(other.loss, rel=1e-5)
    assert result[1:] == expected[1:]
    state, other_state = (torch.load(folder / "probe.pt", weights_only=True) for folder in (out, reference))
    assert state["bad"] == other_state["bad"]
    for name, tensor in other_state["classifier"].items():
        torch.testing.assert_close(state["classifier"][name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def alone(ckpt: Path, six: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Result, Path]]:
    """The probes of one process, cached and not, and their folders."""
    results = {}
    for cached in (False, True):
        out = tmp_path_factory.mktemp("alone")
        (result,) = run(1, probe_of, str(ckpt), str(six), str(out), cached)
        assert [test.images for test in result[0]] == [12] * 4
        assert len({test.top1 for test in result[0]}) > 1
        assert (len(result[1]), len(result[2])) == (1, 1)
        results[cached] = result, out
    return results


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_probe_is_that_of_one_process(
    ckpt: Path, six: Path, tmp_path: Path, alone: dict[bool, tuple[Result, Path]], cached: bool, world_size: int
) -> None:
    for result in run(world_size, probe_of, str(ckpt), str(six), str(tmp_path), cached):
        assert_same_probe(result, tmp_path, *alone[cached])
    assert [path.name for path in tmp_path.iterdir()] == ["probe.pt"]


@pytest.mark.parametrize("cached", [False, True])
def test_killed_probe_is_resumed_with_another_number_of_processes(
    ckpt: Path, six: Path, tmp_path: Path, alone: dict[bool, tuple[Result, Path]], cached: bool
) -> None:
    """Two processes do one epoch, one does the second, and three or one do the remaining two."""
    out, copy = tmp_path / "out", tmp_path / "copy"
    for world_size, epoch in ((2, 1), (1, 2)):
        assert run(world_size, probe_of, str(ckpt), str(six), str(out), cached, 1) == [None] * world_size
        assert torch.load(out / "probe.pt", weights_only=True)["epoch"] == epoch
    shutil.copytree(out, copy)
    for result in run(3, probe_of, str(ckpt), str(six), str(out), cached):
        assert_same_probe(result, out, *alone[cached])
    (result,) = run(1, probe_of, str(ckpt), str(six), str(copy), cached)
    assert_same_probe(result, copy, *alone[cached])


def probe_on_a_full_disk(ckpt: str, root: str, out: str) -> None:
    if distributed.rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    probe_of(ckpt, root, out, False)


def test_full_disk_of_rank_0_ends_all(ckpt: Path, six: Path, tmp_path: Path) -> None:
    """No process waits for half an hour: ``run`` has the results of both before it looks at them."""
    with pytest.raises(AssertionError, match=r"rank 0:[\s\S]*File too large"):
        run(2, probe_on_a_full_disk, str(ckpt), str(six), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("batch_size", "world_size"), [(BATCH, 2), (8, 1)])
def test_loader_of_another_probe_is_refused(ckpt: Path, six: Path, batch_size: int, world_size: int) -> None:
    options = LoaderOptions(batch_size=batch_size, threads=1, shuffle=True, world_size=world_size)
    train = open_loader("folder", six / "train", CropPlan(size=16, seed=0, num_views=1), options)
    loaders = ProbeLoaders(train=train, val=open_loader("folder", six / "val", CentrePlan(size=16)))
    with pytest.raises(ValueError, match=f"batch_size 12 and world_size 1, got {batch_size} and {world_size}"):
        linear_probe(FrozenModel(model=load_model(ckpt)), loaders, choose_protocol("moco", batch_size=BATCH))


# ---------------------------------------------------------------- pairs and kNN


def similarities_of(ckpt: str, root: str, images: int | None) -> tuple[Tensor, list[int]]:
    source = ImageFolder(Path(root) / "train")
    bad = BadImages(source, max_fraction=0.5)
    options = LoaderOptions(batch_size=4, threads=1, shuffle=True, seed=5)
    loader = open_loader("folder", source, CropPlan(size=16, seed=0), options, bad=bad)
    frozen = FrozenModel(model=load_model(Path(ckpt)))
    recipe = PhotometricRecipe(flip=0.5, brightness=0.4, jitter=0.8)
    return pair_similarities(frozen, loader, recipe, images=images, seed=3), bad.indices.tolist()


@pytest.mark.parametrize("count", [None, 10, 3])
def test_pairs_are_those_of_one_process(ckpt: Path, six: Path, count: int | None) -> None:
    """All 43 images, 10 (which are in three batches) and 3 (in one, so that other processes have none)."""
    ((expected, bad),) = run(1, similarities_of, str(ckpt), str(six), count)
    assert len(expected) == (count or 43)
    twice = count is None  # the bad image's substitute, which has a place of its own, too
    assert len(expected) - len(expected.unique()) == twice
    for world_size in (2, 3):
        for similarities, local_bad in run(world_size, similarities_of, str(ckpt), str(six), count):
            assert torch.equal(similarities, expected)
            assert local_bad == bad


def accuracies_of(chunk: int, leave_one_out: bool) -> list[dict[int, float]]:
    """kNN's accuracies of 50 images, and of 45 further ones."""
    generator = torch.Generator().manual_seed(0)
    labels, other_labels = (torch.randint(0, 4, (count,), generator=generator) for count in (50, 45))
    bank, queries = (
        F.normalize(torch.eye(4, 6)[each] + torch.randn(len(each), 6, generator=generator), dim=1)
        for each in (labels, other_labels)
    )
    if leave_one_out:
        queries, other_labels = bank, labels
    options: dict[str, Any] = {"ks": (1, 3, 8), "leave_one_out": leave_one_out, "chunk": chunk}
    return [knn_accuracy(bank, labels, queries, other_labels, temperature=t, **options) for t in (0.07, 0.5)]


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("chunk", [7, 30, 64])
def test_knn_is_that_of_one_process(chunk: int, leave_one_out: bool) -> None:
    """In several chunks per process, in two, and in one, so that the remaining processes have none."""
    (expected,) = run(1, accuracies_of, chunk, leave_one_out)
    assert all(0.2 < accuracy < 1.0 for accuracies in expected for accuracy in accuracies.values())
    assert len({accuracy for accuracies in expected for accuracy in accuracies.values()}) > 3
    assert run(3, accuracies_of, chunk, leave_one_out) == [expected] * 3


def error_of(ckpt: str, root: str) -> str:
    source = ImageFolder(root)
    bad = BadImages(source, max_fraction=0.12)
    loader = open_loader("folder", source, WholePlan(size=16), LoaderOptions(batch_size=8, threads=1), bad=bad)
    try:
        extract_features(FrozenModel(model=load_model(Path(ckpt))), loader)
    except SagaError as error:
        return str(error)
    return ""


def test_too_many_bad_images_together(ckpt: Path, images: Path, tmp_path: Path) -> None:
    """Of 41 images 4 may be bad, and of 6 each process finds 3."""
    shutil.copytree(images / "train", tmp_path / "train")
    for number in (0, 1, 2, 8, 9, 10):  # in the first batch and in the second
        (tmp_path / "train" / ImageFolder(tmp_path / "train").paths[number]).write_bytes(b"broken")
    for world_size in (1, 2):
        for error in run(world_size, error_of, str(ckpt), str(tmp_path / "train")):
            assert error.startswith("5 of 41 images in ")


def refusal_of(command: str, ckpts: list[str], folders: list[str]) -> str:
    arguments = ["--ckpt", ckpts[distributed.rank()], "--data", folders[distributed.rank()]]
    options = parse(["eval", command, *arguments])
    try:
        options.run(options)
    except SagaError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("command", ["knn", "linear", "pairs"])
def test_processes_that_read_other_files_are_refused(ckpt: Path, images: Path, tmp_path: Path, command: str) -> None:
    """Another checkpoint, and images of which one is missing."""
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "train" / "cat" / "003.jpg").unlink()
    content = torch.load(ckpt, weights_only=True)
    torch.save({**content, "epoch": 4}, tmp_path / "other.pt")
    folders = [str(root / "train" if command == "pairs" else root) for root in (images, tmp_path / "images")]
    for number, error in enumerate(run(2, refusal_of, command, [str(ckpt)] * 2, folders)):
        assert error.startswith("the data set is 41-"), number
        assert "for rank 0, 40-" in error
    for error in run(2, refusal_of, command, [str(ckpt), str(tmp_path / "other.pt")], folders[:1] * 2):
        assert error.startswith("the checkpoint is ")
