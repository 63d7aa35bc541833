# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""VQ-KD tokenizer against the original's outputs (`vqkd.*` of golden.safetensors) and independent computations."""

import copy

import numpy as np
import pytest
import torch
from conftest import load_original
from huggingface_hub.errors import StrictDataclassError
from vqkd_keys import config_from_tensors, convert_tensors

from oneref_hf.configuration_vqkd import VqkdConfig
from oneref_hf.modeling_vqkd import VqkdCodebook, VqkdModel


TOLERANCE = 1e-4  # features are of the order of 1; measured difference 2e-6


@pytest.fixture(scope="module")
def converted(original_checkpoint) -> VqkdModel:
    source = load_original(original_checkpoint("vqkd"))["model"]
    model = VqkdModel(config_from_tensors(source)).eval()
    model.load_state_dict(convert_tensors(source))
    return model


@pytest.fixture
def model(converted) -> VqkdModel:
    return copy.deepcopy(converted)


@pytest.fixture
def images(golden) -> torch.Tensor:
    return golden["vqkd.native.pixel_values_0_1"]


def assert_golden(model: VqkdModel, golden: dict, case: str):
    with torch.no_grad():
        outputs = model(golden[f"vqkd.{case}.pixel_values_0_1"])
    torch.testing.assert_close(outputs.features, golden[f"vqkd.{case}.features"], atol=TOLERANCE, rtol=0)
    assert torch.equal(outputs.codes, golden[f"vqkd.{case}.codes"])


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("case", ["native", "interpolated"])
def test_codes_and_features_are_the_originals(model, golden, case, attention):
    model.set_attn_implementation(attention)
    assert_golden(model, golden, case)


def test_codes_survive_saving_and_loading(model, golden, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = VqkdModel.from_pretrained(tmp_path)
    for case in ("native", "interpolated"):
        assert_golden(loaded, golden, case)


def test_codebook_indices_are_the_codes_without_gradients(model, golden, images):
    codes = model.get_codebook_indices(images)
    assert codes.dtype == torch.long and not codes.requires_grad
    assert torch.equal(codes, golden["vqkd.native.codes"])
    features = model(images).features
    assert features.requires_grad


def bicubic_weights(old: int, new: int) -> np.ndarray:
    """(new, old) weights of cubic convolution (a = -0.75, clamped at the border) at the ratio (new + 0.1) / old."""
    a, weights = -0.75, np.zeros((new, old))
    for row in range(new):
        center = (row + 0.5) * old / (new + 0.1) - 0.5
        for tap in range(int(np.floor(center)) - 1, int(np.floor(center)) + 3):
            x = abs(center - tap)
            inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
            outer = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            weights[row, min(max(tap, 0), old - 1)] += inner if x <= 1 else outer
    return weights


@pytest.mark.parametrize(("height", "width"), [(6, 6), (7, 4), (3, 9)])
def test_positions_are_interpolated_along_each_side_on_its_own(model, height, width):
    table = model.embeddings.position_embedding.weight.detach()
    grid = table[1:].double().numpy().reshape(4, 4, -1)
    expected = np.einsum("hi,wj,ijd->hwd", bicubic_weights(4, height), bicubic_weights(4, width), grid)
    positions = model.embeddings.positions(height, width).detach()
    assert torch.equal(positions[0], table[0])
    np.testing.assert_allclose(positions[1:], expected.reshape(height * width, -1), atol=1e-5)


def test_patches_are_numbered_row_by_row_in_images_that_are_not_square(model):
    torch.manual_seed(0)
    image = torch.rand(1, 3, 48, 96)  # 3 rows of 6 patches
    changed = image.clone()
    changed[:, :, 16:32, 64:80] = 1 - changed[:, :, 16:32, 64:80]
    with torch.no_grad():
        # Without attention a patch sees nothing but itself.
        for layer in model.layers:
            layer.attention.out_proj.weight.zero_()
        difference = (model(image).features - model(changed).features).abs().amax(-1)[0]
    assert difference.nonzero().flatten().tolist() == [1 * 6 + 4]


def test_hidden_states_and_attentions(model, images):
    model.set_attn_implementation("eager")
    outputs = model(images, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 17, 128)] * 3
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, 17, 17)] * 2
    torch.testing.assert_close(outputs.attentions[1].sum(-1), torch.ones(2, 2, 17))


