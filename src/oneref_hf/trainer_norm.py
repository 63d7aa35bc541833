# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Batch norms of the mask head whose statistics are those of all processes together.

Without this a run on two processes is another run than on one with the same batch (and, as in the original, the
running statistics are those of the first process alone).
"""

from __future__ import annotations

import torch
from torch import nn


class CpuSyncBatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.SyncBatchNorm` for `(N, C)` on the CPU, where PyTorch's own does not run.

    N may differ between processes. It keeps more for the backward pass than PyTorch's, hence not for accelerators.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features)
        total = torch.tensor(float(len(features)))
        torch.distributed.all_reduce(total)
        mean = _summed(features.sum(0)) / total
        centred = features - mean
        variance = _summed(centred.square().sum(0)) / total
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias


def _summed(values: torch.Tensor) -> torch.Tensor:
    """Over processes, with gradient."""
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(values)


def synchronise_batch_norms(module: nn.Module, device_type: str) -> None:
    """Replaces every `BatchNorm1d` inside `module`; parameters, statistics and their names stay."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm1d:
            if device_type == "cpu":
                replacement = CpuSyncBatchNorm1d(child.num_features, eps=child.eps, momentum=child.momentum)
                replacement.load_state_dict(child.state_dict())
                replacement.requires_grad_(child.weight.requires_grad)
            else:
                replacement = nn.SyncBatchNorm.convert_sync_batchnorm(child)
            setattr(module, name, replacement)
        else:
            synchronise_batch_norms(child, device_type)
