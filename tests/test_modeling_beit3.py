# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from torch import nn

from oneref_hf import (
    Beit3Config,
    Beit3Model,
    OneRefForGrounding,
    OneRefForPreTraining,
    OneRefForSegmentation,
    OneRefModel,
)
from oneref_hf.modeling_beit3 import Beit3DropPath, Beit3Expert


TOLERANCE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(scope="module", params=["converted", "reloaded"])
def model(request, golden_model, tmp_path_factory):
    model = golden_model(Beit3Model)
    if request.param == "reloaded":
        directory = tmp_path_factory.mktemp("beit3")
        model.save_pretrained(directory)
        model = Beit3Model.from_pretrained(directory)
    return model


@pytest.fixture
def tiny_config(tiny_sizes) -> Beit3Config:
    return Beit3Config(**tiny_sizes)


def test_both_modalities_equal_the_original(model, golden, golden_inputs):
    with torch.no_grad():
        outputs = model(**golden_inputs)
    vision, text = golden["eval.vision_hidden_state"], golden["eval.text_hidden_state"]
    torch.testing.assert_close(outputs.vision_last_hidden_state, vision, **TOLERANCE)
    torch.testing.assert_close(outputs.text_last_hidden_state, text, **TOLERANCE)
    torch.testing.assert_close(outputs.last_hidden_state, torch.cat([vision, text], dim=1), **TOLERANCE)


def test_one_modality_alone_equals_the_original(model, golden, golden_inputs):
    with torch.no_grad():
        vision = model(pixel_values=golden_inputs["pixel_values"])
        text = model(input_ids=golden_inputs["input_ids"], attention_mask=golden_inputs["attention_mask"])
    torch.testing.assert_close(vision.last_hidden_state, golden["eval.vision_only_hidden_state"], **TOLERANCE)
    torch.testing.assert_close(text.last_hidden_state, golden["eval.text_only_hidden_state"], **TOLERANCE)
    assert vision.text_last_hidden_state is None
    assert text.vision_last_hidden_state is None


def test_masked_patches_equal_the_original(model, golden, golden_inputs):
    with torch.no_grad():
        outputs = model(**golden_inputs, bool_masked_pos=golden["eval.masked_patches"])
    torch.testing.assert_close(
        outputs.vision_last_hidden_state, golden["eval.masked_vision_hidden_state"], **TOLERANCE
    )


def test_interpolated_positions_equal_the_original(model, golden, golden_facts):
    grid = golden_facts["interpolated_image_size"] // model.config.patch_size
    positions = model.vision_embeddings.interpolate_pos_encoding(grid, grid)
    torch.testing.assert_close(positions, golden["interpolated.vision_position_embedding"][2:], **TOLERANCE)


def test_interpolation_is_asked_for_and_is_the_identity_at_the_native_size(model, golden_inputs):
    with torch.no_grad():
        plain, interpolated = (model(**golden_inputs, interpolate_pos_encoding=flag) for flag in (False, True))
        assert torch.equal(plain.last_hidden_state, interpolated.last_hidden_state)
        wide = model(pixel_values=torch.zeros(1, 3, 48, 80), interpolate_pos_encoding=True)
    assert wide.last_hidden_state.shape == (1, 1 + 3 * 5, 128)
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        model(pixel_values=torch.zeros(1, 3, 48, 48))


