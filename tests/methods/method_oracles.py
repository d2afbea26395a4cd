"""What the oracles of BYOL and DINO share: plain float64 networks, row by row, and steps without the package's code."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from saga_fast.methods import Method

Weights = dict[str, Tensor]
Rows = Sequence[Tensor]


class Moments(nn.Module):
    """A tiny encoder for any size of view: a linear layer on the mean of each channel and of its square."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(6, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(torch.cat([x.mean((2, 3)), x.square().mean((2, 3))], 1)))


def replace_encoder(model: Method, trained: str, average: str) -> None:
    """Give a model and its moving average :class:`Moments` in place of their encoders, and float64."""
    moments, copy = Moments(model.encoder.dim), Moments(model.encoder.dim).requires_grad_(False)
    copy.load_state_dict(moments.state_dict())
    setattr(model, trained, moments)
    setattr(model, average, copy)
    model.double()


def weights_of(model: Method) -> Weights:
    """A copy of a model's parameters and buffers by name; those that are trained require a gradient."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: tensor.detach().clone().requires_grad_(name in trained) for name, tensor in model.state_dict().items()
    }


def encode(weights: Weights, prefix: str, views: Tensor) -> list[Tensor]:
    """h of each of the views (B, 3, S, S), as :class:`Moments` computes it."""
    rows = []
    for view in views:
        pixels = view.flatten(1).unbind(1)
        mean, square = sum(pixels) / len(pixels), sum(pixel * pixel for pixel in pixels) / len(pixels)
        rows.append(linear(weights, f"{prefix}.linear", torch.cat([torch.as_tensor(mean), torch.as_tensor(square)])))
    return rows


def linear(weights: Weights, prefix: str, row: Tensor) -> Tensor:
    bias = weights.get(f"{prefix}.bias")
    product = weights[f"{prefix}.weight"] @ row
    return product if bias is None else product + bias


def batch_norm(weights: Weights, prefix: str, rows: Rows) -> list[Tensor]:
    mean = torch.as_tensor(sum(rows)) / len(rows)
    variance = torch.as_tensor(sum((row - mean) ** 2 for row in rows)) / len(rows)
    scale = weights[f"{prefix}.weight"] / torch.sqrt(variance + 1e-5)
    return [(row - mean) * scale + weights[f"{prefix}.bias"] for row in rows]


def unit(row: Tensor) -> Tensor:
    return row / torch.sqrt((row * row).sum())


def gradients_of(loss: Tensor, weights: Weights) -> Weights:
    """The gradient of a loss by the name of each trained weight."""
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def update(weights: Weights, new: Mapping[str, Tensor]) -> None:
    """Replace weights by new values, which need a gradient as the old ones did."""
    for name, value in new.items():
        weights[name] = value.detach().requires_grad_(weights[name].requires_grad)


class SGD:
    """Stochastic gradient descent with momentum 0.9 and weight decay, as in the textbook."""

    def __init__(self, weight_decay: float) -> None:
        self.weight_decay, self.velocity = weight_decay, dict[str, Tensor]()

    def step(self, weights: Weights, gradients: Weights, lr: float) -> None:
        for name, gradient in gradients.items():
            slope = gradient + self.weight_decay * weights[name]
            self.velocity[name] = 0.9 * self.velocity[name] + slope if name in self.velocity else slope
            update(weights, {name: weights[name] - lr * self.velocity[name]})


class AdamW:
    """Loshchilov and Hutter 2019, Algorithm 2, with betas 0.9 and 0.999; vectors are not decayed."""

    def __init__(self) -> None:
        self.moments: dict[str, tuple[int, Tensor, Tensor]] = {}

    def step(self, weights: Weights, gradients: Weights, lr: float, weight_decay: float) -> None:
        for name, gradient in gradients.items():
            nought = torch.zeros_like(gradient)
            count, first, second = self.moments.get(name, (0, nought, nought))
            count, first, second = count + 1, 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            self.moments[name] = count, first, second
            mean, deviation = first / (1 - 0.9**count), torch.sqrt(second / (1 - 0.999**count))
            decay = weight_decay if gradient.ndim > 1 else 0.0
            update(weights, {name: weights[name] * (1 - lr * decay) - lr * mean / (deviation + 1e-8)})


def half_cosine(first: float, last: float, step: int, steps: int) -> float:
    """The value of a cosine schedule from ``first`` to ``last`` before a step."""
    return last + (first - last) * (math.cos(math.pi * step / steps) + 1) / 2


def average(weights: Weights, pairs: Mapping[str, str], momentum: float) -> None:
    """Move the weights below each prefix of an average towards those below the trained prefix."""
    for name in list(weights):
        for averaged, trained in pairs.items():
            source = weights.get(trained + name.removeprefix(averaged)) if name.startswith(f"{averaged}.") else None
            if source is not None and "running" not in name and "tracked" not in name:
                update(weights, {name: momentum * weights[name] + (1 - momentum) * source})


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal to 1e-10 of the largest entry of each tensor; running statistics are not compared."""
    names = [name for name in expected if "running" not in name and "tracked" not in name]
    assert names
    for name in names:
        own, other = found[name].detach(), expected[name].detach()
        scale = max(float(other.abs().max()), 1e-3)
        torch.testing.assert_close(own, other, rtol=0.0, atol=1e-10 * scale, msg=name)
