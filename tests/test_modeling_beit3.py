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


def test_layers_get_a_mask_only_where_something_is_padded(golden_model, golden_inputs):
    model, seen = golden_model(Beit3Model), []
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    with torch.no_grad():
        model(**golden_inputs)
        model(**{**golden_inputs, "attention_mask": torch.ones_like(golden_inputs["attention_mask"])})
        model(**{name: golden_inputs[name] for name in ("pixel_values", "input_ids")})
    assert seen[0] is not None and seen[1:] == [None, None]


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


def test_patches_are_embedded_by_a_convolution():
    torch.manual_seed(0)
    config = Beit3Config(hidden_size=32, num_attention_heads=2, image_size=16, num_hidden_layers=1, vocab_size=8)
    embedding = Beit3Model(config).vision_embeddings.patch_embedding
    nn.init.normal_(embedding.bias)
    images = torch.randn(2, 3, 48, 80)
    expected = nn.functional.conv2d(images, embedding.weight, embedding.bias, stride=16).flatten(2).transpose(1, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = embedding(images.contiguous(memory_format=layout))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# Many texts about one image -----------------------------------------------------------------------------------------


def paired(golden_inputs, image_indices: list[int]) -> dict[str, torch.Tensor]:
    """Every text with a copy of its image."""
    return {**golden_inputs, "pixel_values": golden_inputs["pixel_values"][image_indices]}


@pytest.mark.parametrize("shared_layers", [0, 1, 2])
@pytest.mark.parametrize("image_indices", [None, [1, 0, 1]])
def test_an_image_is_encoded_once_for_all_its_texts(golden_model, golden_inputs, shared_layers, image_indices):
    model = golden_model(Beit3Model, shared_image_layers=shared_layers)
    num_images = 1 if image_indices is None else 2
    pixel_values = golden_inputs["pixel_values"][:num_images]
    inputs = {name: golden_inputs[name] for name in ("input_ids", "attention_mask")}
    if image_indices is not None:
        inputs["image_indices"] = torch.tensor(image_indices)
    embedded = []
    model.vision_embeddings.register_forward_hook(lambda _, args, out: embedded.append(len(args[0])))
    with torch.no_grad():
        once = model(pixel_values=pixel_values, **inputs)
        assert embedded == [num_images]
        encoded = model.encode_images(pixel_values)
        apart = model(encoded_images=encoded, **inputs)
        assert embedded == [num_images] * 2
        each = model(**paired(golden_inputs, image_indices or [0, 0, 0]))
    assert encoded.grid_size == (4, 4) and len(encoded.keys_values) == shared_layers
    assert once.last_hidden_state.shape == each.last_hidden_state.shape == (3, 17 + 16, 128)
    torch.testing.assert_close(once.last_hidden_state, each.last_hidden_state, atol=1e-5, rtol=0)
    assert torch.equal(apart.last_hidden_state, once.last_hidden_state)


def test_hidden_states_of_texts_about_one_image(golden_model, golden_inputs):
    model = golden_model(Beit3Model)
    with torch.no_grad():
        each = model(**paired(golden_inputs, [0, 0, 0]), output_hidden_states=True).hidden_states
        inputs = {**golden_inputs, "pixel_values": golden_inputs["pixel_values"][:1]}
        once = model(**inputs, output_hidden_states=True).hidden_states
    for one, other in zip(once, each):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def with_a_blind_image(model, inputs, shared_layers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One joint pass in which a mask hides the text from the image in the first layers: what sharing computes."""
    vision = model.vision_embeddings(inputs["pixel_values"])
    text = model.text_embeddings(inputs["input_ids"], inputs["attention_mask"])
    keep = torch.cat([torch.ones(vision.shape[:2]), inputs["attention_mask"]], dim=1).bool()
    keep = keep[:, None, None].repeat(1, 1, keep.shape[1], 1)
    blind = keep.clone()
    blind[:, :, : vision.shape[1], vision.shape[1] :] = False
    for index, layer in enumerate(model.layers):
        vision, text, _ = layer(vision, text, blind if index < shared_layers else keep)
    return model.vision_norm(vision), model.text_norm(text)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("shared_layers", [0, 1, 2])
def test_shared_layers_hide_the_text_from_the_image_alone(golden_model, golden_inputs, shared_layers, implementation):
    model = golden_model(Beit3Model, shared_image_layers=shared_layers)
    model.set_attn_implementation(implementation)
    inputs = paired(golden_inputs, [0, 0, 0])
    with torch.no_grad():
        found = model(**inputs)
        model.set_attn_implementation("sdpa")
        vision, text = with_a_blind_image(model, inputs, shared_layers)
    torch.testing.assert_close(found.vision_last_hidden_state, vision, atol=1e-5, rtol=0)
    real = inputs["attention_mask"].bool()  # what padding becomes is nobody's business
    torch.testing.assert_close(found.text_last_hidden_state[real], text[real], atol=1e-5, rtol=0)


def test_sharing_is_off_by_default_and_changes_the_answer(golden_model, golden_inputs):
    inputs = paired(golden_inputs, [0, 0, 0])
    with torch.no_grad():
        exact, none, one, all_layers = (
            golden_model(Beit3Model, **config)(**inputs).vision_last_hidden_state
            for config in ({}, *({"shared_image_layers": count} for count in range(3)))
        )
        alone = golden_model(Beit3Model)(pixel_values=inputs["pixel_values"]).last_hidden_state
    assert torch.equal(none, exact)
    assert (one - exact).abs().max() > 1e-3
    assert (all_layers - exact).abs().max() > 1e-3
    # With all layers shared the image is as it would be without any text.
    torch.testing.assert_close(all_layers, alone, atol=1e-5, rtol=0)


def test_shared_layers_with_padding_gradients_and_compilation(golden_model, golden_inputs):
    model = golden_model(Beit3Model, shared_image_layers=1)
    inputs = {**golden_inputs, "pixel_values": golden_inputs["pixel_values"][:1]}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        together = model(**inputs)
        torch.testing.assert_close(compiled(**inputs).last_hidden_state, together.last_hidden_state, atol=1e-5, rtol=0)
        length = int(inputs["attention_mask"][1].sum())
        alone = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"][1:2, :length])
    torch.testing.assert_close(
        alone.vision_last_hidden_state[0], together.vision_last_hidden_state[1], atol=1e-5, rtol=0
    )
    model.train()(**inputs).last_hidden_state.square().sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in model.named_parameters()} - learning == {"vision_embeddings.mask_token"}


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
        (
            {
                "pixel_values": torch.zeros(2, 3, 64, 64),
                "input_ids": torch.zeros(3, 4).long(),
                "image_indices": torch.zeros(2).long(),
            },
            r"image_indices has shape \(2,\), but one value per text is needed: \(3,\)",
        ),
        ({"input_ids": torch.zeros(1, 4).long(), "image_indices": torch.zeros(1).long()}, "it needs both of them"),
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


def test_images_that_were_encoded_are_not_given_again_nor_asked_for_what_they_lack(golden_model, golden_inputs):
    model = golden_model(Beit3Model, shared_image_layers=1)
    with torch.no_grad():
        encoded = model.encode_images(golden_inputs["pixel_values"])
        with pytest.raises(ValueError, match="given twice"):
            model(**golden_inputs, encoded_images=encoded)
        for option in ("output_hidden_states", "output_attentions"):
            with pytest.raises(ValueError, match="Shared layers keep no hidden states and attentions"):
                model(input_ids=golden_inputs["input_ids"], encoded_images=encoded, **{option: True})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shared_image_layers": 13}, r"shared_image_layers \(13\) must lie between 0 and num_hidden_layers \(12\)"),
        ({"image_size": 100}, "multiple of patch_size"),
        ({"hidden_size": 100}, "multiple of num_attention_heads"),
        ({"drop_path_rate": 1.0}, r"\[0, 1\)"),
    ],
)
def test_impossible_configurations_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        Beit3Config(**fields)
