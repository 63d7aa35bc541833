# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
import logging
import re

import pytest
import torch
from oneref_keys import TASKS, assignments_of
from torch.multiprocessing.reductions import StorageWeakRef

from oneref_hf import OneRefConfig, OneRefForGrounding, OneRefForPreTraining, OneRefForSegmentation, OneRefModel
from oneref_hf.loss_oneref import cxcywh_to_xyxy
from oneref_hf.modeling_oneref import answer_phrases, box_coverage, region_contrast_score, tight_boxes


OUTPUT_TOLERANCE = {"atol": 1e-4, "rtol": 0}
HEADS = [OneRefForGrounding, OneRefForSegmentation, OneRefForPreTraining]

# The original's log names of our losses.
ORIGINAL_LOSS_NAMES = {
    "box_l1": "loss_bbox",
    "box_giou": "loss_giou",
    "similarity_focal": "loss_mrm_focal",
    "similarity_dice": "loss_mrm_dice",
    "mask_focal": "loss_seg_focal",
    "mask_dice": "loss_seg_dice",
    "contrastive": "loss_contrastive",
    "mim": "loss_mim",
    "visual_relation": "loss_mim_vts",
    "mlm": "loss_mlm",
    "semantic_relation": "loss_mlm_sts",
}


def only(*names: str) -> dict[str, float]:
    """Loss weights that switch off everything but `names`."""
    defaults = OneRefConfig().loss_weights
    return {name: (defaults[name] or 1.0) if name in names else 0.0 for name in defaults}


@pytest.fixture(scope="module")
def labels(golden) -> dict[str, torch.Tensor]:
    masked_words = golden["inputs.mlm_masked_positions"].bool()
    return {
        "box_labels": golden["inputs.boxes_cxcywh"],
        "mask_labels": golden["inputs.masks"][:, 0],
        "visual_token_labels": torch.where(golden["eval.masked_patches"], golden["inputs.codes"], -100),
        "visual_relation_labels": golden["inputs.vts_labels"],
        "mlm_labels": torch.where(masked_words, golden["inputs.input_ids"], -100),
        "semantic_relation_labels": golden["inputs.sts_labels"],
    }


# The golden training steps: which model, which losses, which labels and what replaces the plain inputs.
TRAINING_STEPS = {
    "train_rec": (OneRefForGrounding, {}, ["box_labels", "mask_labels"], {}),
    "train_res": (OneRefForSegmentation, only("mask_focal", "mask_dice"), ["box_labels", "mask_labels"], {}),
    "train_rec_res_contrastive": (
        OneRefForSegmentation,
        only("box_l1", "box_giou", "mask_focal", "mask_dice", "contrastive"),
        ["box_labels", "mask_labels"],
        {},
    ),
    "train_mim": (
        OneRefForPreTraining,
        {},
        ["mask_labels", "visual_token_labels", "visual_relation_labels"],
        {"bool_masked_pos": "eval.masked_patches"},
    ),
    "train_mlm": (
        OneRefForPreTraining,
        {},
        ["mask_labels", "mlm_labels", "semantic_relation_labels"],
        {"input_ids": "inputs.mlm_input_ids"},
    ),
}


def run_training_step(step, golden_model, golden, golden_inputs, labels, model=None):
    model_class, loss_weights, label_names, replaced = TRAINING_STEPS[step]
    model = (model or golden_model(model_class, loss_weights=loss_weights)).train()
    inputs = {**golden_inputs, **{name: golden[key] for name, key in replaced.items()}}
    return model, model(**inputs, **{name: labels[name] for name in label_names})


@pytest.fixture(scope="module", params=["converted", "reloaded"])
def segmentation_model(request, golden_model, tmp_path_factory):
    model = golden_model(OneRefForSegmentation)
    if request.param == "reloaded":
        directory = tmp_path_factory.mktemp("segmentation")
        model.save_pretrained(directory)
        model = OneRefForSegmentation.from_pretrained(directory)
    return model


