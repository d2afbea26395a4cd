"""The memory bank that InsDis, PIRL and CMC share: losses against the papers' equations in loops, and its updates."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_loops import ENCODER, Row, Rows, assert_gradient, build, dot, gradient_of_rows, random_rows, unit, units
from torch import Tensor

from saga_fast.checkpoint import load_model, save_checkpoint
from saga_fast.config_file import config_to_dict, load_config
from saga_fast.errors import SagaError
from saga_fast.methods import METHODS, build_method, num_bank_rows
from saga_fast.methods.bank import BankConfig, MemoryBank, _last_occurrence

N, DIM, TAU = 9, 5, 0.2


def make_bank(seed: int = 0, num_images: int = N, **fields: Any) -> MemoryBank:
    """In float64, where central differences are exact to 1e-9."""
    torch.manual_seed(seed)
    return MemoryBank(
        num_images, BankConfig(**{"name": "insdis", "temperature": TAU, "projection_dim": DIM, **fields})
    ).double()


def softmax_loops(features: Rows, bank: Rows, idx: Sequence[Sequence[int]], temperature: float) -> float:
    """Wu et al. 2018, Eq. 2 over the rows at hand: -log(exp(f.v_i / tau) / sum over all of idx of exp(f.v / tau))."""
    total = 0.0
    for f, rows in zip(features, idx, strict=True):
        each = [math.exp(dot(f, bank[row]) / temperature) for row in rows]
        total -= math.log(each[0] / sum(each))
    return total / len(features)


def nce_loops(features: Rows, bank: Rows, idx: Sequence[Sequence[int]], temperature: float, z: float) -> float:
    """Wu et al. 2018, Eq. 4 to 7: P(i | f) = exp(f.v_i / tau) / Z, h = P / (P + m / n), log h and sum of log(1 - h)."""
    n = len(bank)
    total = 0.0
    for f, rows in zip(features, idx, strict=True):
        m = len(rows) - 1
        h = [(p := math.exp(dot(f, bank[row]) / temperature) / z) / (p + m / n) for row in rows]
        total -= math.log(h[0]) + sum(math.log(1.0 - each) for each in h[1:])
    return total / len(features)


def estimated_z(features: Rows, bank: Rows, idx: Sequence[Sequence[int]], temperature: float) -> float:
    """Section 3.2: Z is about n / m times the sum of exp(f.v / tau) over drawn rows, averaged over a batch."""
    each = [math.exp(dot(f, bank[row]) / temperature) for f, rows in zip(features, idx, strict=True) for row in rows]
    return len(bank) * sum(each) / len(each)


IDX = [[2, 0, 8, 8, 5, 1], [7, 7, 3, 0, 4, 6], [2, 1, 1, 1, 0, 8], [0, 8, 2, 4, 6, 5]]  # own rows and rows twice too


def test_softmax_loss_and_gradient() -> None:
    bank, z, idx = make_bank(), random_rows(4, DIM).requires_grad_(), torch.tensor(IDX)
    output = bank.contrast(F.normalize(z, dim=1), idx)
    (gradient,) = torch.autograd.grad(output.loss, z)
    rows = bank.rows.tolist()

    def loss(z: Rows) -> float:
        return softmax_loops(units(z), rows, IDX, TAU)

    assert output.loss.item() == pytest.approx(loss(z.tolist()), rel=1e-9)
    assert_gradient(gradient, gradient_of_rows(loss, z.detach()))
    positives = [dot(f, rows[i]) for f, (i, *_) in zip(units(z), IDX, strict=True)]
    assert output.positive_similarity.item() == pytest.approx(sum(positives) / 4)
    assert not output.positive_similarity.requires_grad


@pytest.mark.parametrize("known", [None, 3.5, 400.0])
def test_nce_loss_and_gradient(known: float | None) -> None:
    """With Z from this batch, which is a constant for the gradient, or from an earlier one."""
    bank, z, idx = make_bank(loss="nce"), random_rows(4, DIM).requires_grad_(), torch.tensor(IDX)
    if known is not None:
        bank.log_z.fill_(math.log(known))
    output = bank.contrast(F.normalize(z, dim=1), idx)
    (gradient,) = torch.autograd.grad(output.loss, z)
    rows = bank.rows.tolist()
    constant = known or estimated_z(units(z), rows, IDX, TAU)

    def loss(z: Rows) -> float:
        return nce_loops(units(z), rows, IDX, TAU, constant)

    assert output.loss.item() == pytest.approx(loss(z.tolist()), rel=1e-9)
    assert_gradient(gradient, gradient_of_rows(loss, z.detach()))


@pytest.mark.parametrize("loss", ["softmax", "nce"])
def test_loss_and_gradient_in_float32(loss: str) -> None:
    """At a method's own numbers: 128 dimensions, temperature 0.07, thousands of rows."""
    numbers: dict[str, Any] = {"loss": loss, "projection_dim": 128, "temperature": 0.07, "num_images": 500}
    exact, bank = make_bank(**numbers), make_bank(**numbers).float()
    z, idx = random_rows(6, 128), torch.randint(500, (6, 4001), generator=torch.Generator().manual_seed(1))
    results = []
    for own, leaf in ((bank, z.float().requires_grad_()), (exact, z.clone().requires_grad_())):
        output = own.contrast(F.normalize(leaf, dim=1), idx)
        results.append((output.loss, torch.autograd.grad(output.loss, leaf)[0]))
    torch.testing.assert_close(results[0][0].double(), results[1][0], rtol=1e-5, atol=0.0)
    assert_gradient(results[0][1], results[1][1])


