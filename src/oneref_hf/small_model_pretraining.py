# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What stands for BEiT-3's pre-training in the small model: it learns what drawn scenes show and what phrases mean.

OneRef starts from an encoder that has read millions of captioned pictures. From random weights fine-tuning alone does
not get there in reasonable time: a phrase's one box and one mask say next to nothing about what a star is. In drawn
scenes every object is known. So while picture and phrase go through the encoder together, every patch has to name
what it shows (colour, shape, material and size) and to find the box of the object it lies on, besides the box and the
patches that the phrase means. The layer that names is thrown away afterwards.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .data.scenes import EXPRESSION_TYPES, scene_expressions
from .data.scenes.drawing import draw_scene
from .data.scenes.geometry import tight_box, visible_parts
from .data.scenes.objects import COLOURS, MATERIALS, OBJECT_COUNTS
from .data.scenes.shapes import SHAPES
from .data.scenes.storage import processes_map
from .modeling_oneref import OneRefForGrounding
from .processing_oneref import OneRefProcessor
from .small_model_optimizer import Muon


_SPLIT = "train"
_PHRASES = 6  # per scene, of different types
_NAMES = {"colour": list(COLOURS), "shape": list(SHAPES), "material": list(MATERIALS)}
_NAMES["size"] = [None, "small", "medium", "large"]
# How much each counts: shapes are by far the hardest to tell.
_NAME_WEIGHTS = {"colour": 1.0, "shape": 2.0, "material": 1.0, "size": 1.0}
_COVERED = 0.3  # share of a patch from which on it belongs to an object
_SIMILARITY_WEIGHT, _BOX_L1_WEIGHT = 0.5, 2.0
# A cosine as a logit, before training adjusts both: nearly every patch is not what a phrase means.
_SCALE, _OFFSET = 10.0, -5.0
_REACH = 0.3  # of the picture's side: how far from a patch the centre of its object may lie
_SIZE_OFFSET = -1.5  # of the logit of an object's width and height: they are small at first
_MIRRORED = (("left", "right"), ("leftmost", "rightmost"))
_WARM_UP, _STEADY, _WEIGHT_DECAY, _BETAS = 50, 0.3, 0.05, (0.9, 0.98)
_OTHERS = 0.5  # learning rate of what Muon does not train, relative to it
_HELD_OUT = 200
_SAVED_EVERY = 250


@dataclass(frozen=True)
class NamedScenes:
    """N pictures on a canvas of S pixels with P patches, all that can be seen in them, and phrases about them.

    pixel_values: uint8 `(N, 3, S, S)`, the canvas before normalising.
    coverage: uint8 `(N, 9, P)`, how much of each patch each object covers, of 255; 0 where there is no object.
    boxes: `(N, 9, 4)`, centre and size in sides of the canvas, as `box_labels`; 0 where there is no object.
    names: int8 `(N, 9, 4)`, colour, shape, material and size of each object as numbers; -1 where there is no object.
    phrases: per picture some `(token ids, number of the object, number of the expression type)`.
    """

    pixel_values: torch.Tensor
    coverage: torch.Tensor
    boxes: torch.Tensor
    names: torch.Tensor
    phrases: Sequence[Sequence[tuple[list[int], int, int]]]


def named_scenes(
    start: int, count: int, processor: OneRefProcessor, patch_size: int, seed: int = 0, processes: int = 1
) -> NamedScenes:
    """Scenes `start` to `start + count` of the split "train", drawn at the size of the processor's canvas."""
    draw = functools.partial(_draw, processor=processor, patch_size=patch_size, seed=seed)
    drawn = []
    with processes_map(processes) as mapper:
        for one in tqdm(mapper(draw, range(start, start + count)), "drawing", count, mininterval=5):
            drawn.append([torch.from_numpy(array) for array in one[:-1]] + [one[-1]])
    *arrays, phrases = zip(*drawn)
    return NamedScenes(*map(torch.stack, arrays), phrases)


