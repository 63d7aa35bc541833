# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What the small model starts from: its vocabulary, its weights and its visual tokenizer."""

import copy
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oneref_hf import OneRefConfig, OneRefForPreTraining, OneRefForSegmentation, OneRefProcessor, VqkdModel
from oneref_hf.data.scenes import SceneRecords, scene_phrases, scene_sample, scene_words, vocabulary
from oneref_hf.data.scenes.objects import COLOURS
from oneref_hf.data.scenes.shapes import SHAPES
from oneref_hf.data.scenes.wording import names_a_colour
from oneref_hf.small_model import (
    VISUAL_VOCAB_SIZE,
    fit_visual_tokenizer,
    fresh_model,
    scene_tokenizer,
    small_processor,
    write_starting_point,
)
from oneref_hf.small_model_optimizer import Muon, orthogonalized
from oneref_hf.small_model_pretraining import _Lesson, named_scenes, pretrain


@pytest.fixture(scope="module")
def tokenizer():
    return scene_tokenizer()


def pictures(count, size=128):
    return [record["image"] for record in SceneRecords("train", count, seed=5, size=size)]


class TestTokenizer:
    def test_one_piece_per_word(self, tokenizer):
        for word in vocabulary():
            assert tokenizer.tokenize(word) == [f"▁{word}"], word

    def test_phrases_lose_nothing(self, tokenizer):
        for phrase in scene_phrases("val", 100):
            ids = tokenizer(phrase)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == phrase

    def test_other_words_are_spelt(self, tokenizer):
        assert tokenizer.tokenize("zebra") == ["▁", "z", "e", "b", "r", "a"]

    def test_special_ids_are_those_of_every_model(self, tokenizer):
        names = ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id", "mask_token_id")
        assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3, len(tokenizer) - 1]


@pytest.mark.parametrize(
    ("phrase", "subject", "object_"),
    [
        ("the dotted star-shaped thing right of the blue crescent moon", "thing", "moon"),
        ("2nd plus sign from left", "sign", None),
        ("red one that is not a heart", "one", "heart"),
    ],
)
def test_subject_and_object_of_scene_phrases(phrase, subject, object_):
    assert scene_words([phrase]) == {"subject": [subject], "object": [object_]}


def test_phrases_that_name_colours_are_known():
    """Against what they mean."""

    def colour(form):
        if form.get("colour") or form.get("attribute") == "colour":
            return True
        return any(colour(part) for part in form.values() if isinstance(part, dict))

    samples = [scene_sample("train", number) for number in range(300)]
    for sample in samples:
        assert names_a_colour(sample.phrase) == colour(sample.form), sample.phrase
    phrases = [sample.phrase for sample in samples]
    assert any("violet" in phrase for phrase in phrases) and any("non-" in phrase for phrase in phrases)
    assert 0.3 < sum(map(names_a_colour, phrases)) / len(phrases) < 0.7


class TestVisualTokenizer:
    def test_same_pictures_same_codes_and_many_of_them(self):
        drawn = pictures(90)
        first, second = fit_visual_tokenizer(drawn, seed=3), fit_visual_tokenizer(drawn, seed=3)
        torch.testing.assert_close(first.codebook.weight, second.codebook.weight, rtol=0, atol=0)
        pixels = torch.stack([as_pixels(picture) for picture in pictures(20) if picture.size == (128, 128)])
        codes = first.get_codebook_indices(pixels)
        assert codes.shape[1] == 64
        assert len(codes.unique()) > 100

    def test_codes_name_the_nearest_direction(self):
        """Independent of the model: components, layer norm and cosine spelt out in numpy for one patch."""
        model = fit_visual_tokenizer(pictures(90))
        picture = pictures(1)[0].resize((128, 128))
        patch = np.asarray(picture, dtype=np.float64)[16:32, 32:48].transpose(2, 0, 1).ravel() / 127.5 - 1
        embedding = model.embeddings.patch_embedding
        features = embedding.weight.detach().double().flatten(1).numpy() @ patch + embedding.bias.detach().numpy()
        features = (features - features.mean()) / np.sqrt(features.var() + model.config.layer_norm_eps)
        expected = (model.codebook.weight.detach().numpy() @ (100 * np.tanh(features / 100))).argmax()
        assert model.get_codebook_indices(as_pixels(picture)[None])[0, 8 + 2] == expected

    def test_brightness_and_colour_tell_patches_apart(self):
        model = fit_visual_tokenizer(pictures(90))
        plain = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "yellow", "green")]
        codes = model.get_codebook_indices(torch.stack([as_pixels(picture) for picture in plain]))
        assert len(codes.unique()) == 4

    def test_too_few_pictures(self):
        with pytest.raises(ValueError, match="512 codes need 5120"):
            fit_visual_tokenizer(pictures(2))


