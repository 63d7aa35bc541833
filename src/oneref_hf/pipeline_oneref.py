# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The pipeline `referring-expression`: pictures and phrases in, boxes, scores and masks in pixels out."""

import os
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import load_image

from .letterbox_oneref import flatten_images, read_picture
from .modeling_oneref import OneRefForGrounding, OneRefForPreTraining, OneRefForSegmentation, answer_phrases


_ANSWERING_MODELS = {
    model.__name__: model for model in (OneRefForSegmentation, OneRefForGrounding, OneRefForPreTraining)
}
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_PICTURE_TYPES = (str, os.PathLike, Image.Image, np.ndarray, torch.Tensor)
# Arguments of preprocess, _forward and postprocess that a user gives.
_PARAMETERS = (("text", "timeout"), ("mask", "max_tokens_per_forward"), ("threshold", "heatmap"))
_KEPT_OUTPUTS = ("pred_boxes", "scores", "pred_masks", "similarity_map")


class UnsupportedModelError(Exception):
    """A model that cannot answer phrases.

    Not a ValueError, because the loader of Transformers' pipelines buries those under tracebacks and then goes on with
    the next class.
    """


class AutoModelForReferringExpression:
    """Loads whichever OneRef model a directory or repository holds, provided it can answer phrases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """
        Args:
            pretrained_model_name_or_path: a directory or the id of a repository on the Hub.
            kwargs: as for any model's `from_pretrained`.

        Returns:
            A `OneRefForSegmentation`, `OneRefForGrounding` or `OneRefForPreTraining` in evaluation mode; with
            `output_loading_info=True` also what Transformers tells of the loading.

        Raises:
            UnsupportedModelError: if it holds no model or another one (a bare BEiT-3 or OneRef without a box head,
                say), or if weights are missing.
        """
        hub_kwargs = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)
        if not config.get("architectures"):
            raise UnsupportedModelError(
                f"'{pretrained_model_name_or_path}' is no saved model: it has no config.json with an architecture."
            )
        architecture = config["architectures"][0]
        if architecture == "OneRefExportedModel":
            from .export import OneRefExportedModel

            return OneRefExportedModel.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if architecture not in _ANSWERING_MODELS:
            raise _refusal(f"'{pretrained_model_name_or_path}' holds a {architecture}")
        kwargs.pop("trust_remote_code", None)  # the class is at hand
        tell = kwargs.pop("output_loading_info", False)
        model, loading = _ANSWERING_MODELS[architecture].from_pretrained(
            pretrained_model_name_or_path, output_loading_info=True, **kwargs
        )
        missing = sorted(loading["missing_keys"])
        if missing:
            raise UnsupportedModelError(
                f"'{pretrained_model_name_or_path}' lacks {len(missing)} weights of its {architecture}, such as "
                f"{missing[0]}, so its answers would be random; fine-tune it, or convert the checkpoint again."
            )
        return (model, loading) if tell else model


def _refusal(subject: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{subject}, which cannot say where a phrase is; {', '.join(_ANSWERING_MODELS)} can: "
        "conversion/convert_oneref.py makes them of RES, REC and MRefM checkpoints, fine-tuning of a backbone."
    )


def open_picture(image, timeout: float | None = None) -> Image.Image | np.ndarray | torch.Tensor:
    """Opens one picture: a path, an http(s) or data address, a PIL image, an array or a tensor.

    Args:
        timeout: seconds to wait for a web server; None waits for ever.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no readable picture, or more than one.
        TypeError: if it is no kind of picture.
    """
    if isinstance(image, str) and image.startswith(("http://", "https://")):
        try:
            return load_image(image, timeout=timeout)
        except Exception as error:  # whatever the network or the decoder says
            raise ValueError(f"No picture could be read from '{image}': {error}") from error
    pictures = flatten_images(image)
    if len(pictures) != 1:
        raise ValueError(
            f"One picture was expected where {len(pictures)} were given; pass several pictures as a list."
        )
    return pictures[0]


class ReferringExpressionPipeline(Pipeline):
    r"""
    Finds what phrases mean in pictures.

    ```python
    >>> import oneref_hf
    >>> from transformers import pipeline

    >>> finder = pipeline("referring-expression", model="DIRECTORY")
    >>> finder("table.jpg", "the cup left of the plate")
    {'score': 0.61, 'label': 'the cup left of the plate',
     'box': {'xmin': 31.25, 'ymin': 40.5, 'xmax': 97.0, 'ymax': 110.75},
     'mask': <PIL.Image.Image image mode=L size=640x480>}
    >>> finder("table.jpg", ["the cup", "the spoon in it"])                              # a list, one picture
    >>> finder(["a.jpg", "b.jpg"], ["the cup", "the dog"])                               # a phrase for each picture
    >>> finder(["a.jpg", "b.jpg"], [["the cup", "the spoon"], ["the dog"]])              # a list for each picture
    >>> finder([{"image": "a.jpg", "text": "the cup"}, {"image": "b.jpg", "text": ["the dog", "its ball"]}])
    >>> for answer in finder(dataset_or_generator, batch_size=16, num_workers=4): ...    # lazily, rows as above
    >>> for answer in finder(KeyDataset(dataset, "image"), "the largest dog"): ...       # one phrase, many pictures
    ```

    The answers have the shape of the phrases: a phrase gives an answer, a list of phrases a list of answers, a list of
    pictures a list of these. `batch_size` counts pictures.

    An answer is a dictionary:

    - **score** (`float`): see [`~modeling_oneref.region_contrast_score`] for what it is and is not.
    - **label** (`str`): the phrase.
    - **box** (`dict[str, float]`): `xmin`, `ymin`, `xmax`, `ymax` in pixels of the picture the right way up (EXIF),
      with two decimals, where other pipelines cut to whole pixels.
    - **mask** (`PIL.Image`): of the picture's size, mode L, 255 inside and 0 outside; if the model segments.
    - **heatmap** (`np.ndarray`): float32 `(height, width)`, the cosine of the phrase with each place; on request.

    Args:
        threshold (`float`, *optional*, defaults to 0.0):
            Phrases whose score is lower get None in place of an answer. OneRef itself always points at something.
        mask (`bool`, *optional*):
            False skips the mask head, a third of the work of a base model that segments; True is an error where
            the model cannot segment. By default whatever the model can do. Masks have the picture's size: hundreds of
            them about a large photograph need gigabytes.
        heatmap (`bool`, *optional*, defaults to `False`):
            Whether to add the similarity maps.
        max_tokens_per_forward (`int`, *optional*, defaults to 16384):
            Bound of the memory for many phrases: a picture is prepared and embedded once, and the model sees so many
            positions at a time, patches and words together, which is 27 phrases at 384 pixels (or one per picture of
            the batch, if that is more). See [`~modeling_oneref.answer_phrases`].
        timeout (`float`, *optional*, defaults to 60):
            Seconds to wait for a web server; None waits for ever.

    All of them can be given to `pipeline(...)` or to a call.

    Raises:
        UnsupportedModelError: if the model has no box head.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model, **kwargs):
        # By its parts rather than its class, so that a model may be wrapped (compiled, with adapters) or remote code.
        parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if "box_head" not in parts:
            raise _refusal(f"The pipeline got a {type(model).__name__}")
        self._segments = "mask_head" in parts
        if hasattr(model.config, "export") and kwargs.get("device") is None:
            kwargs["device"] = model.device  # an exported model stays where it is
        super().__init__(model=model, **kwargs)
        self.model.eval()  # in training mode batch norm would mix the pictures of a batch

    def __call__(self, image, text: str | list[str] | list[list[str]] | None = None, **kwargs):
        """Answers phrases about pictures; see the class for every form of call, its arguments and its results.

        Raises:
            ValueError: if a phrase is empty or missing, the numbers of pictures and phrases differ, or a picture
                cannot be read.
            FileNotFoundError: if there is no such file.
            TypeError: if it is no kind of picture, nor several.
        """
        if isinstance(image, _PICTURE_TYPES):
            return super().__call__({"image": image, "text": text}, **kwargs)
        if isinstance(image, Mapping):
            return super().__call__(_with_text(image, text), **kwargs)
        if isinstance(image, (list, tuple)):
            rows = _paired(image, text)
            return super().__call__(rows, **kwargs) if rows else []
        if not isinstance(image, Iterable) and not isinstance(image, Dataset):
            raise TypeError(
                "A picture is a path, a URL, a PIL image, an array or a tensor, and several are a list, a generator "
                f"or a dataset of them, not {type(image).__name__}."
            )
        stream = image if isinstance(image, Dataset) else (row for row in image)
        return super().__call__(stream, text=text, **kwargs)

    def _sanitize_parameters(self, **parameters) -> tuple[dict, dict, dict]:
        parameters.pop("local_files_only", None)  # `pipeline` has used it, but hands it on
        unknown = sorted(set(parameters).difference(*_PARAMETERS))
        if unknown:
            known = ", ".join(name for names in _PARAMETERS for name in names if name != "text")
            raise TypeError(
                f"Unknown argument {unknown[0]!r}; this pipeline knows {known}, batch_size and num_workers."
            )
        for name in ("max_tokens_per_forward", "threshold"):
            if parameters.get(name, 0) is None:
                del parameters[name]
        if parameters.get("mask") and not self._segments:
            raise ValueError(
                f"mask=True needs a model that segments, but this is a {type(self.model).__name__}; use a "
                "OneRefForSegmentation, converted from a RES checkpoint."
            )
        if parameters.get("max_tokens_per_forward", 1) < 1:
            raise ValueError(f"max_tokens_per_forward is at least 1, not {parameters['max_tokens_per_forward']}.")
        if not 0 <= parameters.get("threshold", 0) <= 1:
            raise ValueError(f"Scores lie in [0, 1], so the threshold cannot be {parameters['threshold']}.")
        return tuple({name: parameters[name] for name in names if name in parameters} for names in _PARAMETERS)

    def preprocess(self, row, text: str | list[str] | None = None, timeout: float | None = 60.0) -> dict:
        row = _with_text(row if isinstance(row, Mapping) else {"image": row}, text)
        phrases = [row["text"]] if isinstance(row["text"], str) else row["text"]
        picture = open_picture(row["image"], timeout)
        try:
            picture = read_picture(picture, convert_rgb=True, to_8_bit_range=False)
        except ValueError as error:
            raise ValueError(f"The picture cannot be used: {error}") from error
        inputs = self.processor(picture, input_data_format="channels_first", return_tensors="pt")
        texts = self.processor(text=phrases, return_tensors="pt")
        # Without padding, which each part of the phrases gets anew.
        rows = zip(texts["input_ids"], texts["attention_mask"].bool())
        inputs["input_ids"] = [input_ids[mask] for input_ids, mask in rows]
        # A dictionary in a dictionary: what Transformers joins into a batch is then a list, one entry per picture,
        # because its own padding cannot hold several phrases per picture.
        return {"inputs": dict(inputs), "text": row["text"], "target_size": tuple(picture.shape[-2:])}

    def _forward(self, model_inputs: dict, mask: bool | None = None, max_tokens_per_forward: int = 16384) -> dict:
        batched = isinstance(model_inputs["inputs"], list)
        pictures = model_inputs.pop("inputs") if batched else [model_inputs.pop("inputs")]
        pixel_values = torch.cat([picture["pixel_values"] for picture in pictures]).to(self.dtype)
        phrases = [input_ids for picture in pictures for input_ids in picture["input_ids"]]
        input_ids = pad_sequence(phrases, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        counts = [len(picture["input_ids"]) for picture in pictures]
        options = {}
        if self._segments:
            options["predict_masks"] = mask is not False
        patches = pixel_values[0, 0].numel() // self.model.config.patch_size**2
        outputs = answer_phrases(
            self.model,
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=pad_sequence([torch.ones_like(ids) for ids in phrases], batch_first=True),
            pixel_mask=torch.cat([picture["pixel_mask"] for picture in pictures]),
            image_indices=torch.arange(len(pictures)).repeat_interleave(torch.tensor(counts)).to(input_ids.device),
            max_tokens_per_forward=max(max_tokens_per_forward, len(pictures) * (1 + patches + input_ids.shape[1])),
            **options,
        )
        kept = [name for name in _KEPT_OUTPUTS if not (name == "pred_masks" and mask is False)]
        rows = {name: outputs[name].cpu().split(counts) for name in kept if outputs.get(name) is not None}
        outputs = [{name: values[index] for name, values in rows.items()} for index in range(len(pictures))]
        return {"outputs": outputs if batched else outputs[0], **model_inputs}

    def postprocess(self, model_outputs: dict, threshold: float = 0.0, heatmap: bool = False):
        outputs, text, target_size = (model_outputs[name] for name in ("outputs", "text", "target_size"))
        phrases = [text] if isinstance(text, str) else text
        results = self.processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, target_sizes=[target_size], text_labels=phrases
        )
        answers = [_answer(result) for result in results]
        if heatmap:
            maps = self.processor.post_process_similarity(outputs, target_sizes=[target_size])
            for answer, values in zip(answers, maps):
                if answer is not None:
                    answer["heatmap"] = values.numpy()
        return answers[0] if isinstance(text, str) else answers

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Saves the model and the processor.

        Unlike other pipelines outside Transformers it leaves no note of itself in the configuration: with one,
        `pipeline("referring-expression")` would look for its model class in Transformers, where it is not.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _answer(result: dict) -> dict | None:
    if not len(result["scores"]):
        return None
    corners = (round(value, 2) for value in result["boxes"][0].tolist())
    answer = {
        "score": result["scores"].item(),
        "label": result["text_labels"][0],
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), corners)),
    }
    if "masks" in result:
        answer["mask"] = Image.fromarray(result["masks"][0].numpy().astype(np.uint8) * 255)
    return answer