def test_answers_equal_the_original(segmentation_model, golden, golden_inputs):
    with torch.no_grad():
        outputs = segmentation_model(**golden_inputs)
    torch.testing.assert_close(outputs.pred_boxes, golden["eval.pred_boxes_cxcywh"], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(outputs.pred_masks, golden["eval.mask_logits"][:, 0], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(outputs.similarity_map.flatten(1), golden["eval.similarity"], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(outputs.image_embeds, golden["eval.image_embeds"], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(outputs.text_embeds, golden["eval.text_embeds"], **OUTPUT_TOLERANCE)
    hidden_states = torch.cat([golden["eval.vision_hidden_state"], golden["eval.text_hidden_state"]], dim=1)
    torch.testing.assert_close(outputs.last_hidden_state, hidden_states, **OUTPUT_TOLERANCE)
    assert outputs.similarity_map.shape == (3, 4, 4)


def test_answers_at_another_resolution_equal_the_original(segmentation_model, golden, golden_inputs):
    with torch.no_grad():
        outputs = segmentation_model(
            pixel_values=golden["interpolated.pixel_values"],
            input_ids=golden_inputs["input_ids"][:1],
            attention_mask=golden_inputs["attention_mask"][:1],
            interpolate_pos_encoding=True,
        )
    torch.testing.assert_close(outputs.pred_boxes, golden["interpolated.pred_boxes_cxcywh"], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(outputs.pred_masks, golden["interpolated.mask_logits"][:, 0], **OUTPUT_TOLERANCE)


def test_all_heads_give_the_same_box(golden_model, golden, golden_inputs):
    with torch.no_grad():
        for model_class in HEADS:
            boxes = golden_model(model_class)(**golden_inputs).pred_boxes
            torch.testing.assert_close(boxes, golden["eval.pred_boxes_cxcywh"], **OUTPUT_TOLERANCE)


@pytest.mark.parametrize("step", TRAINING_STEPS)
def test_losses_and_gradients_equal_the_original(
    step, golden_model, golden, golden_facts, golden_inputs, labels, tiny_sizes
):
    model, outputs = run_training_step(step, golden_model, golden, golden_inputs, labels)
    facts = golden_facts[step]
    found = {ORIGINAL_LOSS_NAMES[name]: loss.item() for name, loss in outputs.loss_dict.items()}
    assert found == pytest.approx(facts["losses"], rel=1e-3)
    assert outputs.loss.item() == pytest.approx(facts["total"], rel=1e-3)
    torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()))
    torch.testing.assert_close(outputs.pred_boxes, golden[f"{step}.pred_boxes_cxcywh"], **OUTPUT_TOLERANCE)

    outputs.loss.backward()
    task = next(name for name, task in TASKS.items() if task.model_class == type(model).__name__)
    norms = {}
    for target, sources in assignments_of(task, tiny_sizes["num_hidden_layers"]).items():
        parameter = dict(model.named_parameters()).get(target)
        if parameter is None or parameter.grad is None:
            continue  # buffers of the normalisation, and parameters this step does not use
        norms.update(zip(sources, parameter.grad.reshape(len(sources), -1).norm(dim=-1).tolist()))
    assert norms == pytest.approx(facts["grad_norms"], rel=1e-3, abs=1e-6)


def test_pretraining_predictions_equal_the_original(golden_model, golden, golden_inputs, labels):
    _, mim = run_training_step("train_mim", golden_model, golden, golden_inputs, labels)
    torch.testing.assert_close(mim.visual_token_logits, golden["train_mim.mim_logits"], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(mim.visual_relation_scores, golden["train_mim.vts_pred"], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(mim.pred_boxes, golden["train_mim.pred_boxes_cxcywh"], **OUTPUT_TOLERANCE)
    assert mim.mlm_logits is None and mim.semantic_relation_scores is None

    _, mlm = run_training_step("train_mlm", golden_model, golden, golden_inputs, labels)
    torch.testing.assert_close(mlm.semantic_relation_scores, golden["train_mlm.sts_pred"], **OUTPUT_TOLERANCE)
    torch.testing.assert_close(mlm.pred_boxes, golden["train_mlm.pred_boxes_cxcywh"], **OUTPUT_TOLERANCE)
    assert mlm.mlm_logits.shape == (int(golden["inputs.mlm_masked_positions"].sum()), 216)
    assert mlm.visual_token_logits is None


def test_pretraining_without_labels_predicts_everywhere(golden_model, golden_inputs, labels):
    model = golden_model(OneRefForPreTraining)
    with torch.no_grad():
        everywhere = model(**golden_inputs)
        masked = model(**golden_inputs, **{n: labels[n] for n in ("visual_token_labels", "mlm_labels")})
    assert everywhere.visual_token_logits.shape == (3, 16, 64)
    assert everywhere.mlm_logits.shape == (3, 16, 216)
    assert everywhere.visual_relation_scores.shape == (3, 16, 4)
    assert everywhere.semantic_relation_scores.shape == (3, 14)
    assert everywhere.loss is None
    torch.testing.assert_close(
        everywhere.visual_token_logits[labels["visual_token_labels"] != -100], masked.visual_token_logits
    )
    torch.testing.assert_close(everywhere.mlm_logits[labels["mlm_labels"] != -100], masked.mlm_logits)


def test_the_worst_words_are_dropped_after_the_configured_step(golden_model, golden_inputs, labels):
    model = golden_model(OneRefForPreTraining, loss_weights=only("mlm"), mlm_drop_worst_after=100)
    with torch.no_grad():
        never, before, after = (
            model(**golden_inputs, mlm_labels=labels["mlm_labels"], global_step=step).loss for step in (None, 100, 101)
        )
    assert never == before
    assert after < before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        (["box_labels"], {"box_l1", "box_giou"}),
        (["mask_labels"], {"similarity_focal", "similarity_dice", "mask_focal", "mask_dice"}),
        (
            ["box_labels", "mask_labels"],
            {"box_l1", "box_giou", "similarity_focal", "similarity_dice", "mask_focal", "mask_dice"},
        ),
    ],
)
def test_a_loss_is_active_when_its_labels_are_given(golden_model, golden_inputs, labels, given, expected):
    outputs = golden_model(OneRefForSegmentation)(**golden_inputs, **{name: labels[name] for name in given})
    assert (outputs.loss_dict and set(outputs.loss_dict)) == expected
    assert (outputs.loss is None) == (expected is None)


def test_weights_scale_the_losses_and_unknown_names_are_refused(golden_model, golden_inputs, labels):
    plain = golden_model(OneRefForGrounding)(**golden_inputs, box_labels=labels["box_labels"])
    scaled = golden_model(OneRefForGrounding, loss_weights={"box_l1": 5.0, "box_giou": 0.0})
    scaled = scaled(**golden_inputs, box_labels=labels["box_labels"])
    assert set(scaled.loss_dict) == {"box_l1"}
    assert scaled.loss.item() == pytest.approx(5 * plain.loss_dict["box_l1"].item())
    with pytest.raises(Exception, match="Unknown names in loss_weights: box_l2"):
        OneRefConfig(loss_weights={"box_l2": 1.0})


def test_changes_of_the_configuration_while_loading_are_checked(golden_model, golden_inputs, labels, tmp_path):
    golden_model(OneRefForGrounding).save_pretrained(tmp_path)
    model = OneRefForGrounding.from_pretrained(tmp_path, loss_weights={"box_l1": 5.0})
    assert model.config.loss_weights == {**OneRefConfig().loss_weights, "box_l1": 5.0}
    assert model(**golden_inputs, box_labels=labels["box_labels"]).loss.isfinite()
    for change, message in (
        ({"loss_weights": {"box_l2": 1.0}}, "Unknown names in loss_weights: box_l2"),
        ({"shared_image_layers": -1}, r"shared_image_layers \(-1\) must lie between"),
        ({"drop_path_rate": 2.0}, "drop_path_rate must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            OneRefForGrounding.from_pretrained(tmp_path, **change)
    for name in ("patch_size", "num_attention_heads", "hidden_size"):
        with pytest.raises(Exception, match=f"{name} must be at least 1, got 0"):
            OneRefConfig(**{name: 0})


def test_every_parameter_learns_or_is_known_not_to(golden_model, golden, golden_inputs, labels):
    unused = {
        "train_rec": {"logit_scale", "mask_token"},
        "train_rec_res_contrastive": {"mask_token"},
        "train_mim": {"logit_scale", "box_head", "mlm_head", "semantic_relation_head"},
        "train_mlm": {"logit_scale", "box_head", "mask_token", "visual_token_head", "visual_relation_head"},
    }
    for step, expected in unused.items():
        model, outputs = run_training_step(step, golden_model, golden, golden_inputs, labels)
        outputs.loss.backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        found = {re.sub(r"^oneref\.(beit3\.vision_embeddings\.)?", "", name).split(".")[0] for name in without}
        assert found == expected, step


def test_freezing_leaves_the_heads(golden_model, golden, golden_inputs, labels):
    model = golden_model(OneRefForGrounding)
    model.freeze_backbone()
    run_training_step("train_rec", golden_model, golden, golden_inputs, labels, model)[1].loss.backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning and not any("beit3" in name for name in learning)
    assert {name.split(".")[0] for name in learning} == {"oneref", "box_head"}
    model.unfreeze_backbone()
    assert all(p.requires_grad for p in model.parameters())


def test_the_mask_head_can_be_skipped(golden_model, golden_inputs, labels):
    model = golden_model(OneRefForSegmentation)
    calls = []
    model.mask_head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        outputs = model(**golden_inputs, mask_labels=labels["mask_labels"], predict_masks=False)
        complete = model(**golden_inputs)
    assert outputs.pred_masks is None and len(calls) == 1
    assert torch.equal(outputs.scores, complete.scores) and torch.equal(outputs.pred_boxes, complete.pred_boxes)
    assert set(outputs.loss_dict) == {"similarity_focal", "similarity_dice"}


def test_a_phrase_gets_the_same_answer_alone_in_a_batch_and_with_more_padding(golden_model, golden_inputs):
    model = golden_model(OneRefForSegmentation)
    with torch.no_grad():
        batch = model(**golden_inputs)
        for row in range(3):
            length = int(golden_inputs["attention_mask"][row].sum())
            alone = model(
                pixel_values=golden_inputs["pixel_values"][row : row + 1],
                input_ids=golden_inputs["input_ids"][row : row + 1, :length],
            )
            for name in ("pred_boxes", "pred_masks", "scores", "similarity_map"):
                torch.testing.assert_close(alone[name][0], batch[name][row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", HEADS)
def test_every_phrase_gets_the_answer_about_its_own_picture(model_class, golden_model, golden_inputs):
    model = golden_model(model_class)
    pictures, owners = golden_inputs["pixel_values"][:2], torch.tensor([1, 0, 1])
    pixel_mask = torch.ones(2, 64, 64)
    pixel_mask[0, :16], pixel_mask[1, :, 48:] = 0, 0
    texts = {name: golden_inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(pixel_values=pictures[owners], pixel_mask=pixel_mask[owners], **texts)
        others = [
            model(pixel_values=pictures, pixel_mask=pixel_mask, image_indices=owners, **texts),
            model(encoded_images=model.encode_images(pictures), pixel_mask=pixel_mask, image_indices=owners, **texts),
        ]
    for found in others:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=name)


class Exported(torch.nn.Module):
    """A model of which only the forward pass is left."""

    def __init__(self, model):
        super().__init__()
        self.config, self.wrapped = model.config, model

    def forward(self, pixel_values, input_ids, attention_mask=None, pixel_mask=None, **options):
        return self.wrapped(pixel_values, input_ids, attention_mask, pixel_mask, **options)


@pytest.mark.parametrize("wrap", [lambda model: model, Exported])
@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_many_phrases_are_answered_in_parts_and_in_order(golden_model, golden_inputs, wrap, max_tokens):
    torch.manual_seed(0)
    model = golden_model(OneRefForSegmentation)
    lengths = torch.tensor([9, 3, 3, 14, 5, 9, 3, 16, 5])
    attention_mask = (torch.arange(16) < lengths[:, None]).long()
    input_ids = torch.randint(4, 216, (9, 16)).where(attention_mask.bool(), 1)
    pictures = golden_inputs["pixel_values"][:2]
    owners = torch.tensor([0, 1, 0, 0, 1, 1, 0, 1, 0])
    pixel_mask = torch.ones(2, 64, 64)
    pixel_mask[0, :16] = 0
    calls, embedded = [], []
    model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    model.backbone.vision_embeddings.register_forward_hook(lambda _, args, out: embedded.append(len(args[0])))
    answers = answer_phrases(
        wrap(model), pictures, input_ids, attention_mask, pixel_mask, owners, max_tokens_per_forward=max_tokens
    )
    parts = [kwargs if "input_ids" in kwargs else dict(zip(PARAMETERS, args)) for args, kwargs in calls]
    shapes = [tuple(part["input_ids"].shape) for part in parts]
    assert (
        shapes
        == {
            1: [(1, 3)] * 3 + [(1, 5)] * 2 + [(1, 9)] * 2 + [(1, 14), (1, 16)],
            60: [(3, 3), (2, 5), (2, 9), (1, 14), (1, 16)],
            10_000: [(9, 16)],
        }[max_tokens]
    )
    # Equal lengths need no mask, so that no attention kernel is ruled out.
    assert all((part["attention_mask"] is None) == (max_tokens < 10_000) for part in parts)
    assert embedded == ([2] if isinstance(wrap(model), OneRefForSegmentation) else [shape[0] for shape in shapes])
    assert set(answers) == {"pred_boxes", "scores", "pred_masks", "similarity_map", "image_embeds", "text_embeds"}
    with torch.no_grad():
        for row, length in enumerate(lengths.tolist()):
            picture = slice(owners[row], owners[row] + 1)
            alone = model(
                pixel_values=pictures[picture],
                pixel_mask=pixel_mask[picture],
                input_ids=input_ids[row : row + 1, :length],
            )
            for name in answers:
                torch.testing.assert_close(answers[name][row], alone[name][0], atol=1e-5, rtol=0, msg=name)


PARAMETERS = ("pixel_values", "input_ids", "attention_mask", "pixel_mask")


def test_nothing_large_outlives_its_part(golden_model, golden_inputs):
    model = golden_model(OneRefForGrounding)
    large = []

    def hook(module, args, outputs):
        assert all(storage.expired() for storage in large)
        large.extend(StorageWeakRef(outputs[name].untyped_storage()) for name in ("image_embeds", "last_hidden_state"))

    model.oneref.register_forward_hook(hook)
    texts = {name: golden_inputs[name] for name in ("input_ids", "attention_mask")}
    answer_phrases(model, golden_inputs["pixel_values"], **texts, max_tokens_per_forward=1)
    assert len(large) == 6


def test_one_picture_serves_all_phrases_and_options_reach_the_model(golden_model, golden_inputs):
    model = golden_model(OneRefForSegmentation)
    texts = {name: golden_inputs[name] for name in ("input_ids", "attention_mask")}
    picture = golden_inputs["pixel_values"][:1]
    answers = answer_phrases(model, picture, **texts, predict_masks=False)
    with torch.no_grad():
        expected = model(pixel_values=picture.expand(3, -1, -1, -1), **texts)
    assert "pred_masks" not in answers and not answers.pred_boxes.requires_grad
    torch.testing.assert_close(answers.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="Got 2 images but 3 texts"):
        answer_phrases(model, golden_inputs["pixel_values"][:2], **texts)
    with pytest.raises(ValueError, match="There are no phrases"):
        answer_phrases(model, picture, **{name: value[:0] for name, value in texts.items()})


@pytest.mark.parametrize("wrap", [lambda model: model, Exported])
def test_pictures_may_be_masked_or_of_another_size_for_many_phrases(golden_model, golden_inputs, wrap):
    model = golden_model(OneRefForGrounding)
    texts = {name: golden_inputs[name] for name in ("input_ids", "attention_mask")}
    pictures = torch.nn.functional.interpolate(golden_inputs["pixel_values"], size=(96, 96))
    masked = torch.arange(36) % 4 == torch.arange(3)[:, None]
    options = {"bool_masked_pos": masked, "interpolate_pos_encoding": True}
    answers = answer_phrases(wrap(model), pictures, **texts, max_tokens_per_forward=1, **options)
    with torch.no_grad():
        expected = model(pictures, **texts, **options)
        plain = model(pictures, **texts, interpolate_pos_encoding=True)
    torch.testing.assert_close(answers.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
    assert (plain.pred_boxes - expected.pred_boxes).abs().max() > 1e-3
    encoded = model.encode_images(pictures, interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="Encoded images can no longer be masked"):
        model(encoded_images=encoded, **texts, bool_masked_pos=masked)


def test_masks_in_parts_equal_the_original(golden_model, golden, golden_inputs, monkeypatch):
    monkeypatch.setattr("oneref_hf.modeling_oneref.MASKS_AT_ONCE", 2)
    model = golden_model(OneRefForSegmentation)
    sizes = []
    cosines = model.mask_head._cosines
    model.mask_head._cosines = lambda patches, phrases: sizes.append(len(patches)) or cosines(patches, phrases)
    with torch.no_grad():
        masks = model(**golden_inputs).pred_masks
        model.mask_head.train()
        model(**golden_inputs)  # in training the norm is over all of them
    torch.testing.assert_close(masks, golden["eval.mask_logits"][:, 0], **OUTPUT_TOLERANCE)
    assert sizes == [2, 1, 3]


def test_bfloat16_gives_the_same_answers(golden_model, golden_inputs):
    with torch.no_grad():
        expected = golden_model(OneRefForSegmentation)(**golden_inputs)
        found = golden_model(OneRefForSegmentation).to(torch.bfloat16)(**golden_inputs)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, atol=0.01, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=0.01, rtol=0)
    torch.testing.assert_close(found.pred_masks.float(), expected.pred_masks, atol=0.05, rtol=0)
    assert found.pred_boxes.dtype == found.scores.dtype == torch.float32


@pytest.mark.parametrize("model_class", [OneRefModel, *HEADS])
def test_evaluation_compiles_into_one_graph(model_class, tiny_sizes, golden_inputs):
    torch.manual_seed(0)
    model = model_class(OneRefConfig(**tiny_sizes)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, found = model(**golden_inputs), compiled(**golden_inputs)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model_class", [OneRefModel, *HEADS])
def test_loading_initialises_nothing(model_class, golden_model, tmp_path):
    golden_model(OneRefForPreTraining).oneref.save_pretrained(tmp_path / "base")
    golden_model(OneRefForSegmentation).save_pretrained(tmp_path / "complete")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model_class.from_pretrained(tmp_path / ("base" if model_class is OneRefModel else "complete"))
    drawn = not torch.equal(torch.get_rng_state(), before)
    assert drawn == (model_class is OneRefForPreTraining)  # whose own heads are in neither


def test_one_modality_is_enough_for_embeddings(golden_model, golden_inputs, tiny_sizes):
    model = golden_model(OneRefForGrounding)
    with torch.no_grad():
        image = model.oneref(pixel_values=golden_inputs["pixel_values"])
        text = model.oneref(**{name: golden_inputs[name] for name in ("input_ids", "attention_mask")})
    assert image.image_embeds.shape == text.text_embeds.shape == (3, 128)
    assert image.similarity_map is None and text.image_embeds is None
    torch.testing.assert_close(image.image_embeds.norm(dim=-1), torch.ones(3))
    with pytest.raises(ValueError, match="input_ids is missing"):
        model(pixel_values=golden_inputs["pixel_values"])


# Scores


def test_coverage_measures_overlap_with_every_patch():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.3125, 0.5, 0.125, 1.0], [1.2, 1.2, 0.2, 0.2]])
    coverage = box_coverage(boxes, (2, 4))
    torch.testing.assert_close(coverage[0], torch.tensor([[0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0]]))
    torch.testing.assert_close(coverage[1], torch.tensor([[0, 0.5, 0, 0], [0, 0.5, 0, 0]]))
    assert coverage[2].sum() == 0
    area = boxes[:2, 2] * boxes[:2, 3] * 8
    torch.testing.assert_close(coverage[:2].sum((1, 2)), area)


def test_the_score_is_the_contrast_between_inside_and_outside():
    box = torch.tensor([[0.25, 0.5, 0.5, 1.0]])  # the left half
    similarity = torch.full((1, 4, 4), -0.6)
    similarity[:, :, :2] = 0.8
    assert region_contrast_score(similarity, box).item() == pytest.approx((1 + (0.8 + 0.6) / 2) / 2)
    assert region_contrast_score(-similarity, box).item() == pytest.approx((1 - (0.8 + 0.6) / 2) / 2)
    assert region_contrast_score(torch.full((1, 4, 4), 0.3), box).item() == pytest.approx(0.5)

    # Padding below the picture counts neither inside nor outside.
    similarity[:, 2:] = 1.0
    pixel_mask = torch.zeros(1, 64, 64)
    pixel_mask[:, :32] = 1
    assert region_contrast_score(similarity, box, pixel_mask=pixel_mask).item() == pytest.approx(0.85)


def test_the_score_prefers_the_mask_unless_it_is_empty():
    box = torch.tensor([[0.75, 0.5, 0.5, 1.0]])  # the right half
    similarity = torch.full((1, 4, 4), -1.0)
    similarity[:, :, 0] = 1.0
    mask_logits = torch.full((1, 32, 32), -0.5)
    empty = region_contrast_score(similarity, box, mask_logits)
    assert empty == region_contrast_score(similarity, box) < 0.5
    mask_logits[:, :, :8] = 0.5
    assert region_contrast_score(similarity, box, mask_logits).item() == pytest.approx(1.0)


@pytest.mark.slow  # and needs a C++ compiler
def test_the_score_compiles_for_any_shape():
    """In earnest, by Inductor: it has no adaptive pooling for shapes that are not known."""
    compiled = torch.compile(region_contrast_score, dynamic=True)
    for phrases, side in ((2, 4), (3, 8)):
        similarity, mask_logits = torch.rand(phrases, side, side) * 2 - 1, torch.randn(phrases, 4 * side, 4 * side)
        pixel_mask = (torch.rand(phrases, 16 * side, 16 * side) > 0.3).long()
        answer = (similarity, torch.rand(phrases, 4), mask_logits, pixel_mask)
        torch.testing.assert_close(compiled(*answer), region_contrast_score(*answer))


def test_an_answer_that_fills_the_picture_is_judged_by_its_inside():
    score = region_contrast_score(torch.full((1, 4, 4), 0.6), torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    assert score.item() == pytest.approx((1 + 0.3) / 2)


def test_a_model_trained_on_masks_only_takes_box_and_score_from_its_mask(golden_model, golden_inputs):
    with torch.no_grad():
        plain = golden_model(OneRefForSegmentation)(**golden_inputs)
        model = golden_model(OneRefForSegmentation, trained_on_masks_only=True)
        from_mask, not_wanted = (model(**golden_inputs, predict_masks=wanted) for wanted in (True, False))
    assert torch.equal(plain.pred_masks, from_mask.pred_masks)
    for logits, box, score in zip(from_mask.pred_masks, from_mask.pred_boxes, from_mask.scores):
        rows, columns = (logits > 0).nonzero().unbind(1)
        expected = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 32
        torch.testing.assert_close(cxcywh_to_xyxy(box), expected)
        contrast = logits[logits > 0].mean() - logits[logits <= 0].mean()
        assert score.item() == pytest.approx(((1 + contrast / 2) / 2).item(), abs=1e-5)
    assert torch.equal(not_wanted.pred_boxes, from_mask.pred_boxes)
    assert torch.equal(not_wanted.scores, from_mask.scores)


def test_the_box_head_of_a_model_trained_on_masks_only_is_warned_of(golden_model, caplog):
    logging.Logger.warning_once.cache_clear()  # transformers' own method, which remembers what it said
    for known in (False, True):
        golden_model(OneRefForGrounding, trained_on_masks_only=known)
        assert ("its box head knows nothing" in caplog.text) is known


def test_tight_boxes_fall_back_on_an_empty_mask():
    logits = torch.full((2, 4, 8), -1.0)
    logits[0, 1:3, 5] = 1.0
    boxes = tight_boxes(logits, torch.full((2, 4), 0.25))
    torch.testing.assert_close(boxes, torch.tensor([[5.5 / 8, 0.5, 1 / 8, 0.5], [0.25] * 4]))

    picture = torch.zeros(2, 16, 32)
    picture[:, 8:] = 1
    boxes = tight_boxes(logits, torch.full((2, 4), 0.25), picture)
    torch.testing.assert_close(boxes[0], torch.tensor([5.5 / 8, 2.5 / 4, 1 / 8, 1 / 4]))


def test_scores_stay_in_range_whatever_the_prediction(golden_model, golden_inputs):
    torch.manual_seed(0)
    similarity = torch.rand(500, 6, 6) * 2 - 1
    scores = region_contrast_score(similarity, torch.rand(500, 4), torch.randn(500, 48, 48))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert not golden_model(OneRefForGrounding)(**golden_inputs).scores.requires_grad
