"""Many networks of one shape, trained and sampled as one.

A network of the paper's table has some 3,000 weights; alone, it leaves a processor waiting for
Python's next instruction. Here the weights of many networks are stacked, and every product is a
batch of products. The leading axis indexes the ``num_configs * num_jobs`` networks, with the jobs
varying fastest. A *job* is a fold or a seed: it has its own rows and its own random draws, which
all configurations share, so that they differ only in their configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_EPS = 1e-10  # the paper's, in batch normalization
_ROWS = 1 << 15  # rows of 50 units that stay in a processor's cache


@dataclass(frozen=True)
class MCBN:
    """Two dense layers, each with batch normalization and ReLU, and a linear output.

    Attributes:
        batch_size: M, for both the training and the draws.
    """

    batch_size: int

    def initial(
        self, jobs: int, num_features: int, width: int, generator: torch.Generator
    ) -> list[Tensor]:
        """Three weights and the output bias, then gamma and beta of both layers, for each job.

        Weights are ``(jobs, inputs, outputs)``, all others ``(jobs, 1, outputs)``.

        Example:
            >>> params = MCBN(32).initial(5, 6, 50, torch.Generator())
            >>> [tuple(param.shape) for param in params[:4]]
            [(5, 6, 50), (5, 50, 50), (5, 50, 1), (5, 1, 1)]
        """
        gamma = torch.ones(jobs, 1, width)
        beta = torch.zeros_like(gamma)
        norms = [gamma, beta, gamma.clone(), beta.clone()]
        return [*_weights(jobs, num_features, width, generator), *norms]

    def forward(self, params: Sequence[Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        """The outputs ``(networks, rows, 1)`` in training mode, for rows ``(jobs, rows, d)``."""
        first, second, last, bias, *norms = params
        hidden: Any = x.repeat(len(first) // len(x), 1, 1)
        for weight, gamma, beta in zip((first, second), norms[::2], norms[1::2], strict=True):
            hidden = _NormalizedRelu.apply(hidden @ weight, gamma, beta)
        return hidden @ last + bias

    def sample(
        self,
        params: Sequence[Tensor],
        train: Tensor,
        x: Tensor,
        num_samples: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Predictions ``(networks, num_samples, rows)`` for rows ``(jobs, rows, d)``.

        Each sample draws M of its job's training rows ``(jobs, n, d)`` without replacement; both
        layers normalize with the biased statistics of these rows.
        """
        first, second, last, bias, *norms = params
        configs = len(first) // len(x)
        at_rows = (x.repeat(configs, 1, 1) @ first)[:, None]
        job = torch.arange(len(x))[:, None]
        samples = []
        for count in _chunks(num_samples, len(first) * (self.batch_size + x.shape[1])):
            drawn = [_draw_rows(train, generator) for _ in range(count)]
            rows = torch.cat([rows[:, : self.batch_size] for rows in drawn], dim=1)
            batch = train[job, rows].repeat(configs, 1, 1) @ first
            seen, shown = batch.unflatten(1, (count, -1)), at_rows
            for weight, gamma, beta in zip((second, last), norms[::2], norms[1::2], strict=True):
                mean = seen.mean(2, keepdim=True)
                var = (seen - mean).square_().mean(2, keepdim=True)
                scale = gamma[:, None] * (var + _EPS).rsqrt_()
                shift = beta[:, None] - mean * scale
                seen, shown = (
                    (torch.addcmul(shift, z, scale).relu_().flatten(1, 2) @ weight).unflatten(
                        1, (count, -1)
                    )
                    for z in (seen, shown)
                )
            samples.append(shown[..., 0] + bias)
        return torch.cat(samples, dim=1)