def as_pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


class TestOptimizer:
    @pytest.mark.parametrize("shape", [(4, 24, 40), (4, 40, 24), (2, 32, 32)])
    def test_singular_values_become_alike(self, shape):
        matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        result = orthogonalized(matrices)
        # In the singular vectors of the matrix the result is diagonal, with small entries raised to about 1.
        inside = left.mT @ result @ right.mT
        diagonal = inside.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(inside, torch.diag_embed(diagonal), rtol=0, atol=1e-4)
        relative = values / torch.linalg.matrix_norm(matrices)[:, None]
        assert ((diagonal > 0.65) & (diagonal < 1.25))[relative > 0.02].all()

    def test_a_step_is_that_of_torch(self):
        """`torch.optim.Muon` in bfloat16, with the same scale; packed matrices are three of its."""
        torch.manual_seed(0)
        start, gradients = torch.randn(48, 16), [torch.randn(48, 16) for _ in range(3)]
        ours = torch.nn.Parameter(start.clone())
        parts = [torch.nn.Parameter(part.clone()) for part in start.split(16)]
        options = {"lr": 0.01, "weight_decay": 0.1}
        first = Muon([ours], **options)
        second = torch.optim.Muon(parts, adjust_lr_fn="match_rms_adamw", **options)
        for gradient in gradients:
            ours.grad = gradient.clone()
            for part, its in zip(parts, gradient.split(16)):
                part.grad = its.clone()
            first.step()
            second.step()
        moved = (ours - start).detach()
        assert moved.abs().mean() > 0.003
        torch.testing.assert_close(moved, torch.cat(parts).detach() - start, rtol=0.05, atol=1e-3)


@pytest.fixture(scope="module")
def processor(tokenizer):
    return small_processor(tokenizer)


@pytest.fixture(scope="module")
def scenes(processor):
    return named_scenes(0, 6, processor)


def normalised(pixels, processor):
    """What the model gets of pixels from 0 to 255."""
    statistics = (processor.image_processor.image_mean, processor.image_processor.image_std)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return (pixels.float() / 255 - mean) / deviation


