"""k-nearest neighbours against plain Python loops, and the features they look among."""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saga_fast.errors import SagaError
from saga_fast.evaluate.features import LAYERS, FrozenModel, extract_features
from saga_fast.evaluate.knn import align_labels, knn_accuracy
from saga_fast.loaders import BadImages, ImageFolder, LoaderOptions, WholePlan, open_loader
from saga_fast.methods import Method, build_method
from saga_fast.methods.simclr import SimCLRConfig
from saga_fast.models.encoder import EncoderConfig

KS = (1, 3, 8, 20)


def random_features(n: int, classes: int, *, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of length 1 about one centre per class, spread enough that neighbours disagree."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (n,), generator=generator)
    return F.normalize(centres[labels] + 1.2 * torch.randn(n, dim, generator=generator), dim=1), labels


def knn_loops(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    labels: Tensor,
    *,
    k: int,
    temperature: float,
    leave_one_out: bool = False,
) -> float:
    """Wu et al. 2018, section 3.4: class w_c = sum over the k nearest with label c of exp(s_i / tau)."""
    hits = 0
    rows = bank.tolist()
    for n, query in enumerate(queries.tolist()):
        similarity = [
            (sum(a * b for a, b in zip(query, row, strict=True)), label)
            for i, (row, label) in enumerate(zip(rows, bank_labels.tolist(), strict=True))
            if not (leave_one_out and i == n)
        ]
        votes: defaultdict[int, float] = defaultdict(float)
        for value, label in sorted(similarity, reverse=True)[:k]:
            votes[label] += math.exp(value / temperature)
        hits += max(votes, key=lambda label: votes[label]) == int(labels[n])
    return hits / len(queries)


def test_all_tensors_are_made_on_the_features_device() -> None:
    bank, labels = random_features(50, 4)
    expected = knn_accuracy(bank, labels, bank, labels, ks=KS, leave_one_out=True, chunk=9)
    with torch.device("meta"):  # a tensor made on the default device would not mix with the features
        assert knn_accuracy(bank, labels, bank, labels, ks=KS, leave_one_out=True, chunk=9) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_accuracies_on_a_gpu(leave_one_out: bool) -> None:
    bank, labels = random_features(3000, 10, dim=64)
    expected = knn_accuracy(bank, labels, bank, labels, ks=KS, leave_one_out=leave_one_out)
    on_gpu = [x.cuda() for x in (bank, labels, bank, labels)]
    first, second = (knn_accuracy(*on_gpu, ks=KS, leave_one_out=leave_one_out) for _ in range(2))
    assert first == second
    assert first == pytest.approx(expected, abs=1e-3)  # neighbours whose similarities round alike may change places


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_weighted_vote(temperature: float) -> None:
    bank, bank_labels = random_features(60, 4)
    queries, labels = random_features(45, 4, seed=1)
    accuracies = knn_accuracy(bank, bank_labels, queries, labels, ks=KS, temperature=temperature)
    expected = {k: knn_loops(bank, bank_labels, queries, labels, k=k, temperature=temperature) for k in KS}
    assert accuracies == pytest.approx(expected, abs=1e-9)
    assert len(set(expected.values())) > 2
    assert all(0.25 < accuracy < 1.0 for accuracy in expected.values())


def test_leave_one_out() -> None:
    bank, labels = random_features(50, 3)
    accuracies = knn_accuracy(bank, labels, bank, labels, ks=KS, leave_one_out=True, chunk=7)
    expected = {k: knn_loops(bank, labels, bank, labels, k=k, temperature=0.07, leave_one_out=True) for k in KS}
    assert accuracies == pytest.approx(expected, abs=1e-9)
    # Without it, each image is its own nearest neighbour.
    assert knn_accuracy(bank, labels, bank, labels, ks=[1]) == {1: 1.0}
    assert accuracies[1] < 1.0


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 50, 51])
def test_chunks_do_not_matter(chunk: int, leave_one_out: bool) -> None:
    bank, labels = random_features(50, 3)
    whole = knn_accuracy(bank, labels, bank, labels, ks=KS, leave_one_out=leave_one_out)
    assert whole == knn_accuracy(bank, labels, bank, labels, ks=KS, leave_one_out=leave_one_out, chunk=chunk)


def test_votes_are_weighted_by_similarity() -> None:
    """One near neighbour of class 1 outvotes two far ones of class 0."""
    angles = torch.tensor([0.1, 1.2, 1.3])
    bank, query = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([[1.0, 0.0]])
    for temperature, hit in ((0.07, 1.0), (100.0, 0.0)):
        accuracies = knn_accuracy(
            bank, torch.tensor([1, 0, 0]), query, torch.tensor([1]), ks=[3], temperature=temperature
        )
        assert accuracies == {3: hit}


