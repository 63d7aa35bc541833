# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The pipeline: every form of call, against processor and model used by hand, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset as HubDataset
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from oneref_hf import (
    Beit3Model,
    OneRefForGrounding,
    OneRefForPreTraining,
    OneRefForSegmentation,
    OneRefModel,
    ReferringExpressionPipeline,
)
from oneref_hf.image_processing_pil_oneref import OneRefImageProcessorPil
from oneref_hf.pipeline_oneref import AutoModelForReferringExpression, UnsupportedModelError


COFFEE, ASTRONAUT, ROCKET = "coffee_210x140.png", "astronaut_150x201.png", "rocket_63x40.png"


@pytest.fixture(scope="session")
def model_directory(golden_model, tiny_processor, tmp_path_factory):
    """Returns a function `model_class -> Path` that saves a tiny model and its processor."""

    def save(model_class):
        folder = tmp_path_factory.mktemp(model_class.__name__)
        golden_model(model_class).save_pretrained(folder)
        tiny_processor.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def segmentation_directory(model_directory):
    return model_directory(OneRefForSegmentation)


@pytest.fixture(scope="module")
def finder(segmentation_directory):
    return pipeline("referring-expression", model=str(segmentation_directory), device="cpu")


@pytest.fixture(scope="module")
def paths(fixtures_dir):
    return [str(fixtures_dir / name) for name in (COFFEE, ASTRONAUT, ROCKET)]


def assert_equal(answer, expected, tolerance=1e-5):
    """Equal up to the rounding of boxes and what a different batch does to the last bits."""
    assert type(answer) is type(expected)
    if isinstance(answer, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected):
            assert_equal(one, other, tolerance)
    elif answer is not None:
        assert answer.keys() == expected.keys() and answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=tolerance)
        assert list(answer["box"].values()) == pytest.approx(list(expected["box"].values()), abs=0.011)
        if "mask" in expected:
            assert np.mean(np.asarray(answer["mask"]) != np.asarray(expected["mask"])) < 1e-3
        if "heatmap" in expected:
            assert np.allclose(answer["heatmap"], expected["heatmap"], atol=tolerance)


# Answers