def _draw(number: int, processor: OneRefProcessor, patch_size: int, seed: int):
    torch.set_num_threads(1)
    side = processor.image_processor.size["height"]
    patches = side // patch_size
    scene, expressions = scene_expressions(_SPLIT, number, _PHRASES, seed)
    drawing = draw_scene(scene, side)
    prepared = processor.image_processor(drawing.picture, do_normalize=False, return_tensors="np")
    left, top, right, bottom = tight_box(prepared["pixel_mask"][0] > 0)
    coverage = np.zeros((OBJECT_COUNTS[1], patches**2), np.uint8)
    boxes = np.zeros((OBJECT_COUNTS[1], 4), np.float32)
    names = np.full((OBJECT_COUNTS[1], len(_NAMES)), -1, np.int8)
    for place, (part, shown) in enumerate(zip(visible_parts(drawing.layers), scene.objects)):
        canvas = np.zeros((side, side), np.float32)
        canvas[top:bottom, left:right] = part > 0
        shares = canvas.reshape(patches, patch_size, patches, patch_size).mean((1, 3))
        coverage[place] = np.round(shares.ravel() * 255)
        x0, y0, x1, y1 = tight_box(canvas > 0)
        boxes[place] = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / side
        names[place] = [known.index(getattr(shown, name)) for name, known in _NAMES.items()]
    phrases = [
        (processor.tokenizer(said.phrase)["input_ids"], said.target, EXPRESSION_TYPES.index(said.expression_type))
        for said in expressions
    ]
    return np.round(prepared["pixel_values"][0] * 255).astype(np.uint8), coverage, boxes, names, phrases