def test_small_temperature_does_not_overflow() -> None:
    bank, labels = random_features(20, 2)
    accuracies = knn_accuracy(bank, labels, bank, labels, ks=[5], temperature=0.005)
    assert accuracies == {5: 1.0}  # exp(1 / 0.005) is 7e86, more than float32 holds


def test_small_temperature_does_not_underflow() -> None:
    """All neighbours are far: exp((s - 1) / T) is less than float32 holds, and class 0 would win by its number."""
    angles = torch.tensor([1.45, 1.5, 1.55])
    bank, query = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([[1.0, 0.0]])
    found = knn_accuracy(bank, torch.tensor([1, 0, 0]), query, torch.tensor([1]), ks=[1, 3], temperature=0.005)
    assert found == {1: 1.0, 3: 1.0}


@pytest.mark.parametrize(("leave_one_out", "available"), [(False, 20), (True, 19)])
def test_k_too_large(leave_one_out: bool, available: int) -> None:
    bank, labels = random_features(20, 2)
    assert knn_accuracy(bank, labels, bank, labels, ks=[available], leave_one_out=leave_one_out)
    with pytest.raises(SagaError, match=f"k = {available + 1} is more than the {available} possible neighbours"):
        knn_accuracy(bank, labels, bank, labels, ks=[1, available + 1], leave_one_out=leave_one_out)


@pytest.mark.parametrize("which", ["bank", "queries"])
def test_unlabelled_images(which: str) -> None:
    bank, labels = random_features(20, 2)
    unlabelled = torch.full_like(labels, -1)
    pair = (unlabelled, labels) if which == "bank" else (labels, unlabelled)
    with pytest.raises(SagaError, match="labelled images"):
        knn_accuracy(bank, pair[0], bank, pair[1], ks=[3])


def make_folder(root: Path, names: list[str]) -> ImageFolder:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.png").touch()
    return ImageFolder(root)


def test_align_labels(tmp_path: Path) -> None:
    target = make_folder(tmp_path / "train", ["ant", "bee", "cow", "dog"])
    source = make_folder(tmp_path / "val", ["bee", "dog"])
    assert align_labels(torch.tensor([0, 1, 1, 0]), source, target).tolist() == [1, 3, 3, 1]
    assert align_labels(torch.tensor([3, 0]), target, target).tolist() == [3, 0]
    with pytest.raises(SagaError, match=f"class 'ant' of {target.root} is not in {source.root}"):
        align_labels(torch.tensor([0]), target, source)


def test_align_labels_of_unlabelled_images(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "0.png").touch()
    target = make_folder(tmp_path / "train", ["ant", "bee"])
    assert align_labels(torch.tensor([-1, -1]), ImageFolder(tmp_path / "val"), target).tolist() == [-1, -1]


def build() -> Method:
    torch.manual_seed(0)
    encoder = EncoderConfig(name="resnet18", stem="small", args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]})
    return build_method(SimCLRConfig(projection_dim=12), encoder)


@pytest.mark.parametrize("training", [True, False])
def test_extract_features(make_images: Callable[..., Path], tmp_path: Path, training: bool) -> None:
    root = make_images(tmp_path / "images", classes=("a", "b", "c"), per_class=3, size=(16, 16), ending=".png")
    broken = root / "b" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    source = ImageFolder(root)
    loader = open_loader(
        "folder",
        source,
        WholePlan(size=16),
        LoaderOptions(threads=2),
        batch_size=4,
        bad=BadImages(source, max_fraction=0.5),
    )
    model = build().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    features, labels = extract_features(FrozenModel(model=model), loader)

    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]  # the broken one is left out
    assert tuple(features) == LAYERS
    assert (features["backbone"].shape, features["projector"].shape) == ((8, 16), (8, 12))
    for layer in LAYERS:
        assert features[layer].dtype == torch.float32
        torch.testing.assert_close(features[layer].norm(dim=1), torch.ones(8))
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    # The rows are f and g of the images, in eval mode.
    model.eval()
    seen = torch.cat([batch.views[:, 0] for batch in loader]).double().permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(values).double()[:, None, None] for values in (model.encoder.mean, model.encoder.std))
    with torch.no_grad():
        h = model.encoder(((seen - mean) / std).float())
        z = model.projector(h)
    torch.testing.assert_close(features["backbone"], F.normalize(h, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features["projector"], F.normalize(z, dim=1), rtol=1e-4, atol=1e-5)
    assert np.unique(features["backbone"].numpy(), axis=0).shape == (8, 16)


def test_mode_is_restored_after_an_error(images: Path) -> None:
    model = build()
    loader = open_loader("folder", images / "val", WholePlan(size=16), LoaderOptions(threads=1), batch_size=4)
    model.projector = torch.nn.Linear(3, 3)  # does not fit
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        extract_features(FrozenModel(model=model), loader)
    assert model.training
    assert model.encoder.training