def _with_text(row: Mapping, text: str | list[str] | None) -> dict:
    """A row with its picture and its phrases, or the phrases given for all rows."""
    if "image" not in row:
        raise ValueError(
            f"A row needs the keys 'image' and 'text'; this one has {', '.join(map(repr, row)) or 'none'}."
        )
    own_text = row.get("text")
    if own_text is not None and text is not None:
        raise ValueError("Phrases were given twice: in the row of the picture, and in the call.")
    text = text if own_text is None else own_text
    if not isinstance(text, str) and not (isinstance(text, (list, tuple)) and all(isinstance(p, str) for p in text)):
        raise ValueError(
            "A picture needs a phrase or a list of phrases, " + ("and got none." if text is None else f"not {text!r}.")
        )
    return {"image": row["image"], "text": text if isinstance(text, str) else list(text)}


def _paired(images: list, text: str | list[str] | list[list[str]] | None) -> list[dict]:
    """Every picture of a list with its own phrases; a single phrase is for all of them."""
    texts = [text] * len(images) if text is None or isinstance(text, str) else list(text)
    if len(texts) != len(images):
        raise ValueError(
            f"There are {len(images)} pictures in the list, but phrases for {len(texts)}: give one phrase or one list "
            "of phrases for each, or a single phrase for all. One picture with many phrases needs no list around it."
        )
    return [
        _with_text(image if isinstance(image, Mapping) else {"image": image}, own) for image, own in zip(images, texts)
    ]


__all__ = ["AutoModelForReferringExpression", "ReferringExpressionPipeline", "UnsupportedModelError"]