@dataclass(frozen=True)
class MCDropout:
    """Two dense layers with ReLU and a linear output; dropout before each, the input included.

    Attributes:
        rate: The probability that a unit is dropped.
        batch_size: Rows in a training batch.
    """

    rate: float
    batch_size: int = 32

    def initial(
        self, jobs: int, num_features: int, width: int, generator: torch.Generator
    ) -> list[Tensor]:
        """Three weights ``(jobs, inputs, outputs)`` and the output bias ``(jobs, 1, 1)``."""
        return _weights(jobs, num_features, width, generator)

    def forward(self, params: Sequence[Tensor], x: Tensor, generator: torch.Generator) -> Tensor:
        """The outputs ``(networks, rows, 1)`` with units dropped, for rows ``(jobs, rows, d)``."""
        uniform = torch.rand(*x.shape[:2], self._units(params), dtype=x.dtype, generator=generator)
        return self._run(params, x, uniform)

    def sample(
        self,
        params: Sequence[Tensor],
        train: Tensor,
        x: Tensor,
        num_samples: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Predictions ``(networks, num_samples, rows)`` for rows ``(jobs, rows, d)``."""
        samples = []
        for count in _chunks(num_samples, len(params[0]) * x.shape[1]):
            shape = (*x.shape[:2], self._units(params))
            drawn = [torch.rand(shape, dtype=x.dtype, generator=generator) for _ in range(count)]
            output = self._run(params, x.repeat(1, count, 1), torch.cat(drawn, dim=1))
            samples.append(output.view(-1, count, x.shape[1]))
        return torch.cat(samples, dim=1)

    def _units(self, params: Sequence[Tensor]) -> int:
        return sum(weight.shape[1] for weight in params[:3])

    def _run(self, params: Sequence[Tensor], x: Tensor, uniform: Tensor) -> Tensor:
        *weights, bias = params
        # The sign is many times faster than a comparison that makes booleans.
        kept = (uniform - self.rate).sign_().clamp_(min=0).div_(1 - self.rate)
        masks = kept.split([weight.shape[1] for weight in weights], dim=-1)
        hidden = x.repeat(len(bias) // len(x), 1, 1)
        for layer, (weight, mask) in enumerate(zip(weights, masks, strict=True)):
            hidden = hidden.relu() if layer else hidden
            hidden = (hidden.unflatten(0, (-1, len(x))) * mask).flatten(0, 1) @ weight
        return hidden + bias


Method = MCBN | MCDropout


class Training:
    """Adam on ``0.5 * MSE + 0.5 * decay * ‖W‖²`` of each network, all in step.

    The squared norm covers the three weights; each network has its own decay and its own Adam
    state. Each epoch takes the rows of each job in a new order and drops an incomplete last batch.

    Args:
        method: The kind of network.
        params: Parameters of each job, as returned by ``method.initial``.
        x: Training rows ``(jobs, n, d)``.
        y: Their targets ``(jobs, n, 1)``.
        decays: Weight decays, one for each configuration.
        generator: Source of the row orders and of the method's draws.

    Attributes:
        params: Each ``(networks, …)``.
        decay: ``(networks, 1, 1)``.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(5, 100, 6), torch.randn(5, 100, 1)
        >>> params = MCBN(32).initial(5, 6, 50, generator)
        >>> training = Training(MCBN(32), params, x, y, [1e-1, 1e-3, 1e-5], generator)
        >>> training.epoch()
        >>> training.params[0].shape
        torch.Size([15, 6, 50])
    """

    def __init__(
        self,
        method: Method,
        params: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        decays: Sequence[float],
        generator: torch.Generator,
    ) -> None:
        if method.batch_size > x.shape[1]:
            raise ValueError(f"{method} for {x.shape[1]} training rows, wanted at most as many.")
        self.method, self.x, self.y, self.generator = method, x, y, generator
        self.decay = torch.tensor(decays, dtype=x.dtype).repeat_interleave(len(x)).view(-1, 1, 1)
        self.params = [
            param.to(x.dtype).repeat(len(decays), 1, 1).requires_grad_() for param in params
        ]
        self._adam = torch.optim.Adam(self.params, lr=1e-3, fused=True)

    def epoch(self) -> None:
        """Make one step for each complete batch."""
        job = torch.arange(len(self.x))[:, None]
        order = _draw_rows(self.x, self.generator)
        for rows in order.split(self.method.batch_size, dim=1):
            if rows.shape[1] == self.method.batch_size:
                self._step(self.x[job, rows], self.y[job, rows])

    def _step(self, x: Tensor, y: Tensor) -> None:
        output = self.method.forward(self.params, x, self.generator)
        error = output.unflatten(0, (-1, len(x))) - y
        loss = error.square().sum() / (2 * x.shape[1])
        gradients = torch.autograd.grad(loss, self.params)
        for param, gradient in zip(self.params, gradients, strict=True):
            param.grad = gradient
        for weight in self.params[:3]:
            assert weight.grad is not None
            weight.grad.addcmul_(weight.detach(), self.decay)
        self._adam.step()

    def keep(self, networks: Tensor) -> None:
        """Continue with these networks only, as if the others had never existed."""
        self.decay = self.decay[networks]
        for param in self.params:
            param.data = param.data[networks]
            state = self._adam.state[param]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name][networks]


class _NormalizedRelu(torch.autograd.Function):
    """relu(gamma * (z - mean) / sqrt(var + eps) + beta), statistics over axis 1, in few passes.

    Autograd's own chain takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        centred = z - z.mean(1, keepdim=True)
        factor = centred.square().mean(1, keepdim=True).add_(_EPS).rsqrt_()
        normal = centred.mul_(factor)
        output = torch.addcmul(beta, normal, gamma).relu_()
        ctx.save_for_backward(normal, factor, gamma, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normal, factor, gamma, output = ctx.saved_tensors
        gradient = gradients[0] * output.sign()
        to_beta = gradient.sum(1, keepdim=True)
        to_gamma = (gradient * normal).sum(1, keepdim=True)
        rows = output.shape[1]
        gradient.sub_(to_beta / rows).addcmul_(normal, to_gamma / rows, value=-1)
        return gradient.mul_(gamma * factor), to_gamma, to_beta


def _weights(jobs: int, num_features: int, width: int, generator: torch.Generator) -> list[Tensor]:
    """Truncated normal with standard deviation 0.1, cut off at twice that."""
    shapes = (num_features, width), (width, width), (width, 1), (1, 1)
    return [
        nn.init.trunc_normal_(
            torch.empty(jobs, *shape), std=0.1, a=-0.2, b=0.2, generator=generator
        )
        for shape in shapes
    ]


def _draw_rows(x: Tensor, generator: torch.Generator) -> Tensor:
    """All rows of each job of ``(jobs, n, d)`` in random order, ``(jobs, n)``."""
    return torch.stack([torch.randperm(x.shape[1], generator=generator) for _ in x])


def _chunks(total: int, rows: int) -> Iterator[int]:
    """Numbers of samples to run at once, which add up to the total."""
    most = max(1, _ROWS // rows)
    for start in range(0, total, most):
        yield min(most, total - start)