@pytest.mark.parametrize("name", [COFFEE, ASTRONAUT, ROCKET])
def test_an_answer_is_what_processor_and_model_say(finder, tiny_processor, golden_model, fixtures_dir, name):
    image = Image.open(fixtures_dir / name)
    size = (image.height, image.width)
    with torch.no_grad():
        outputs = golden_model(OneRefForSegmentation)(**tiny_processor(image, "the red Cup", return_tensors="pt"))
    (expected,) = tiny_processor.post_process_grounded_object_detection(outputs, target_sizes=[size])
    (mask,) = tiny_processor.post_process_masks(outputs, target_sizes=[size])
    (similarity,) = tiny_processor.post_process_similarity(outputs, target_sizes=[size])

    answer = finder(image, "the red Cup", heatmap=True)
    assert list(answer) == ["score", "label", "box", "mask", "heatmap"]
    assert answer["score"] == pytest.approx(outputs.scores.item(), abs=1e-6) and type(answer["score"]) is float
    assert answer["label"] == "the red Cup"
    assert list(answer["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert list(answer["box"].values()) == pytest.approx(expected["boxes"][0].tolist(), abs=0.006)
    assert all(value == round(value, 2) for value in answer["box"].values())
    assert answer["mask"].mode == "L" and answer["mask"].size == image.size
    assert np.array_equal(np.asarray(answer["mask"]), mask.numpy() * 255) and mask.any() and not mask.all()
    assert answer["heatmap"].dtype == np.float32 and answer["heatmap"].shape == size
    assert np.allclose(answer["heatmap"], similarity, atol=1e-6)


def test_every_form_of_call(finder, paths):
    coffee, astronaut, rocket = paths
    one = finder(coffee, "the cup")
    two = [one, finder(coffee, "the spoon")]
    three = finder(astronaut, "her face")
    assert_equal(finder(coffee, ["the cup", "the spoon"]), two)
    assert_equal(finder(coffee, ("the cup",)), [one])
    assert_equal(finder([coffee, astronaut], ["the cup", "her face"]), [one, three])
    assert_equal(finder((coffee, astronaut), ("the cup", "her face")), [one, three])
    assert_equal(finder([coffee, astronaut], [["the cup", "the spoon"], ["her face"]]), [two, [three]])
    assert_equal(finder([coffee, astronaut], [["the cup", "the spoon"], "her face"]), [two, three])
    assert_equal(finder([coffee, rocket], "the cup"), [one, finder(rocket, "the cup")])
    assert_equal(finder([coffee], ["the cup"]), [one])
    assert finder([], []) == [] and finder([]) == []

    rows = [{"image": coffee, "text": "the cup"}, {"image": astronaut, "text": ["her face"], "id": 7}]
    assert_equal(finder(rows[0]), one)
    assert_equal(finder(rows), [one, [three]])
    stream = finder(row for row in rows)
    assert not isinstance(stream, list)
    assert_equal(list(stream), [one, [three]])
    assert_equal(list(finder(map(dict, rows))), [one, [three]])


def test_every_form_of_picture(finder, paths, fixtures_dir):
    expected = finder(paths[0], "the cup")
    image = Image.open(paths[0])
    array = np.asarray(image)
    for form in (fixtures_dir / COFFEE, image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert_equal(finder(form, "the cup"), expected)
        assert_equal(finder([form], ["the cup"]), [expected])
    # Floats are resized without rounding, so they differ a little.
    answer = finder(array / 255, "the cup")
    assert list(answer["box"].values()) == pytest.approx(list(expected["box"].values()), abs=0.5)


def test_a_turned_picture_is_answered_the_right_way_up(finder, tmp_path, paths):
    upright = Image.open(paths[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sideways.png", exif=exif)
    expected = finder(upright, "the cup", heatmap=True)
    for form in (str(tmp_path / "sideways.png"), Image.open(tmp_path / "sideways.png")):
        assert_equal(finder(form, "the cup", heatmap=True), expected)


def test_addresses_are_read_with_a_timeout(finder, paths, monkeypatch):
    calls = []

    def load_image(address, timeout):
        calls.append((address, timeout))
        return Image.open(paths[0]).convert("RGB")

    monkeypatch.setattr("oneref_hf.pipeline_oneref.load_image", load_image)
    assert_equal(finder("https://example.com/a.png", "the cup"), finder(paths[0], "the cup"))
    finder("http://example.com/a.png", "the cup", timeout=3)
    assert calls == [("https://example.com/a.png", 60.0), ("http://example.com/a.png", 3)]


def test_datasets(finder, paths):
    rows = [{"image": path, "text": phrase} for path, phrase in zip(paths, ("the cup", ["her face", "a hand"], "it"))]
    expected = finder(rows)

    class Rows(Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return rows[index]

    assert_equal(list(finder(Rows(), num_workers=2, batch_size=2)), expected)
    of_one_phrase = [finder(path, ["the cup", "it"]) for path in paths]
    assert_equal(list(finder(KeyDataset(Rows(), "image"), ["the cup", "it"], batch_size=2)), of_one_phrase)
    hub_rows = HubDataset.from_dict({"image": paths, "text": ["the cup", "her face", "it"]})
    assert_equal(list(finder(hub_rows, batch_size=2)), finder(paths, ["the cup", "her face", "it"]))


# Batches


def test_batches_change_nothing(finder, paths):
    phrases = [f"{colour} {thing}" for colour in ("the red", "a blue") for thing in ("cup", "hat left of him", "dog")]
    texts = [phrases, "the cup", phrases[:2], phrases[3:], "a very long phrase about something on the left"]
    pictures = [*paths, *paths[:2]]
    single = [finder(picture, text, heatmap=True) for picture, text in zip(pictures, texts)]
    for batch_size, max_tokens in ((1, 1), (2, 200), (3, 50), (5, 10_000)):
        together = finder(pictures, texts, heatmap=True, batch_size=batch_size, max_tokens_per_forward=max_tokens)
        assert_equal(together, single)


def test_memory_is_bounded_and_a_picture_is_prepared_once(finder, paths, monkeypatch):
    sizes, prepared, embedded = [], [], []
    preprocess = OneRefImageProcessorPil.preprocess
    monkeypatch.setattr(
        OneRefImageProcessorPil,
        "preprocess",
        lambda self, *args, **kwargs: prepared.append(1) or preprocess(self, *args, **kwargs),
    )
    hooks = [
        finder.model.register_forward_pre_hook(
            lambda model, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        ),
        finder.model.backbone.vision_embeddings.register_forward_hook(lambda _, args, out: embedded.append(1)),
    ]
    try:
        finder(paths[0], [f"thing {'x ' * (index % 19)}" for index in range(40)], max_tokens_per_forward=400)
        assert len(prepared) == len(embedded) == 1
        assert sum(size[0] for size in sizes) == 40 and len(sizes) > 3
        assert all(count * (1 + 16 + length) <= 400 for count, length in sizes)
        assert [size[1] for size in sizes] == sorted({size[1] for size in sizes}), "each part has its own lengths"
        sizes.clear()
        finder(paths[0], ["a"] * 5, max_tokens_per_forward=1)
        finder(paths, ["a", "b", "c"], batch_size=3, max_tokens_per_forward=1)
        assert [size[0] for size in sizes] == [1, 1, 1, 1, 1, 3]
    finally:
        for hook in hooks:
            hook.remove()


def test_layers_of_the_picture_can_be_shared(segmentation_directory, finder, paths):
    shared, exact = (
        pipeline("referring-expression", model=str(segmentation_directory), device="cpu", model_kwargs=options)
        for options in ({"shared_image_layers": 2}, {"shared_image_layers": 0})
    )
    phrases = ["the cup", "a hand", "it"]
    answers = shared(paths[0], phrases, heatmap=True)
    assert_equal(exact(paths[0], phrases, heatmap=True), finder(paths[0], phrases, heatmap=True), tolerance=0)
    assert_equal(answers, [shared(paths[0], phrase, heatmap=True) for phrase in phrases])
    assert np.abs(answers[0]["heatmap"] - finder(paths[0], phrases[0], heatmap=True)["heatmap"]).max() > 1e-3


def test_bfloat16_is_close(segmentation_directory, finder, paths):
    half = pipeline("referring-expression", model=str(segmentation_directory), dtype=torch.bfloat16, device="cpu")
    assert half.model.dtype == torch.bfloat16
    for path in paths:
        answer, expected = (f(path, "the red cup", heatmap=True) for f in (half, finder))
        side = max(expected["mask"].size)
        assert answer["score"] == pytest.approx(expected["score"], abs=0.02)
        assert list(answer["box"].values()) == pytest.approx(list(expected["box"].values()), abs=0.02 * side)
        assert np.mean(np.asarray(answer["mask"]) != np.asarray(expected["mask"])) < 0.1
        assert np.abs(answer["heatmap"] - expected["heatmap"]).max() < 0.05


# Options


def test_the_mask_head_can_be_skipped(finder, paths):
    calls = []
    hook = finder.model.mask_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        answer = finder(paths[0], "the cup", mask=False)
        assert "mask" not in answer and not calls
        assert answer["box"] == finder(paths[0], "the cup", mask=True)["box"] and calls
    finally:
        hook.remove()


def test_a_model_trained_on_masks_alone_answers_from_them_even_when_they_are_not_wanted(
    golden_model, tiny_processor, paths
):
    model = golden_model(OneRefForSegmentation, trained_on_masks_only=True)
    finder = ReferringExpressionPipeline(model=model, processor=tiny_processor, device="cpu")
    with_mask, without = (finder(paths[0], "the cup", mask=wanted) for wanted in (True, False))
    assert "mask" not in without
    assert without["box"] == with_mask["box"] and without["score"] == with_mask["score"]
    rows, columns = np.nonzero(np.asarray(with_mask["mask"]))
    x0, y0, x1, y1 = with_mask["box"].values()
    cell = 210 / 32  # of the mask before it is resized, which may move its edge
    assert x0 - cell <= columns.min() and columns.max() <= x1 + cell
    assert y0 - cell <= rows.min() and rows.max() <= y1 + cell
    plain = ReferringExpressionPipeline(
        model=golden_model(OneRefForSegmentation), processor=tiny_processor, device="cpu"
    )
    assert with_mask["box"] != plain(paths[0], "the cup")["box"]


def test_answers_below_the_threshold_are_none(finder, paths):
    answers = finder(paths[0], ["the cup", "a hand"], heatmap=True)
    low, high = sorted(answers, key=lambda answer: answer["score"])
    between = (low["score"] + high["score"]) / 2
    assert low["score"] < between < high["score"]
    expected = [answer if answer["score"] >= between else None for answer in answers]
    assert_equal(finder(paths[0], ["the cup", "a hand"], heatmap=True, threshold=between), expected)
    assert finder(paths[0], low["label"], threshold=between) is None


def test_options_of_the_pipeline_hold_for_every_call(segmentation_directory, paths, monkeypatch):
    options = {"mask": False, "heatmap": True, "timeout": 5, "local_files_only": True}
    finder = pipeline("referring-expression", model=str(segmentation_directory), device="cpu", **options)
    timeouts = []
    monkeypatch.setattr(
        "oneref_hf.pipeline_oneref.load_image",
        lambda address, timeout: timeouts.append(timeout) or Image.open(paths[0]).convert("RGB"),
    )
    assert list(finder("https://example.com/a.png", "the cup")) == ["score", "label", "box", "heatmap"]
    assert list(finder(paths[0], "the cup", mask=True, heatmap=False)) == ["score", "label", "box", "mask"]
    assert timeouts == [5]


# Models


@pytest.mark.parametrize("model_class", [OneRefForSegmentation, OneRefForGrounding, OneRefForPreTraining])
def test_the_model_that_was_saved_is_loaded(model_class, model_directory, paths):
    folder = model_directory(model_class)
    model = AutoModelForReferringExpression.from_pretrained(folder, dtype=torch.bfloat16)
    assert type(model) is model_class and model.dtype == torch.bfloat16 and not model.training
    finder = pipeline("referring-expression", model=str(folder), device="cpu")
    assert type(finder) is ReferringExpressionPipeline and type(finder.model) is model_class
    answer = finder(paths[0], "the cup")
    assert ("mask" in answer) == (model_class is OneRefForSegmentation)
    if model_class is not OneRefForSegmentation:
        with pytest.raises(
            ValueError, match=f"mask=True needs a model that segments, but this is a {model_class.__name__}"
        ):
            finder(paths[0], "the cup", mask=True)


def test_models_that_cannot_answer_are_named(golden_model, tiny_processor, tmp_path):
    oneref = golden_model(OneRefForGrounding).oneref
    for model in (oneref, oneref.beit3):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        tiny_processor.save_pretrained(folder)
        message = rf"'{folder}' holds a {folder.name}, which cannot say where a phrase is; OneRefForSegmentation, "
        with pytest.raises(UnsupportedModelError, match=message):
            AutoModelForReferringExpression.from_pretrained(folder)
        with pytest.raises(UnsupportedModelError, match=message):
            pipeline("referring-expression", model=str(folder))
        with pytest.raises(UnsupportedModelError, match=f"The pipeline got a {folder.name}"):
            ReferringExpressionPipeline(model=model, processor=tiny_processor)
    assert {type(oneref), type(oneref.beit3)} == {OneRefModel, Beit3Model}


def test_a_directory_without_all_weights_is_refused(golden_model, tmp_path):
    golden_model(OneRefForGrounding).oneref.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["OneRefForGrounding"]}))
    with pytest.raises(UnsupportedModelError, match=r"lacks 8 weights of its OneRefForGrounding, such as box_head\."):
        AutoModelForReferringExpression.from_pretrained(tmp_path)


def test_a_directory_without_model_is_named(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"is no saved model: it has no config\.json"):
        AutoModelForReferringExpression.from_pretrained(tmp_path)


def test_a_model_in_training_mode_is_switched_to_evaluation(golden_model, tiny_processor, finder, paths):
    model = golden_model(OneRefForSegmentation).train()
    trained = pipeline("referring-expression", model=model, processor=tiny_processor, device="cpu")
    assert_equal(trained(paths[0], "the cup"), finder(paths[0], "the cup"))


def test_a_wrapped_model(golden_model, tiny_processor, finder, paths):
    wrapped = torch.compile(golden_model(OneRefForSegmentation), backend="eager")
    finder_of_wrapped = ReferringExpressionPipeline(model=wrapped, processor=tiny_processor, device="cpu")
    assert_equal(finder_of_wrapped(paths[0], "the cup", mask=True), finder(paths[0], "the cup"))
    assert "mask" not in finder_of_wrapped(paths[0], "the cup", mask=False)


def test_saving_the_pipeline(finder, paths, tmp_path):
    finder.save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    reloaded = pipeline("referring-expression", model=str(tmp_path), device="cpu")
    assert_equal(reloaded(paths[0], ["the cup", "it"]), finder(paths[0], ["the cup", "it"]), tolerance=0)


# Odd and bad input


def test_long_phrases_and_extreme_pictures(finder, paths):
    assert len(finder(paths[0], "word " * 500)["label"]) == 2500
    for size in ((1, 1), (10_000, 3), (3, 10_000)):
        answer = finder(Image.new("RGB", size, "red"), "the cup", heatmap=True)
        assert answer["mask"].size == size and answer["heatmap"].shape == size[::-1]
        x0, y0, x1, y1 = answer["box"].values()
        assert 0 <= x0 <= x1 <= size[0] and 0 <= y0 <= y1 <= size[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda path: (path, " "), "Phrase 0 is empty"),
        (lambda path: (path, ["the cup", ""]), "Phrase 1 is empty"),
        (lambda path: (path, []), "`text` has no phrase"),
        (lambda path: (path,), "A picture needs a phrase or a list of phrases, and got none"),
        (lambda path: (path, 7), "A picture needs a phrase or a list of phrases, not 7"),
        (lambda path: (path, [["nested"]]), r"not \[\['nested'\]\]"),
        (lambda path: ([path, path], ["a", "b", "c"]), "There are 2 pictures in the list, but phrases for 3"),
        (lambda path: ([path], ["a", "b"]), "One picture with many phrases needs no list around it"),
        (lambda path: ([path, path], ["a", ""]), "Phrase 0 is empty"),
        (lambda path: ({"image": path, "text": "a"}, "b"), "Phrases were given twice"),
        (lambda path: ({"picture": path, "text": "a"},), "A row needs the keys .* this one has 'picture', 'text'"),
        (lambda path: ([{"text": "a"}],), "A row needs the keys 'image' and 'text'; this one has 'text'"),
        (lambda path: ({"image": [path, path], "text": "a"},), "One picture was expected where 2 were given"),
    ],
)
def test_phrases_that_do_not_fit_are_named(finder, paths, arguments, message):
    with pytest.raises(ValueError, match=message):
        finder(*arguments(paths[0]))


def test_pictures_that_cannot_be_read_are_named(finder, fixtures_dir, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes((fixtures_dir / COFFEE).read_bytes()[:5000])
    with pytest.raises(FileNotFoundError, match=r"There is no image file '.*absent\.png'"):
        finder(str(tmp_path / "absent.png"), "the cup")
    for name in ("empty.png", "text.png", "cut.png"):
        with pytest.raises(ValueError, match=rf"The file '.*{name}' is not a readable image, or is cut off"):
            finder(str(tmp_path / name), "the cup")
    with pytest.raises(ValueError, match="The picture cannot be used: the PIL image cannot be decoded"):
        finder(Image.open(tmp_path / "cut.png"), "the cup")
    with pytest.raises(ValueError, match="The picture cannot be used: the picture has NaN"):
        finder(np.full((4, 4, 3), np.nan), "the cup")
    with pytest.raises(TypeError, match=r"A picture is a path, a URL, a PIL image, .* not int"):
        finder(3, "the cup")
    with pytest.raises(ValueError, match=r"No picture could be read from 'http://127\.0\.0\.1:1/a\.png'"):
        finder("http://127.0.0.1:1/a.png", "the cup")


def test_options_that_make_no_sense_are_named(finder, paths):
    with pytest.raises(TypeError, match="Unknown argument 'treshold'; this pipeline knows timeout, mask"):
        finder(paths[0], "the cup", treshold=0.5)
    with pytest.raises(ValueError, match=r"Scores lie in \[0, 1\], so the threshold cannot be 50"):
        finder(paths[0], "the cup", threshold=50)
    with pytest.raises(ValueError, match="max_tokens_per_forward is at least 1, not 0"):
        finder(paths[0], "the cup", max_tokens_per_forward=0)
    assert_equal(finder(paths[0], "the cup", threshold=None, max_tokens_per_forward=None), finder(paths[0], "the cup"))


def test_what_was_loaded_is_told(segmentation_directory):
    model, loading = AutoModelForReferringExpression.from_pretrained(segmentation_directory, output_loading_info=True)
    assert isinstance(model, OneRefForSegmentation) and not loading["missing_keys"]


def test_tensors_with_gradients_and_arrays_of_anything(finder):
    picture = torch.rand(3, 50, 60)
    assert_equal(finder(picture.clone().requires_grad_(), "the cup"), finder(picture, "the cup"))
    with pytest.raises(ValueError, match="a picture is an array of numbers, not of object"):
        finder(np.full((20, 20, 3), None), "the cup")
