# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Muon in the number format of the weights.

`torch.optim.Muon` orthogonalises in bfloat16, which most CPUs emulate: there a step would take longer than the
gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn


_COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic Newton-Schulz iteration
_ITERATIONS = 5
_AS_ADAMW = 0.2  # root mean square of an update, which makes AdamW's learning rates fit


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), with the scale of Liu et al. 2025 ("Muon is scalable").

    Matrices that stand for three (packed queries, keys and values: three times as tall as wide) are taken as three.

    Args:
        params: matrices.
        lr, weight_decay: as AdamW's.
        momentum: of the gradients, Nesterov's way.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            # Matrices of one shape go together, which is much faster for small ones.
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"])
                rows, columns = parameter.shape
                for one, its_update in zip(
                    *(matrix.split(columns if rows == 3 * columns else rows) for matrix in (parameter, update))
                ):
                    alike[one.shape].append((one, its_update))
            for shape, pairs in alike.items():
                directions = orthogonalized(torch.stack([update for _, update in pairs]))
                length = _AS_ADAMW * max(shape) ** 0.5
                for (one, _), direction in zip(pairs, directions):
                    one.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"] * length)


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices `(N, R, C)` with their singular values moved close to 1 (0.7 to 1.2)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    result = matrices.mT if tall else matrices
    result = result / (torch.linalg.matrix_norm(result, keepdim=True) + 1e-7)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = result @ result.mT
        result = first * result + (third * square + fifth * square @ square) @ result
    return result.mT if tall else result


__all__ = ["Muon", "orthogonalized"]
