# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""An independent encoder: BEiT-3 as its authors published it, with random weights, converted and compared."""

import pytest
import torch
from oneref_keys import assignments_of
from torchscale_reference import build_torchscale_beit3, run_torchscale_beit3

from oneref_hf import Beit3Config, Beit3Model


pytest.importorskip("torchscale", reason="needs `pip install --no-deps torchscale==0.3.0`")

SIZES = {
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "image_size": 80,
    "patch_size": 16,
    "vocab_size": 100,
}


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    theirs = build_torchscale_beit3(**SIZES)
    for parameter in theirs.parameters():  # norms and biases start as constants, which would hide mix-ups
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {f"beit3.{name}": value for name, value in theirs.state_dict().items()}
    ours = Beit3Model(Beit3Config(**SIZES)).eval()
    sources = assignments_of("backbone", SIZES["num_hidden_layers"])
    ours.load_state_dict({target: torch.cat([weights.pop(n) for n in names]) for target, names in sources.items()})
    assert not weights, "every parameter of torchscale's encoder has a place in ours"
    return theirs, ours


@pytest.mark.parametrize("modalities", ["both", "image", "text", "masked patches"])
def test_hidden_states_agree(encoders, modalities):
    theirs, ours = encoders
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(2, 3, 80, 80, generator=generator) if modalities != "text" else None
    input_ids = attention_mask = bool_masked_pos = None
    if modalities != "image":
        input_ids = torch.randint(3, 100, (2, 9), generator=generator)
        attention_mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    if modalities == "masked patches":
        bool_masked_pos = torch.rand(2, 25, generator=generator) > 0.5
    with torch.no_grad():
        expected = run_torchscale_beit3(theirs, pixel_values, input_ids, attention_mask, bool_masked_pos)
        found = ours(pixel_values, input_ids, attention_mask, bool_masked_pos).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