@pytest.mark.parametrize("loss", ["softmax", "nce"])
def test_loss_stays_float32_under_autocast(loss: str) -> None:
    bank, f, idx = make_bank(loss=loss).float(), F.normalize(random_rows(4, DIM).float()), torch.tensor(IDX)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = bank.contrast(f, idx).loss
    bank = make_bank(loss=loss).float()  # Z is estimated again
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, bank.contrast(f, idx).loss, rtol=1e-6, atol=0.0)


def test_z_is_that_of_the_first_batch_in_train_mode() -> None:
    bank, idx = make_bank(loss="nce"), torch.tensor(IDX)
    batches = [F.normalize(random_rows(4, DIM, seed=seed), dim=1) for seed in range(3)]
    bank.eval().contrast(batches[2], idx)
    assert bank.log_z.item() == math.inf
    bank.train().contrast(batches[0], idx)
    z = estimated_z(batches[0].tolist(), bank.rows.tolist(), IDX, TAU)
    assert bank.log_z.item() == pytest.approx(math.log(z), rel=1e-9)
    kept = bank.log_z.clone()
    for batch in batches[1:]:
        output = bank.contrast(batch, idx)
        expected = nce_loops(batch.tolist(), bank.rows.tolist(), IDX, TAU, z)
        assert output.loss.item() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(bank.log_z, kept)
    # A resumed run goes on with it.
    other = make_bank(seed=1, loss="nce")
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.contrast(batches[0], idx).loss, bank.contrast(batches[0], idx).loss)


def test_softmax_has_no_z() -> None:
    assert set(make_bank().state_dict()) == {"rows"}
    assert set(make_bank(loss="nce").state_dict()) == {"rows", "log_z"}


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_three_updates_with_repeated_indices(momentum: float) -> None:
    """normalise(m old + (1 - m) new), from the row as it was before the step; of an image's features the last."""
    bank = make_bank(bank_momentum=momentum)
    torch.testing.assert_close(bank.rows.norm(dim=1), torch.ones(N, dtype=torch.float64))
    expected = bank.rows.tolist()
    for step, index in enumerate(([3, 1, 3, 8], [0, 0, 0, 3], [5, 8, 1, 5])):
        features = F.normalize(random_rows(4, DIM, seed=step), dim=1)
        bank.update(torch.tensor(index), features)
        moved: dict[int, Row] = {}
        for image, feature in zip(index, features.tolist(), strict=True):
            old = expected[image]
            moved[image] = unit([momentum * a + (1.0 - momentum) * b for a, b in zip(old, feature, strict=True)])
        for image, row in moved.items():
            expected[image] = list(row)
        torch.testing.assert_close(bank.rows, torch.tensor(expected, dtype=torch.float64))
    untouched = [2, 4, 6, 7]
    assert torch.equal(bank.rows[untouched], make_bank().rows[untouched])


