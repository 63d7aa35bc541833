# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""From training samples of any text length to one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


_IGNORED = -100  # label of a position that does not count


class ReferringCollator:
    """Stacks samples and pads their texts.

    Args:
        pad_token_id: fills `input_ids` and `mlm_input_ids`; 1 in every OneRef model.
        pad_to: pads every text to this many tokens; None pads to the longest of the batch. The semantic relation loss
            reads padded positions too, so a run that uses it needs one length (64 in the original).
    """

    def __init__(self, pad_token_id: int = 1, pad_to: int | None = None):
        self.pad_to = pad_to
        self._fillings = {
            "input_ids": pad_token_id,
            "attention_mask": 0,
            "mlm_input_ids": pad_token_id,
            "mlm_labels": _IGNORED,
        }

    def __call__(self, samples: Sequence[Mapping]) -> dict:
        """Makes a batch of B samples as `ReferringSamples` gives them.

        Returns:
            every entry of the samples as a tensor with a leading dimension B; `sample_id` becomes `sample_ids`, a list
            of B texts, where the samples have it.

        Raises:
            ValueError: if samples differ in what they hold, or a text is longer than `pad_to`.
        """
        names = samples[0].keys()
        if any(sample.keys() != names for sample in samples):
            held = sorted({name for sample in samples for name in sample.keys() ^ names})
            raise ValueError(f"Some samples of a batch lack {', '.join(held)}: all need the same annotations.")
        length = self.pad_to or max(len(sample["input_ids"]) for sample in samples)
        batch: dict = {}
        for name in names:
            values = [sample[name] for sample in samples]
            if name == "sample_id":
                batch["sample_ids"] = values
            elif name in self._fillings:
                batch[name] = torch.stack([_padded(value, length, self._fillings[name]) for value in values])
            elif name == "semantic_relation_labels":
                batch[name] = torch.stack([_padded(value, length - 2, 0.0) for value in values])
            else:
                batch[name] = torch.stack([torch.as_tensor(value) for value in values])
        return batch


def _padded(values, length: int, filling: float) -> torch.Tensor:
    values = torch.as_tensor(values)
    if len(values) > length:
        raise ValueError(f"A sample has {len(values)} text positions, but the batch is padded to {length}.")
    return torch.nn.functional.pad(values, (0, length - len(values)), value=filling)
