# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What the small model that knows drawn scenes starts from: a vocabulary, fresh weights and a visual tokenizer.

Real OneRef models start from BEiT-3 and from the VQ-KD tokenizer of BEiT v2, which have seen millions of photographs.
The small one has neither, so both are made here from the scenes themselves: the tokenizer in a minute on one core, the
weights in hours (`small_model_pretraining`).
"""

from __future__ import annotations

import math
import os
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from transformers import XLMRobertaTokenizer, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .complete_output import complete_directory
from .configuration_oneref import OneRefConfig
from .configuration_vqkd import VqkdConfig
from .data.scenes import scene_phrases, vocabulary
from .image_processing_pil_oneref import OneRefImageProcessorPil
from .modeling_beit3 import POSITION_OFFSET
from .modeling_oneref import OneRefForSegmentation
from .modeling_vqkd import VqkdModel
from .processing_oneref import OneRefProcessor
from .recipes import MODEL_SIZES
from .small_model_pretraining import named_scenes, pretrain


SIZE = "small"
IMAGE_SIZE = 128
PATCH_SIZE = 16
MAX_TEXT_LENGTH = 64
VISUAL_VOCAB_SIZE = 512
_CORPUS = 600  # phrases that tell how frequent words are
_UNLIKELY = -30.0
_COMPONENTS = 64  # principal components of a patch that the visual tokenizer looks at
_ROUNDS = 30
_INITIALIZER_RANGE = 0.08  # about 1 / sqrt(128)
_PATCH_POSITIONS, _WORD_POSITIONS = 0.5, 0.15  # amplitudes
_WORDS_TO_WORDS = 0.7  # bias of queries and keys of words: their logits with one another rise by 2.8
_COMPONENT_STRENGTH = 0.7
_PRETRAINING_SCENES = 1_000_000  # number of the first, far from those of any data set


def scene_tokenizer() -> XLMRobertaTokenizer:
    """A unigram tokenizer for which every word of the scenes' phrases is one piece.

    Others are spelt in characters, as is what follows a hyphen ("star-shaped", "non-red").
    """
    words = Counter(f"▁{word}" for word in vocabulary())
    for phrase in scene_phrases("train", _CORPUS):
        words.update(f"▁{word}" for word in re.findall(r"[^\s-]+", phrase) if f"▁{word}" in words)
    total = words.total()
    scores = [(piece, math.log(count / total)) for piece, count in words.most_common()]
    # Characters are so unlikely that they never replace a word.
    characters = [(character, _UNLIKELY) for character in "▁-" + string.ascii_lowercase + string.digits + "'.,?!"]
    taken = {piece for piece, _ in scores}
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    characters = [entry for entry in characters if entry[0] not in taken]
    tokenizer = XLMRobertaTokenizer(vocab=[*special, *scores, *characters, ("<mask>", 0.0)])
    tokenizer.model_max_length = MAX_TEXT_LENGTH
    return tokenizer


def small_processor(tokenizer: XLMRobertaTokenizer) -> OneRefProcessor:
    """The processor of the small model: a canvas of 128 pixels."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return OneRefProcessor(OneRefImageProcessorPil(size=size), tokenizer)