class TestPretraining:
    def test_what_is_known_is_what_is_drawn(self, processor, scenes):
        for number, record in enumerate(SceneRecords("train", 6, size=128)):
            sample = scene_sample("train", number)
            height, width = record["height"], record["width"]
            prepared = processor(
                record["image"],
                sample.phrase,
                masks=[np.array(record["mask"])],
                boxes=[np.array(record["box"])],
            )
            assert torch.equal(scenes.shown[number] == sample.target + 1, prepared["mask_labels"][0].bool())
            assert len(scenes.shown[number].unique()) == 1 + len(sample.scene.objects)
            torch.testing.assert_close(scenes.boxes[number, sample.target], prepared["box_labels"][0])
            ids, target, kind, coloured = scenes.phrases[number][0]
            assert ids == prepared["input_ids"][0].tolist()
            assert (target, kind) == (sample.target, sample.expression_type)
            assert coloured == names_a_colour(sample.phrase)
            inside = prepared["pixel_mask"][0].bool()
            assert inside.sum() == height * width
            difference = normalised(scenes.pixel_values[number], processor) - prepared["pixel_values"][0]
            assert difference[:, inside].abs().max() < 0.02
            shown = sample.scene.objects[sample.target]
            colour, shape, *_ = scenes.names[number, sample.target].tolist()
            assert (list(COLOURS)[colour], list(SHAPES)[shape]) == (shown.colour, shown.shape)

    def test_mirrored_scenes_are_scenes(self, tokenizer, processor, scenes):
        """Mirroring picture and words twice changes nothing; a place that a phrase names moves with its object."""
        model = OneRefForSegmentation(tiny_config(tokenizer))
        lesson = _Lesson(model, processor).eval()
        ids = torch.tensor(tokenizer("the leftmost star right of the left one")["input_ids"])
        assert tokenizer.decode(lesson.mirrored[ids], skip_special_tokens=True).strip() == (
            "the rightmost star left of the right one"
        )
        assert torch.equal(lesson.mirrored[lesson.mirrored], torch.arange(len(tokenizer)))
        flipped = dataclasses.replace(
            scenes,
            pixel_values=scenes.pixel_values.flip(-1),
            shown=scenes.shown.flip(-1),
            boxes=scenes.boxes * torch.tensor([-1.0, 1, 1, 1]) + torch.tensor([1.0, 0, 0, 0]),
            phrases=[
                [(lesson.mirrored[torch.tensor(ids)].tolist(), *others) for ids, *others in phrases]
                for phrases in scenes.phrases
            ],
        )
        chosen, spoken = torch.arange(6), torch.tensor([0, 1, 2, 2, 1, 0])
        with torch.no_grad():
            losses, _ = lesson(scenes, chosen, spoken, mirror=True)
            expected, _ = lesson(flipped, chosen, spoken)
            plain, _ = lesson(scenes, chosen, spoken)
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name], msg=name)
        assert (losses["box_l1"] - plain["box_l1"]).abs() > 1e-4

    def test_colours_fade_where_the_phrase_names_none(self, tokenizer, processor, scenes):
        """Faded pictures are grey ones, whose patches name no colour; of a phrase with a colour nothing fades."""
        lesson = _Lesson(OneRefForSegmentation(tiny_config(tokenizer)), processor).eval()
        phrases = {"the largest star": False, "the red star": True}
        said = [(tokenizer(phrase)["input_ids"], 0, "category", coloured) for phrase, coloured in phrases.items()]
        scenes = dataclasses.replace(scenes, phrases=[said] * 6)
        pixels = scenes.pixel_values.float()
        half = (pixels + pixels.mean(1, keepdim=True)) / 2
        chosen, plain, coloured = torch.arange(6), torch.zeros(6, dtype=int), torch.ones(6, dtype=int)
        with torch.no_grad():
            losses, answers = lesson(scenes, chosen, plain, saturation=torch.full((6,), 0.5))
            expected, _ = lesson(dataclasses.replace(scenes, pixel_values=half), chosen, plain)
            for name, loss in losses.items():
                if name != "colour":
                    torch.testing.assert_close(loss, expected[name], msg=name)
            assert losses["colour"] == 0 and not len(answers["colour"]) and len(answers["shape"])
            some, _ = lesson(scenes, chosen, plain, saturation=torch.tensor([0.0, 1, 1, 1, 1, 1]))
            rest, _ = lesson(scenes, chosen[1:], plain[1:])
            torch.testing.assert_close(some["colour"], rest["colour"])
            kept, _ = lesson(scenes, chosen, coloured, saturation=torch.zeros(6))
            expected, _ = lesson(scenes, chosen, coloured)
            for name, loss in kept.items():
                torch.testing.assert_close(loss, expected[name], msg=name)

    def test_cells_of_patches_are_those_of_the_mask_head(self, tokenizer, processor, scenes):
        """Patch by patch and row by row, as `OneRefMaskHead` lays out its logits."""
        lesson = _Lesson(OneRefForSegmentation(tiny_config(tokenizer)), processor)
        cells = lesson._cells(scenes.shown).view(6, 64, 64, 4)
        for number, row, column in ((0, 0, 0), (1, 17, 90), (2, 127, 127), (3, 64, 30)):
            patch, cell = row // 16 * 8 + column // 16, row % 16 // 2 * 8 + column % 16 // 2
            assert cells[number, patch, cell, row % 2 * 2 + column % 2] == scenes.shown[number, row, column]
        shares = (scenes.shown == 1).float()
        picture = lesson._picture((lesson._cells(scenes.shown) == 1).float().mean(-1))
        torch.testing.assert_close(picture, torch.nn.functional.avg_pool2d(shares, 2))

    def test_masks_are_those_that_the_model_answers_with(self, tokenizer, processor, scenes):
        """`miou` is the mean IoU of the model's answers with the drawn masks at its resolution."""
        torch.manual_seed(0)
        model = OneRefForSegmentation(tiny_config(tokenizer)).eval()
        ids, target, *_ = scenes.phrases[2][1]
        with torch.no_grad():
            _, answers = _Lesson(model, processor).eval()(scenes, torch.tensor([2]), torch.tensor([1]))
            pixels = normalised(scenes.pixel_values[2:3], processor)
            outputs = model(pixel_values=pixels, input_ids=torch.tensor([ids]))
        found = outputs.pred_masks[0] > 0
        inside = torch.nn.functional.avg_pool2d((scenes.shown[2:3] == target + 1).float(), 2)[0] >= 0.5
        assert 0 < (found & inside).sum() < (found | inside).sum()
        torch.testing.assert_close(answers["miou"].item(), ((found & inside).sum() / (found | inside).sum()).item())

    def test_hard_types_are_learnt_from_more_often(self, tokenizer, processor, scenes, monkeypatch):
        """As often as the weights say, over many draws of the phrases."""
        said = []

        def lesson(self, scenes, chosen, spoken, mirror=False, saturation=None):
            said.extend(scenes.phrases[scene][phrase][2] for scene, phrase in zip(chosen.tolist(), spoken.tolist()))
            return {"loss": next(self.parameters()).sum()}, {}

        many = dataclasses.replace(scenes, phrases=[[([0], 0, "place", False), ([0], 0, "ordinal", False)]] * 6)
        monkeypatch.setattr(_Lesson, "forward", lesson)
        monkeypatch.setattr(_Lesson, "examine", lambda *_: {})
        monkeypatch.setattr("oneref_hf.small_model_pretraining._HELD_OUT", 0)
        pretrain(OneRefForSegmentation(tiny_config(tokenizer)), processor, many, steps=200, batch_size=6)
        assert said.count("ordinal") / len(said) == pytest.approx(4.0 / 4.4, abs=0.05)

    def test_it_learns_and_continues_where_it_was_stopped(self, tokenizer, processor, tmp_path, monkeypatch):
        drawn = pictures(90)
        scenes = named_scenes(0, 232, processor)
        start = fresh_model(tokenizer, fit_visual_tokenizer(drawn), drawn)
        monkeypatch.setattr("oneref_hf.small_model_pretraining._SAVED_EVERY", 12)
        monkeypatch.setattr("oneref_hf.small_model_pretraining._HELD_OUT", 32)

        def trained(checkpoint=None, stop=None):
            model, said = copy.deepcopy(start), []

            def report(sentence):
                said.append(sentence)
                if stop is not None and sentence.startswith(f"step {stop}:"):
                    monkeypatch.setattr("oneref_hf.small_model_pretraining.Muon.step", interrupted)

            return pretrain(model, processor, scenes, 24, 16, checkpoint=checkpoint, report=report), model

        def interrupted(self):
            raise KeyboardInterrupt

        before, _ = _examined(start, processor, scenes)
        expected, model = trained()
        assert expected["colour"] > before["colour"] + 0.1 and expected["pointing"] > before["pointing"]
        path, step = tmp_path / "checkpoint", Muon.step
        with pytest.raises(KeyboardInterrupt):
            trained(path, stop=12)
        monkeypatch.setattr("oneref_hf.small_model_pretraining.Muon.step", step)
        scores, continued = trained(path)
        assert scores == pytest.approx(expected, abs=1e-6)
        for name, weight in continued.state_dict().items():
            torch.testing.assert_close(weight, model.state_dict()[name], msg=name)
        with pytest.raises(ValueError, match="is of a run with other options"):
            pretrain(copy.deepcopy(start), processor, scenes, 25, 16, checkpoint=path)
        with pytest.raises(ValueError, match="is of a run with other options"):
            pretrain(copy.deepcopy(start), processor, scenes, 24, 16, checkpoint=path, origin="elsewhere")

    def test_too_few_scenes(self, processor, scenes):
        with pytest.raises(ValueError, match="give 248 or more"):
            pretrain(None, processor, scenes, steps=1)

    def test_no_steps(self, processor, scenes, monkeypatch):
        monkeypatch.setattr("oneref_hf.small_model_pretraining._HELD_OUT", 0)
        with pytest.raises(ValueError, match="give 1 or more"):
            pretrain(None, processor, scenes, steps=0, batch_size=6)