def test_padding_does_not_change_what_is_not_padding(model, golden_inputs):
    one = {name: value[1:2] for name, value in golden_inputs.items()}
    length = int(one["attention_mask"].sum())
    trimmed = {**one, "input_ids": one["input_ids"][:, :length], "attention_mask": one["attention_mask"][:, :length]}
    unmasked = {name: value for name, value in trimmed.items() if name != "attention_mask"}
    with torch.no_grad():
        padded, trimmed, unmasked = (model(**inputs) for inputs in (one, trimmed, unmasked))
    assert length < one["input_ids"].shape[1]
    torch.testing.assert_close(trimmed.vision_last_hidden_state, padded.vision_last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(trimmed.text_last_hidden_state, padded.text_last_hidden_state[:, :length])
    assert torch.equal(trimmed.last_hidden_state, unmasked.last_hidden_state)


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_attention_implementations_agree(golden_model, golden_inputs, implementation):
    reference, other = golden_model(Beit3Model), golden_model(Beit3Model)
    other.set_attn_implementation(implementation)
    assert reference.config._attn_implementation == "sdpa"
    with torch.no_grad():
        expected, found = (model(**golden_inputs).last_hidden_state for model in (reference, other))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_bfloat16_is_close(golden_model, golden_inputs):
    model = golden_model(Beit3Model)
    with torch.no_grad():
        expected = model(**golden_inputs).last_hidden_state
        found = model.to(torch.bfloat16)(**golden_inputs).last_hidden_state
    assert found.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(found.float(), expected, dim=-1).min() > 0.999


def test_compiles_into_one_graph_for_every_kind_of_input(golden_model, golden_inputs):
    model = golden_model(Beit3Model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    text = {name: golden_inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        for inputs in (golden_inputs, {"pixel_values": golden_inputs["pixel_values"]}, text):
            expected = model(**inputs).last_hidden_state
            torch.testing.assert_close(compiled(**inputs).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_hidden_states_cover_the_joint_sequence(model, golden_inputs):
    with torch.no_grad():
        outputs = model(**golden_inputs, output_hidden_states=True)
        embedded = torch.cat(
            [
                model.vision_embeddings(golden_inputs["pixel_values"]),
                model.text_embeddings(golden_inputs["input_ids"], golden_inputs["attention_mask"]),
            ],
            dim=1,
        )
        some = model(**golden_inputs, output_hidden_states=[0, -1]).hidden_states
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(outputs.hidden_states[0], embedded)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert [states is None for states in some] == [False, True, False]


def test_gradients_reach_returned_hidden_states(golden_model, golden_inputs):
    outputs = golden_model(Beit3Model)(**golden_inputs, output_hidden_states=True)
    for states in outputs.hidden_states:
        states.retain_grad()
    outputs.text_last_hidden_state.sum().backward()
    assert all(states.grad.abs().sum() > 0 for states in outputs.hidden_states[:-1])


def test_attentions_are_distributions_without_padding(golden_model, golden_inputs):
    model = golden_model(Beit3Model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**golden_inputs, output_attentions=True).attentions
    sequence_length = 17 + golden_inputs["input_ids"].shape[1]
    assert [tuple(layer.shape) for layer in attentions] == [(3, 2, sequence_length, sequence_length)] * 2
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(3, 2, sequence_length))
    padded = golden_inputs["attention_mask"] == 0
    assert attentions[1][:, :, :, 17:].permute(0, 3, 1, 2)[padded].max() == 0


def test_every_expert_works_on_its_own_contiguous_stream(golden_model, golden_inputs):
    model = golden_model(Beit3Model)
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, out, name=name: seen.append((name, args[0])))
    with torch.no_grad():
        model(**golden_inputs)
    assert len(seen) == 2 * 2 * 4  # layers, experts, linear layers
    for name, inputs in seen:
        assert inputs.is_contiguous(), name
        assert inputs.shape[1] == (17 if ".vision." in name else 16), name


def test_checkpointing_gives_the_same_gradients(golden_model, golden_inputs):
    gradients = []
    for checkpointing in (False, True):
        model = golden_model(Beit3Model).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**golden_inputs).last_hidden_state.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_drop_path_drops_a_sample_from_both_modalities():
    torch.manual_seed(0)
    drop_path = Beit3DropPath(0.25)
    vision, text = drop_path([torch.ones(4000, 5, 2), torch.ones(4000, 3, 2)])
    kept = vision[:, 0, 0] > 0
    assert torch.equal(vision, (kept / 0.75)[:, None, None].expand_as(vision))
    assert torch.equal(text, (kept / 0.75)[:, None, None].expand_as(text))
    assert abs(kept.float().mean() - 0.75) < 0.03
    branches = [torch.ones(2, 1, 1)]
    assert drop_path.eval()(branches) is branches


def test_drop_path_grows_linearly():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "vocab_size": 8}
    model = Beit3Model(Beit3Config(**sizes, num_hidden_layers=5, drop_path_rate=0.2))
    assert [layer.drop_path.drop_prob for layer in model.layers] == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_initialisation_follows_the_reference(tiny_config):
    torch.manual_seed(0)
    model = Beit3Model(tiny_config)
    for expert in (module for module in model.modules() if isinstance(module, Beit3Expert)):
        for linear in (expert.qkv_proj, expert.out_proj, expert.fc1, expert.fc2):
            assert linear.weight.abs().max() <= 0.02
            assert linear.weight.std().item() == pytest.approx(0.02 * 0.54, rel=0.02)  # a normal cut at one deviation
            assert linear.bias.abs().max() == 0
        for norm in (expert.attention_norm, expert.attention_sub_norm, expert.mlp_norm, expert.mlp_sub_norm):
            assert (norm.weight == 1).all() and (norm.bias == 0).all()
    assert model.text_embeddings.token_embedding.weight.std().item() == pytest.approx(128**-0.5, rel=0.02)
    patches = model.vision_embeddings.patch_embedding
    assert patches.weight.abs().max().item() == pytest.approx((3 * 16 * 16) ** -0.5, rel=0.01)  # PyTorch's default
    assert model.vision_embeddings.cls_token.abs().max() == 0
    assert model.vision_embeddings.mask_token.abs().max() == 0


@pytest.mark.parametrize("head", [OneRefModel, OneRefForGrounding, OneRefForSegmentation, OneRefForPreTraining])
def test_a_beit3_checkpoint_loads_into_every_head_and_back(golden_model, tiny_config, tmp_path, head):
    plain = Beit3Model(tiny_config)
    plain.load_state_dict(golden_model(Beit3Model).state_dict())
    plain.save_pretrained(tmp_path / "beit3")

    model, report = head.from_pretrained(tmp_path / "beit3", output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert not any("beit3" in name for name in report["missing_keys"])
    assert _equal(model.backbone, plain)

    model.save_pretrained(tmp_path / "head")
    again, report = head.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert _equal(again, model)

    assert _equal(Beit3Model.from_pretrained(tmp_path / "head"), plain)


def _equal(one: nn.Module, other: nn.Module) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Nothing to encode"),
        ({"pixel_values": torch.zeros(2, 3, 64, 64), "input_ids": torch.zeros(3, 4).long()}, "2 images but 3 texts"),
        ({"pixel_values": torch.zeros(1, 3, 60, 64)}, "60x64 pixels, which is not a multiple of the patch size 16"),
        ({"pixel_values": torch.zeros(1, 3, 32, 32)}, "made for 64x64"),
        ({"input_ids": torch.zeros(1, 1023).long()}, "1023 tokens, but the model has positions for 1022"),
        (
            {"pixel_values": torch.zeros(1, 3, 64, 64), "bool_masked_pos": torch.zeros(1, 4, 4).bool()},
            "one value per patch",
        ),
    ],
)
def test_bad_inputs_are_named(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 100}, "multiple of patch_size"),
        ({"hidden_size": 100}, "multiple of num_attention_heads"),
        ({"drop_path_rate": 1.0}, r"\[0, 1\)"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        Beit3Config(**fields)