@torch.no_grad()
def fresh_model(
    tokenizer: XLMRobertaTokenizer, visual_tokenizer: VqkdModel, pictures: Sequence[Image.Image], seed: int = 0
) -> OneRefForSegmentation:
    """A model that has learnt nothing yet, but starts where learning is quick. Sets the global seed.

    BEiT-3's initialisation is meant for 768 dimensions and a million steps. At 128 dimensions weights are wider, so
    that layers pass on what they get; positions are sines and cosines; patches are seen through the principal
    components of the visual tokenizer, as strong as they are in `pictures`; and words attend to words at first, which
    are few among many patches.
    """
    set_seed(seed)
    config = OneRefConfig(
        **MODEL_SIZES[SIZE],
        vocab_size=len(tokenizer),
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        max_position_embeddings=MAX_TEXT_LENGTH + POSITION_OFFSET,
        visual_vocab_size=VISUAL_VOCAB_SIZE,
        initializer_range=_INITIALIZER_RANGE,
    )
    model = OneRefForSegmentation(config)
    encoder = model.oneref.beit3
    vision, text = encoder.vision_embeddings, encoder.text_embeddings
    grid, width = IMAGE_SIZE // PATCH_SIZE, config.hidden_size
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    waves = [_waves(places.flatten() * math.pi / 4, width // 2) for places in (rows, columns)]
    vision.position_embedding.weight[POSITION_OFFSET + 1 :] = _PATCH_POSITIONS * torch.cat(waves, dim=1)
    words = torch.arange(config.max_position_embeddings)
    text.position_embedding.weight.copy_(_WORD_POSITIONS * _waves(words, width))
    for layer in encoder.layers:
        layer.text.qkv_proj.bias[: 2 * width] = _WORDS_TO_WORDS
    _see_components(vision.patch_embedding, visual_tokenizer, torch.cat([_patches(picture) for picture in pictures]))
    return model


def _waves(places: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines `(N, width)` of places `(N,)` at falling frequencies."""
    frequencies = 100 ** -(torch.arange(width // 2) / (width // 2))
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _see_components(patch_embedding: nn.Conv2d, visual_tokenizer: VqkdModel, patches: torch.Tensor) -> None:
    """The first dimensions become the tokenizer's components at even strength, the others are turned down."""
    seen, weight = visual_tokenizer.embeddings.patch_embedding, patch_embedding.weight
    deviations = (patches @ seen.weight.flatten(1).T + seen.bias).std(0)
    statistics = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    # Over all patches the components are uncorrelated, and the biases centre them: what remains is their deviation.
    strength = _COMPONENT_STRENGTH / deviations
    number = len(seen.weight)
    weight[:number] = seen.weight * 2 * deviation * strength.view(-1, 1, 1, 1)  # from [-1, 1] to normalised pixels
    patch_embedding.bias[:number] = (seen.bias + (seen.weight * (2 * mean - 1)).sum((1, 2, 3))) * strength
    weight[number:] *= 0.3


@torch.no_grad()
def fit_visual_tokenizer(pictures: Iterable[Image.Image], seed: int = 0) -> VqkdModel:
    """A visual tokenizer for masked image modelling, without any learning by gradients.

    It is a `VqkdModel` without layers, so a fixed encoder of single patches: the patch embedding holds the principal
    components of patches, whitened; the codebook comes from k-means on the unit sphere. Its codes so name colour,
    edges and texture of a patch, which is what there is to know of scenes: no meaning beyond a patch as in VQ-KD.

    Args:
        pictures: some hundred or more, RGB, of any size from one patch on.
        seed: of k-means.

    Raises:
        ValueError: if there are too few patches for the codes.
    """
    patches = torch.cat([_patches(picture) for picture in pictures])  # (N, 3 * 16 * 16) in [-1, 1]
    if len(patches) < 10 * VISUAL_VOCAB_SIZE:
        raise ValueError(
            f"The pictures have {len(patches)} patches of {PATCH_SIZE} pixels; {VISUAL_VOCAB_SIZE} codes need "
            f"{10 * VISUAL_VOCAB_SIZE} or more."
        )
    mean = patches.mean(0)
    _, deviations, directions = torch.linalg.svd(torch.cov((patches - mean).T), full_matrices=False)
    # The square root of whitening: details count more than by their energy, but do not drown the colour.
    components = directions[:_COMPONENTS] / deviations[:_COMPONENTS, None] ** 0.25

    config = VqkdConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=_COMPONENTS,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=_COMPONENTS,
        codebook_size=VISUAL_VOCAB_SIZE,
        codebook_dim=_COMPONENTS,
    )
    model = VqkdModel(config).eval()
    embedding, projection = model.embeddings.patch_embedding, model.projection
    embedding.weight.copy_(components.view_as(embedding.weight))
    embedding.bias.copy_(-components @ mean)
    model.embeddings.position_embedding.weight.zero_()
    model.embeddings.cls_token.zero_()
    # tanh(x / 100) * 100 is x to four digits for what a layer norm puts out.
    for layer, scale in ((projection.fc1, 0.01), (projection.fc2, 100.0)):
        layer.weight.copy_(torch.eye(_COMPONENTS) * scale)
        layer.bias.zero_()
    features = model.projection(model.patch_norm((patches - mean) @ components.T))
    model.codebook.weight.copy_(_spherical_k_means(features, VISUAL_VOCAB_SIZE, seed))
    return model


def _patches(picture: Image.Image) -> torch.Tensor:
    import numpy as np

    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
    return nn.functional.unfold(pixels[None], PATCH_SIZE, stride=PATCH_SIZE)[0].T


def _spherical_k_means(features: torch.Tensor, number: int, seed: int) -> torch.Tensor:
    """Unit vectors `(number, D)` near which the features `(N, D)` gather in direction."""
    generator = torch.Generator().manual_seed(seed)
    vectors = nn.functional.normalize(features, dim=-1)
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:number]]
    for _ in range(_ROUNDS):
        nearest = torch.cat([(part @ centres.T).argmax(-1) for part in vectors.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        # A centre that nothing is nearest to starts again somewhere else.
        elsewhere = vectors[torch.randint(len(vectors), (number,), generator=generator)]
        empty = (torch.bincount(nearest, minlength=number) == 0)[:, None]
        centres = nn.functional.normalize(torch.where(empty, elsewhere, sums), dim=-1)
    return centres


def write_starting_point(
    folder: str | os.PathLike,
    pictures: Sequence[Image.Image],
    steps: int,
    scenes: int,
    seed: int = 0,
    learning_rate: float = 2e-3,
    weights: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
    processes: int = 1,
) -> tuple[dict[str, Path], dict[str, float]]:
    """Writes `FOLDER/scenes-start` and `FOLDER/scenes-visual-tokenizer`, which the recipes `scenes_*` start from.

    Each appears only when it is complete. What was learnt so far lies in `FOLDER/scenes-start.checkpoint`, from which
    a second call with the same arguments continues.

    Args:
        pictures: those that the visual tokenizer is fitted to.
        steps, scenes, learning_rate: of the pre-training (`small_model_pretraining.pretrain`).
        weights: a `scenes-start` of an earlier call to go on from, with another seed so that it sees new scenes; fresh
            ones otherwise.
        processes: that draw.

    Returns:
        the two directories by name, and the scores of `pretrain`.

    Raises:
        FileExistsError: if one of them is there already.
        ValueError: if there are too few pictures or scenes, or the checkpoint is of a call with other arguments.
    """
    paths = {name: Path(folder, f"scenes-{name}") for name in ("start", "visual-tokenizer")}
    checkpoint = paths["start"].with_name("scenes-start.checkpoint")
    for name, path in paths.items():
        # With a checkpoint, the visual tokenizer is of a call that was interrupted at its very end.
        if path.exists() and (name == "start" or not checkpoint.exists()):
            raise FileExistsError(f"'{path}' is there already; delete it to make it anew.")
    processor = small_processor(scene_tokenizer())
    visual_tokenizer = fit_visual_tokenizer(pictures, seed)
    if weights is None:
        model = fresh_model(processor.tokenizer, visual_tokenizer, pictures, seed)
    else:
        model = OneRefForSegmentation.from_pretrained(weights)
        if model.config.vocab_size != len(processor.tokenizer) or model.config.image_size != IMAGE_SIZE:
            raise ValueError(
                f"'{weights}' is not a model for drawn scenes; give one that an earlier call has written."
            )
    model.to(device)
    drawn = named_scenes(_PRETRAINING_SCENES, scenes, processor, seed, processes)
    scores = pretrain(
        model,
        processor,
        drawn,
        steps,
        learning_rate=learning_rate,
        seed=seed,
        checkpoint=checkpoint,
        origin="" if weights is None else str(Path(weights).resolve()),
    )
    for name, parts in {"visual-tokenizer": (visual_tokenizer,), "start": (model, processor)}.items():
        with complete_directory(paths[name]) as complete:
            for part in parts:
                part.save_pretrained(complete)
    checkpoint.unlink()
    return paths, scores


__all__ = [
    "IMAGE_SIZE",
    "SIZE",
    "VISUAL_VOCAB_SIZE",
    "fit_visual_tokenizer",
    "fresh_model",
    "scene_tokenizer",
    "small_processor",
    "write_starting_point",
]