def _examined(model, processor, scenes):
    lesson = _Lesson(copy.deepcopy(model), processor)
    return lesson.examine(scenes, len(scenes.phrases) - 32), lesson


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def tiny_config(tokenizer):
    return OneRefConfig(**TINY, vocab_size=len(tokenizer), image_size=128, patch_size=16, max_position_embeddings=66)


def test_starting_point_is_complete_and_never_overwritten(tmp_path, tmp_path_factory, monkeypatch):
    kept, unlink = tmp_path_factory.mktemp("kept") / "scenes-start.checkpoint", Path.unlink

    def keep(path, **options):
        if path.name == kept.name:
            shutil.copyfile(path, kept)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", keep)
    paths, scores = write_starting_point(tmp_path, pictures(90), steps=2, scenes=248)
    assert all(0 <= score <= 1 for score in scores.values()) and {"accuracy", "miou", "pointing"} <= set(scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scenes-start", "scenes-visual-tokenizer"]
    processor = OneRefProcessor.from_pretrained(paths["start"])
    model = OneRefForPreTraining.from_pretrained(paths["start"])
    codes = VqkdModel.from_pretrained(paths["visual-tokenizer"]).config.codebook_size
    assert model.visual_token_head.out_features == codes == VISUAL_VOCAB_SIZE
    inputs = processor(pictures(1)[0], "the red star")
    assert inputs["pixel_values"].shape[-2:] == (128, 128)
    assert inputs["input_ids"].max() < model.config.vocab_size
    assert sum(parameter.numel() for parameter in model.parameters()) < 12_000_000
    with pytest.raises(FileExistsError, match="delete it"):
        write_starting_point(tmp_path, [], steps=1, scenes=1)

    # Killed just before its last name was given: the same call finishes.
    ended = tmp_path / "ended"
    shutil.copytree(paths["visual-tokenizer"], ended / "scenes-visual-tokenizer")
    with pytest.raises(FileExistsError, match="visual-tokenizer' is there already"):
        write_starting_point(ended, pictures(90), steps=2, scenes=248)
    shutil.copyfile(kept, ended / "scenes-start.checkpoint")
    write_starting_point(ended, pictures(90), steps=2, scenes=248)
    assert sorted(path.name for path in ended.iterdir()) == ["scenes-start", "scenes-visual-tokenizer"]

    for name in ("again", "third"):
        (tmp_path / name).mkdir()
    # A second call goes on from what the first has written: nothing is learnt at a rate of 0.
    again, _ = write_starting_point(
        tmp_path / "again", pictures(90), steps=1, scenes=248, seed=1, learning_rate=0.0, weights=paths["start"]
    )
    weights = dict(OneRefForSegmentation.from_pretrained(paths["start"]).named_parameters())
    for name, weight in OneRefForSegmentation.from_pretrained(again["start"]).named_parameters():
        torch.testing.assert_close(weight, weights[name], msg=name)
    other = tmp_path / "other"
    OneRefForSegmentation(OneRefConfig(**TINY, image_size=64)).save_pretrained(other)
    with pytest.raises(ValueError, match="is not a model for drawn scenes"):
        write_starting_point(tmp_path / "third", pictures(90), steps=1, scenes=248, weights=other)