def test__last_occurrence() -> None:
    assert _last_occurrence(torch.tensor([7, 3, 7, 0, 3, 7])).tolist() == [5, 4, 5, 3, 4, 5]
    assert _last_occurrence(torch.tensor([2, 1, 0])).tolist() == [0, 1, 2]


def test_drawn_rows() -> None:
    """The image's own first, then all images alike, with replacement."""
    model: Any = build("insdis", negatives=3000, num_images=7)
    index = torch.tensor([4, 0, 4])
    torch.manual_seed(3)
    idx = model.draw(index)
    assert (idx.shape, idx.dtype) == ((3, 3001), torch.int64)
    assert torch.equal(idx[:, 0], index)
    counts = torch.bincount(idx[:, 1:].flatten(), minlength=7)
    assert len(counts) == 7
    assert bool((counts - 9000 / 7).abs().max() < 5 * math.sqrt(9000 / 7))
    assert not torch.equal(idx[0, 1:], idx[2, 1:])
    torch.manual_seed(3)  # torch's generator, which a checkpoint holds
    assert torch.equal(model.draw(index), idx)


def test_steps_from_a_state_dict_are_identical() -> None:
    """Bank and Z come from the state, the drawn rows from torch's generator."""
    views, index = torch.randn(4, 1, 3, 16, 16), torch.tensor([3, 1, 3, 8])
    first, second = build("insdis", loss="nce", negatives=6), build("insdis", loss="nce", negatives=6, seed=1)
    first(views, index)
    first.after_step()
    second.load_state_dict(first.state_dict())
    losses: list[Tensor] = []
    for model in (first, second):
        torch.manual_seed(5)
        for _ in range(2):
            losses.append(model(views, index).loss)
            model.after_step()
    assert torch.equal(losses[0], losses[2])
    assert torch.equal(losses[1], losses[3])
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["insdis", "pirl", "cmc"])
def test_a_bank_needs_the_number_of_images(name: str) -> None:
    config = METHODS[name].Config(name=name)
    for number in (None, 0):
        with pytest.raises(SagaError, match=rf"method {name} keeps a memory bank .* num_images, got {number}"):
            build_method(config, ENCODER, num_images=number)
    state = build(name, num_images=13).state_dict()
    assert num_bank_rows(state) == 13
    assert num_bank_rows(build("moco", queue_size=13).state_dict()) is None


@pytest.mark.parametrize("name", ["insdis", "pirl", "cmc"])
def test_load_model_reads_the_number_of_images_from_the_bank(name: str, tiny_yaml: Path, tmp_path: Path) -> None:
    config = load_config(tiny_yaml, [f"method={{name: {name}, negatives: 4, projection_dim: 12, loss: nce}}"])
    model = build_method(config.method, config.encoder, num_images=13)
    state = model.state_dict()
    save_checkpoint(tmp_path / "a.pt", {"config": config_to_dict(config), "model": state})
    loaded = load_model(tmp_path / "a.pt")
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        z = loaded.projector(loaded.encoder(x))
        assert torch.equal(z, model.eval().projector(model.encoder(x)))

    without = {key: tensor for key, tensor in state.items() if not key.endswith(".rows")}
    save_checkpoint(tmp_path / "b.pt", {"config": config_to_dict(config), "model": without})
    with pytest.raises(SagaError, match=r"b.pt lacks (chrominance_)?bank.rows"):
        load_model(tmp_path / "b.pt")


@pytest.mark.parametrize("name", ["insdis", "pirl", "cmc"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", "hinge"),
        ("negatives", 0),
        ("temperature", 0.0),
        ("projection_dim", 0),
        ("bank_momentum", 1.0),
        ("bank_momentum", -0.1),
    ],
)
def test_config_refuses(name: str, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*, got {value!r}"):
        METHODS[name].Config(name=name, **{field: value})


@pytest.mark.parametrize("name", ["insdis", "pirl", "cmc"])
def test_the_references_numbers(name: str) -> None:
    config: Any = METHODS[name].Config(name=name)
    assert (config.loss, config.negatives, config.temperature) == ("softmax", 65536, 0.07)
    assert (config.projection_dim, config.bank_momentum) == (128, 0.5)