def test_gradients_reach_every_parameter_and_checkpointing_keeps_them(model, golden):
    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(golden["vqkd.interpolated.pixel_values_0_1"]).features.pow(2).mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    model.train()
    plain = gradients()
    assert [name for name, gradient in plain.items() if gradient is None] == ["codebook.weight"]
    assert all(gradient.abs().max() > 0 for gradient in plain.values() if gradient is not None)
    model.gradient_checkpointing_enable()
    for name, gradient in gradients().items():
        assert gradient is None or torch.equal(gradient, plain[name]), name


def test_bfloat16_gives_almost_the_same_codes(model, golden, tmp_path):
    model.save_pretrained(tmp_path)
    half = VqkdModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    outputs = half(golden["vqkd.interpolated.pixel_values_0_1"])
    assert outputs.features.dtype == torch.bfloat16
    expected = golden["vqkd.interpolated.features"]
    # 8 bits of mantissa through two layers; the features are of the order of 1.
    torch.testing.assert_close(outputs.features.float(), expected, atol=0.1, rtol=0)
    assert (outputs.codes == golden["vqkd.interpolated.codes"]).float().mean() > 0.9


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, False), (torch.float32, True)])
def test_distances_are_float32_in_bfloat16_models_and_under_autocast(dtype, autocast):
    codes = torch.tensor([[1.0, 0.0], [1.0, 0.03125]], dtype=dtype)
    codebook = VqkdCodebook(2, 2, _weight=codes)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert (2 - 2 * codes @ codes.T)[1].tolist() == [0.0, 0.0]  # in bfloat16 the first code would win
        assert codebook.nearest(codes[None]).tolist() == [[0, 1]]


def test_another_codebook_is_copied_in_and_the_first_of_equal_codes_wins(model, golden, images):
    codes = golden["vqkd.native.codes"]
    favourite = codes.flatten().mode().values.item()
    assert favourite > 0
    with torch.no_grad():
        model.codebook.weight[0] = model.codebook.weight[favourite]
    assert torch.equal(model.get_codebook_indices(images), codes.masked_fill(codes == favourite, 0))


def test_compiles_without_graph_breaks(model, golden):
    torch._dynamo.reset()
    assert_golden(torch.compile(model, fullgraph=True, backend="eager"), golden, "interpolated")


def test_fresh_weights():
    model = VqkdModel(VqkdConfig(hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256))
    assert not list(model.buffers())  # a derived one would come back as garbage from from_pretrained
    torch.testing.assert_close(model.codebook.weight.norm(dim=-1), torch.ones(8192))
    for weight in (model.layers[0].fc1.weight, model.embeddings.position_embedding.weight, model.embeddings.cls_token):
        assert 0.015 < weight.abs().max() <= 0.02


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 60, 64), "multiples of the patch size 16, got 60 x 64"),
        ((1, 3, 64, 70), "got 64 x 70"),
        ((1, 3, 0, 64), "got 0 x 64"),
        ((3, 64, 64), r"must have shape \(batch, 3, height, width\), got \(3, 64, 64\)"),
        ((1, 1, 64, 64), r"got \(1, 1, 64, 64\)"),
    ],
)
def test_unusable_images_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))


def test_images_in_bytes_are_refused(model):
    with pytest.raises(ValueError, match=r"floating point in \[0, 1\], got torch.uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    "sizes", [{"num_attention_heads": 5}, {"image_size": 225}, {"image_size": 0}, {"codebook_size": 0}]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(StrictDataclassError, match=next(iter(sizes))):
        VqkdConfig(**sizes)


def test_the_original_decoder_is_this_encoder_on_codes(original_checkpoint, converted, golden):
    """Loaded into the same modules, the decoder's weights rebuild the teacher's features from the codes.

    The tokenizer needs no decoder; this checks the blocks on weights and shapes of another kind (patches of one cell).
    """
    source = load_original(original_checkpoint("vqkd"))["model"]
    weights = {
        name.replace("decoder.", "encoder.").replace("decode_task_layer.", "encode_task_layer."): tensor
        for name, tensor in source.items()
        if name.startswith(("decoder.", "decode_task_layer."))
    }
    weights["quantize.embedding.weight"] = torch.zeros(1, weights["encode_task_layer.2.bias"].shape[0])  # unused
    decoder = VqkdModel(config_from_tensors(weights)).eval()
    decoder.load_state_dict(convert_tensors(weights))

    codes = golden["vqkd.native.codes"]
    cells = (
        converted.codebook.weight.detach()[codes].transpose(1, 2).unflatten(-1, (4, 4))
    )  # (batch, codebook_dim, 4, 4)
    with torch.no_grad():
        decoded = decoder((cells + 1) / 2).features  # which the model stretches back
    torch.testing.assert_close(decoded, golden["vqkd.native.decoded"], atol=TOLERANCE, rtol=0)