def pretrain(
    model: OneRefForGrounding,
    processor: OneRefProcessor,
    scenes: NamedScenes,
    steps: int,
    batch_size: int = 48,
    learning_rate: float = 2e-3,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    report: Callable[[str], None] = tqdm.write,
) -> dict[str, float]:
    """Trains the model, in place, on its device; mirrored scenes (and phrases) count as further ones.

    The losses: binary cross entropy between the patches' similarities with the phrase and the patches of its object;
    L1 and generalised IoU of the box; cross entropies of the four names of every covered patch, and the generalised
    IoU of the box it finds.

    Args:
        scenes: those to learn from; the last 200 are kept for the result.
        steps: of the optimiser; the learning rate is steady for 30 % of them and falls as a cosine to 0.
        checkpoint: a file to which everything is saved from time to time, and from which a run that was interrupted
            continues; it is left there.

    Returns:
        of pictures not learnt from: `accuracy` (boxes with an IoU above 0.5), `pointing` (how often the patch most
        similar to the phrase is its object's) and the accuracies of `colour`, `shape`, `material` and `size`.

    Raises:
        ValueError: if there are too few scenes for a batch, or the checkpoint belongs to another run.
    """
    number = len(scenes.phrases) - _HELD_OUT
    if number < batch_size:
        raise ValueError(f"{len(scenes.phrases)} scenes are too few; give {batch_size + _HELD_OUT} or more.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lesson = _Lesson(model, processor).to(model.device)
    matrices, others = [], []
    for name, parameter in lesson.named_parameters():
        is_matrix = parameter.ndim == 2 and "embedding" not in name and "naming" not in name
        (matrices if is_matrix else others).append(parameter)
    # Muon takes about two thirds of the steps that AdamW takes here.
    optimizers = (
        Muon(matrices, weight_decay=_WEIGHT_DECAY),
        torch.optim.AdamW(others, weight_decay=_WEIGHT_DECAY, betas=_BETAS),
    )
    generator = torch.Generator().manual_seed(seed)
    facts = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "scenes": number, "seed": seed}
    done = _restore(checkpoint, facts, lesson, optimizers, generator)
    lesson.train()
    scores = None
    progress = tqdm(range(done, steps), "learning", steps, initial=done, mininterval=5)
    for step in progress:
        share = max(step / steps - _STEADY, 0) / (1 - _STEADY)
        rate = learning_rate * min(1, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))
        for optimizer, factor in zip(optimizers, (1.0, _OTHERS)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        chosen = torch.randint(number, (batch_size,), generator=generator)
        spoken = torch.rand(batch_size, generator=generator)
        mirror = torch.rand((), generator=generator) < 0.5
        losses, _ = lesson(scenes, chosen, spoken, bool(mirror))
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(others, 1.0)  # what Muon does is independent of the size of gradients
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % _SAVED_EVERY == 0 or step + 1 == steps:
            scores = lesson.examine(scenes, number)
            report(f"step {step + 1}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
            _save(checkpoint, {**facts, "step": step + 1}, lesson, optimizers, generator)
    return scores or lesson.examine(scenes, number)


class _Lesson(nn.Module):
    """The model with what only this training needs: the layer that names, and cosines as logits."""

    def __init__(self, model: OneRefForGrounding, processor: OneRefProcessor):
        super().__init__()
        self.model = model
        self.naming = nn.Linear(model.config.hidden_size, 1 + sum(map(len, _NAMES.values())) + 4)
        self.scale, self.offset = (nn.Parameter(torch.tensor(value)) for value in (_SCALE, _OFFSET))
        side = model.config.image_size // model.config.patch_size
        places = (torch.arange(side) + 0.5) / side
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        self.register_buffer("centres", torch.stack([columns, rows], -1).view(-1, 2), persistent=False)
        config, tokenizer = processor.image_processor, processor.tokenizer
        for name, values in (("mean", config.image_mean), ("deviation", config.image_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        mirrored = torch.arange(len(tokenizer))
        for words in _MIRRORED:
            ids = tokenizer.convert_tokens_to_ids([f"▁{word}" for word in words])
            mirrored[ids] = torch.tensor(ids[::-1])
        self.mirrored, self.padding = mirrored, tokenizer.pad_token_id

    def forward(
        self, scenes: NamedScenes, chosen: torch.Tensor, spoken: torch.Tensor, mirror: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The losses by name, and the answers right and wrong as 1 and 0.

        Args:
            chosen: numbers of scenes `(B,)`.
            spoken: in [0, 1), which of the phrases of each.
        """
        said = [
            scenes.phrases[scene][int(share * len(scenes.phrases[scene]))]
            for scene, share in zip(chosen.tolist(), spoken.tolist())
        ]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, *_ in said], True, self.padding)
        pixels, coverage, boxes, names = (
            tensor[chosen] for tensor in (scenes.pixel_values, scenes.coverage, scenes.boxes, scenes.names)
        )
        if mirror:
            ids, pixels, boxes = self.mirrored[ids], pixels.flip(-1), boxes.clone()
            boxes[..., 0] = 1 - boxes[..., 0]
            side = math.isqrt(coverage.shape[-1])
            coverage = coverage.unflatten(-1, (side, side)).flip(-1).flatten(-2)
        targets = torch.tensor([target for _, target, _ in said])
        batch = (ids, pixels, coverage, boxes, names.long(), targets)
        ids, pixels, coverage, boxes, names, targets = (tensor.to(self.centres.device) for tensor in batch)

        coverage = coverage.float() / 255
        outputs = self.model(
            pixel_values=(pixels.float() / 255 - self.mean) / self.deviation,
            input_ids=ids,
            attention_mask=(ids != self.padding).long(),
            output_hidden_states=True,
        )
        each = torch.arange(len(ids), device=ids.device)
        wanted, box = coverage[each, targets], boxes[each, targets]
        wanted = wanted / wanted.amax(-1, keepdim=True).clamp(min=0.05)
        similarity = outputs.similarity_map.flatten(1)
        cross_entropy = nn.functional.binary_cross_entropy_with_logits
        overlap, generalized = _overlaps(outputs.pred_boxes, box)
        losses = {
            "similarity": _SIMILARITY_WEIGHT
            * cross_entropy(self.scale * similarity + self.offset, wanted, reduction="none").sum(-1).mean(),
            "box_l1": _BOX_L1_WEIGHT * (outputs.pred_boxes - box).abs().sum(-1).mean(),
            "box_giou": (1 - generalized).mean(),
        }
        answers = {
            "accuracy": (overlap > 0.5).float(),
            "pointing": (wanted.gather(-1, similarity.argmax(-1, keepdim=True)) > _COVERED).float(),
        }
        patches = outputs.hidden_states[-1][:, 1 : 1 + coverage.shape[-1]]
        self._name(patches, coverage, boxes, names, losses, answers)
        return losses, answers

    def _name(self, patches, coverage, boxes, names, losses, answers) -> None:
        """Adds what comes of every patch by itself."""
        covered, nearest = coverage.max(1)  # (B, P)
        shown = covered > _COVERED
        each = torch.arange(len(names), device=names.device)[:, None]
        names, boxes = names[each, nearest][shown], boxes[each, nearest][shown]  # (N, 4) of all that show something
        outputs = self.naming(patches)
        losses["object"] = nn.functional.binary_cross_entropy_with_logits(outputs[..., 0], covered)
        *logits, place = outputs[..., 1:][shown].split([*map(len, _NAMES.values()), 4], dim=-1)
        for name, predicted, label in zip(_NAMES, logits, names.unbind(-1)):
            losses[name] = _NAME_WEIGHTS[name] * nn.functional.cross_entropy(predicted, label)
            answers[name] = (predicted.argmax(-1) == label).float()
        centres = self.centres.expand(len(coverage), -1, -1)[shown] + _REACH * place[:, :2].tanh()
        found = torch.cat([centres, (place[:, 2:] + _SIZE_OFFSET).sigmoid()], dim=-1)
        losses["patch_box"] = (1 - _overlaps(found, boxes)[1]).mean()

    @torch.no_grad()
    def examine(self, scenes: NamedScenes, start: int) -> dict[str, float]:
        """The share of right answers about the scenes from `start` on, all their phrases."""
        self.eval()
        chosen = [number for number in range(start, len(scenes.phrases)) for _ in scenes.phrases[number]]
        spoken = [(place + 0.5) / len(phrases) for phrases in scenes.phrases[start:] for place in range(len(phrases))]
        right: dict[str, list[torch.Tensor]] = {}
        for part, which in zip(torch.tensor(chosen).split(100), torch.tensor(spoken).split(100)):
            for name, answers in self(scenes, part, which)[1].items():
                right.setdefault(name, []).append(answers.flatten())
        self.train()
        return {name: torch.cat(answers).mean().item() for name, answers in right.items()}


def _overlaps(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalised IoU of boxes `(..., 4)` with the same place, given by centre and size."""
    (left, right), (a, b) = (
        (box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2) for box in (first, second)
    )
    common = (torch.minimum(right, b) - torch.maximum(left, a)).clamp(min=0).prod(-1)
    together = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - common
    hull = (torch.maximum(right, b) - torch.minimum(left, a)).prod(-1)
    overlap = common / together.clamp(min=1e-6)
    return overlap, overlap - (hull - together) / hull.clamp(min=1e-6)


def _save(path, facts, lesson, optimizers, generator) -> None:
    if path is None:
        return
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(
        {"facts": facts, "lesson": lesson.state_dict(), "optimizers": states, "generator": generator.get_state()},
        partial,
    )
    partial.replace(path)


def _restore(path, facts, lesson, optimizers, generator) -> int:
    """How many steps were done when the checkpoint was written; 0 if there is none."""
    if path is None or not Path(path).exists():
        return 0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    done = saved["facts"].pop("step")
    if saved["facts"] != facts:
        raise ValueError(f"'{path}' is of a run with other options ({saved['facts']}); delete it to start anew.")
    lesson.load_state_dict(saved["lesson"])
    for optimizer, state in zip(optimizers, saved["optimizers"]):
        optimizer.load_state_dict(state)
    generator.set_state(saved["generator"])
    return done


__all__ = ["NamedScenes", "named_scenes", "pretrain"]
