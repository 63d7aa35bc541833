# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What stands for BEiT-3's pre-training in the small model: it learns what drawn scenes show and what phrases mean.

OneRef starts from an encoder that has read millions of captioned pictures. From random weights fine-tuning alone does
not get there in reasonable time: a phrase's one box and one mask say next to nothing about what a star is. In drawn
scenes every object is known. So while picture and phrase go through the encoder together, every patch has to name
what it shows (colour, shape, material and size) and to find box and outline of the object it lies on, besides the
patches, box and mask of what the phrase means, which the model's own heads tell. Where the phrase names no colour,
colours fade in some pictures, so that a shape looks like itself in colours that it never had, too. And every patch has
to tell the phrase's box: OneRef's box head averages patches with nearly even weights (the softmax of cosines), so that
an answer known to a few of them gets lost. The layer that says all this is thrown away afterwards.
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

from .data.scenes import scene_expressions
from .data.scenes.drawing import draw_scene
from .data.scenes.geometry import tight_box, visible_parts
from .data.scenes.objects import COLOURS, MATERIALS, OBJECT_COUNTS
from .data.scenes.shapes import SHAPES
from .data.scenes.storage import processes_map
from .data.scenes.wording import names_a_colour
from .loss_oneref import box_giou_loss, box_l1_loss, mask_dice_loss
from .metrics import box_iou, mask_iou
from .modeling_oneref import OneRefForSegmentation
from .processing_oneref import OneRefProcessor
from .small_model_optimizer import Muon


_SPLIT = "train"
_PHRASES = 6  # per scene, of different types
# How often phrases are learnt from, by type: the hard ones more.
_TYPE_WEIGHTS = {
    "category": 1.5,
    "attribute": 0.8,
    "place": 0.4,
    "superlative": 1.2,
    "ordinal": 4.0,
    "relation": 2.0,
    "two_step": 2.5,
    "negation": 0.6,
}
_NAMES = {"colour": list(COLOURS), "shape": list(SHAPES), "material": list(MATERIALS)}
_NAMES["size"] = [None, "small", "medium", "large"]
# How much each counts: shapes are by far the hardest to tell.
_NAME_WEIGHTS = {"colour": 1.0, "shape": 2.0, "material": 1.0, "size": 1.0}
_COVERED = 0.3  # share of a patch from which on it belongs to an object
_SIMILARITY_WEIGHT, _BOX_L1_WEIGHT = 0.5, 2.0
_HEAD_WEIGHT = 2.0  # of the box that the model answers with: it is what matters in the end
# A cosine as a logit, before training adjusts both: nearly every patch is not what a phrase means.
_SCALE, _OFFSET = 10.0, -5.0
_CELL = 2  # pixels: a cell of the mask head's grid, in which outlines are told
_OUTLINE_WEIGHT, _MASK_WEIGHT = 2.0, 8.0
_MASK_SCALE = 8.0  # a mask's cosine as a logit, before training adjusts it
_MASKED = 3  # the mask head, which costs as much as all the rest, learns from one phrase in so many
_REACH = 0.3  # of the picture's side: how far from a patch the centre of its object may lie
_SIZE_OFFSET = -1.5  # of the logit of an object's width and height: they are small at first
_FADED = 0.4  # of the pictures, where the phrase names no colour
_TRUE_COLOURS = 0.7  # saturation from which on a patch has to name its colour
_MIRRORED = (("left", "right"), ("leftmost", "rightmost"))
_WARM_UP, _STEADY, _WEIGHT_DECAY, _BETAS = 50, 0.3, 0.05, (0.9, 0.98)
_OTHERS = 0.5  # learning rate of what Muon does not train, relative to it
_HELD_OUT = 200
_SAVED_EVERY = 250


@dataclass(frozen=True)
class NamedScenes:
    """N pictures on a canvas of S pixels, all that can be seen in them, and phrases about them.

    pixel_values: uint8 `(N, 3, S, S)`, the canvas before normalising.
    shown: uint8 `(N, S, S)`, the object that each pixel shows, from 1 on; 0 is the background.
    boxes: `(N, 9, 4)`, centre and size in sides of the canvas, as `box_labels`; 0 where there is no object.
    names: int8 `(N, 9, 4)`, colour, shape, material and size of each object as numbers; -1 where there is no object.
    phrases: per picture some `(token ids, number of the object, expression type, whether it names a colour)`.
    """

    pixel_values: torch.Tensor
    shown: torch.Tensor
    boxes: torch.Tensor
    names: torch.Tensor
    phrases: Sequence[Sequence[tuple[list[int], int, str, bool]]]


def named_scenes(start: int, count: int, processor: OneRefProcessor, seed: int = 0, processes: int = 1) -> NamedScenes:
    """Scenes `start` to `start + count` of the split "train", drawn at the size of the processor's canvas."""
    draw = functools.partial(_draw, processor=processor, seed=seed)
    drawn = []
    with processes_map(processes, functools.partial(torch.set_num_threads, 1)) as mapper:
        for one in tqdm(mapper(draw, range(start, start + count)), "drawing", count, mininterval=5):
            drawn.append([torch.from_numpy(array) for array in one[:-1]] + [one[-1]])
    *arrays, phrases = zip(*drawn)
    return NamedScenes(*map(torch.stack, arrays), phrases)


def _draw(number: int, processor: OneRefProcessor, seed: int):
    side = processor.image_processor.size["height"]
    expressions = scene_expressions(_SPLIT, number, _PHRASES, seed)
    scene = expressions[0].scene
    drawing = draw_scene(scene, side)
    prepared = processor.image_processor(drawing.picture, do_normalize=False, return_tensors="np")
    left, top, right, bottom = tight_box(prepared["pixel_mask"][0] > 0)
    shown = np.zeros((side, side), np.uint8)
    boxes = np.zeros((OBJECT_COUNTS[1], 4), np.float32)
    names = np.full((OBJECT_COUNTS[1], len(_NAMES)), -1, np.int8)
    for place, (part, placed) in enumerate(zip(visible_parts(drawing.layers), scene.objects)):
        shown[top:bottom, left:right][part > 0] = place + 1
        x0, y0, x1, y1 = tight_box(shown == place + 1)
        boxes[place] = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / side
        names[place] = [known.index(getattr(placed, name)) for name, known in _NAMES.items()]
    phrases = [
        (processor.tokenizer(one.phrase)["input_ids"], one.target, one.expression_type, names_a_colour(one.phrase))
        for one in expressions
    ]
    return np.round(prepared["pixel_values"][0] * 255).astype(np.uint8), shown, boxes, names, phrases


def pretrain(
    model: OneRefForSegmentation,
    processor: OneRefProcessor,
    scenes: NamedScenes,
    steps: int,
    batch_size: int = 48,
    learning_rate: float = 2e-3,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    origin: str = "",
    report: Callable[[str], None] = tqdm.write,
) -> dict[str, float]:
    """Trains the model, in place, on its device; mirrored scenes (and phrases) count as further ones.

    The losses: binary cross entropy between the patches' similarities with the phrase and the patches of its object;
    L1 and generalised IoU of the box; binary cross entropy and dice of the mask, whose cosines count as logits at a
    scale that is learnt, too; for every patch, of its own object, cross entropies of the four names, generalised IoU
    of the box and binary cross entropy of the outline; and box and outline of the phrase's object.

    Args:
        scenes: those to learn from; the last 200 are kept for the result.
        steps: of the optimiser; the learning rate is steady for 30 % of them and falls as a cosine to 0.
        checkpoint: a file to which everything is saved from time to time, and from which a run that was interrupted
            continues; it is left there.
        origin: what the model is before the first step, in words: a checkpoint is of another run if it differs.

    Returns:
        of pictures not learnt from: `accuracy` (boxes with an IoU of at least 0.5), `miou` of the masks, `pointing`
        (how often the patch most similar to the phrase is its object's) and the accuracies of `colour`, `shape`,
        `material` and `size`.

    Raises:
        ValueError: if there are too few scenes for a batch or no steps, or the checkpoint belongs to another run.
    """
    number = len(scenes.phrases) - _HELD_OUT
    if number < batch_size:
        raise ValueError(f"{len(scenes.phrases)} scenes are too few; give {batch_size + _HELD_OUT} or more.")
    if steps < 1:
        raise ValueError(f"{steps} steps teach nothing; give 1 or more.")
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
    weights = [torch.tensor([_TYPE_WEIGHTS[kind] for _, _, kind, _ in said]) for said in scenes.phrases]
    generator = torch.Generator().manual_seed(seed)
    facts = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    facts |= {"scenes": number, "seed": seed, "origin": origin}
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
        spoken = torch.cat([weights[scene].multinomial(1, generator=generator) for scene in chosen.tolist()])
        mirror = torch.rand((), generator=generator) < 0.5
        faded, saturation = torch.rand((2, batch_size), generator=generator)
        saturation = torch.where(faded < _FADED, saturation, 1.0)
        losses, _ = lesson(scenes, chosen, spoken, bool(mirror), saturation)
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

    def __init__(self, model: OneRefForSegmentation, processor: OneRefProcessor):
        super().__init__()
        self.model = model
        self.cells = (model.config.patch_size // _CELL) ** 2
        # An object's presence, names, box and outline; then the outline and the box of what the phrase means.
        self.parts = [1, *map(len, _NAMES.values()), 4, self.cells, self.cells, 4]
        self.naming = nn.Linear(model.config.hidden_size, sum(self.parts))
        self.scale, self.offset, self.mask_scale = (
            nn.Parameter(torch.tensor(value)) for value in (_SCALE, _OFFSET, _MASK_SCALE)
        )
        side = model.config.image_size // model.config.patch_size
        places = (torch.arange(side) + 0.5) / side
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        self.side, self.patch_size = side, model.config.patch_size
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
        self,
        scenes: NamedScenes,
        chosen: torch.Tensor,
        spoken: torch.Tensor,
        mirror: bool = False,
        saturation: torch.Tensor | None = None,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The losses by name, and what `pretrain` returns of each phrase, patch or object: right as 1, wrong as 0.

        Args:
            chosen: numbers of scenes `(B,)`.
            spoken: which of the phrases of each, `(B,)`.
            mirror: pictures and phrases, left for right.
            saturation: how much of their colours pictures keep, `(B,)`, from 0 (grey) to 1 (all, the default); all
                where the phrase names a colour.
        """
        said = [scenes.phrases[scene][phrase] for scene, phrase in zip(chosen.tolist(), spoken.tolist())]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, *_ in said], True, self.padding)
        pixels, shown, boxes, names = (
            tensor[chosen] for tensor in (scenes.pixel_values, scenes.shown, scenes.boxes, scenes.names)
        )
        if mirror:
            ids, pixels, shown, boxes = self.mirrored[ids], pixels.flip(-1), shown.flip(-1), boxes.clone()
            boxes[..., 0] = 1 - boxes[..., 0]
        if saturation is None:
            saturation = torch.ones(len(ids))
        saturation = torch.where(torch.tensor([coloured for *_, coloured in said]), 1.0, saturation)
        targets = torch.tensor([target for _, target, *_ in said])
        batch = (ids, pixels, shown, boxes, names.long(), targets, saturation)
        ids, pixels, shown, boxes, names, targets, saturation = (tensor.to(self.centres.device) for tensor in batch)
        pixels = pixels.float() / 255
        pixels = torch.lerp(pixels.mean(1, keepdim=True), pixels, saturation.view(-1, 1, 1, 1))

        shown = self._cells(shown)
        pixels_of = shown.flatten(2).long()
        counts = torch.zeros(*pixels_of.shape[:2], 1 + names.shape[1], device=shown.device)
        counts.scatter_add_(-1, pixels_of, torch.ones((), device=shown.device).expand(pixels_of.shape))
        coverage = counts[..., 1:].mT / pixels_of.shape[-1]  # (B, 9, P)
        outputs = self.model(
            pixel_values=(pixels - self.mean) / self.deviation,
            input_ids=ids,
            attention_mask=(ids != self.padding).long(),
            output_hidden_states=True,
            predict_masks=False,
        )
        each = torch.arange(len(ids), device=ids.device)
        wanted, box = coverage[each, targets], boxes[each, targets]
        wanted = wanted / wanted.amax(-1, keepdim=True).clamp(min=0.05)
        similarity = outputs.similarity_map.flatten(1)
        cross_entropy = nn.functional.binary_cross_entropy_with_logits
        losses = {
            "similarity": _SIMILARITY_WEIGHT
            * cross_entropy(self.scale * similarity + self.offset, wanted, reduction="none").sum(-1).mean(),
            "box_l1": _HEAD_WEIGHT * _BOX_L1_WEIGHT * box_l1_loss(outputs.pred_boxes, box),
            "box_giou": _HEAD_WEIGHT * box_giou_loss(outputs.pred_boxes, box),
        }
        answers = {
            "accuracy": (box_iou(outputs.pred_boxes, box) >= 0.5).float(),
            "pointing": (wanted.gather(-1, similarity.argmax(-1, keepdim=True)) > _COVERED).float(),
        }
        patches = outputs.hidden_states[-1][:, 1 : 1 + coverage.shape[-1]]
        presence, *logits, place, outline, meant_outline, meant = self.naming(patches).split(self.parts, dim=-1)
        covered, nearest = coverage.max(1)  # (B, P)
        losses["object"] = cross_entropy(presence.squeeze(-1), covered)
        # What the patch's own object is, for the N patches of the batch that show one.
        own = covered > _COVERED
        names, boxes = names[each[:, None], nearest][own], boxes[each[:, None], nearest][own]
        tellable = (saturation >= _TRUE_COLOURS)[:, None].expand_as(own)[own]
        for name, predicted, label in zip(_NAMES, logits, names.unbind(-1)):
            predicted = predicted[own]
            if name == "colour":
                predicted, label = predicted[tellable], label[tellable]
            wrong = nn.functional.cross_entropy(predicted, label, reduction="sum")
            losses[name] = _NAME_WEIGHTS[name] * wrong / max(len(label), 1)  # no patch may have its colours
            answers[name] = (predicted.argmax(-1) == label).float()
        place = place[own]
        centres = self.centres.expand(len(ids), -1, -1)[own] + _REACH * place[:, :2].tanh()
        found = torch.cat([centres, (place[:, 2:] + _SIZE_OFFSET).sigmoid()], dim=-1)
        losses["patch_box"] = box_giou_loss(found, boxes)
        cells = (shown[own] == nearest[own][:, None, None] + 1).float().mean(-1)
        losses["outline"] = _OUTLINE_WEIGHT * cross_entropy(outline[own], cells)
        # What the phrase means, for all patches.
        everywhere = box[:, None].expand(-1, patches.shape[1], -1).flatten(0, 1)
        meant = meant.sigmoid().flatten(0, 1)
        losses["meant_box"] = box_giou_loss(meant, everywhere) + _BOX_L1_WEIGHT * box_l1_loss(meant, everywhere)
        cells = (shown == targets[:, None, None, None] + 1).float().mean(-1)
        losses["meant_outline"] = _MASK_WEIGHT * cross_entropy(meant_outline, cells)
        # The mask that the model answers with.
        part = slice(None, None, _MASKED if self.training else 1)
        masks = self.model.mask_head(patches[part], outputs.text_embeds[part], (self.side, self.side))
        wanted, logits = self._picture(cells[part]), self.mask_scale * masks
        losses["mask"] = _MASK_WEIGHT * cross_entropy(logits, wanted)
        losses["mask_dice"] = mask_dice_loss(logits, wanted)
        answers["miou"] = mask_iou(masks, wanted >= 0.5)
        return losses, answers

    def _cells(self, shown: torch.Tensor) -> torch.Tensor:
        """From pixels `(B, S, S)` to those of each cell of each patch, `(B, P, cells, pixels)`, row by row."""
        across = self.patch_size // _CELL
        shown = shown.view(-1, self.side, across, _CELL, self.side, across, _CELL)
        return shown.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(shown), self.side**2, self.cells, _CELL**2)

    def _picture(self, cells: torch.Tensor) -> torch.Tensor:
        """From cells of each patch `(B, P, cells)` to a picture of them `(B, h, w)`."""
        across = self.patch_size // _CELL
        cells = cells.view(-1, self.side, self.side, across, across).transpose(2, 3)
        return cells.reshape(len(cells), self.side * across, self.side * across)

    @torch.no_grad()
    def examine(self, scenes: NamedScenes, start: int) -> dict[str, float]:
        """What `pretrain` returns, of the scenes from `start` on and all their phrases."""
        self.eval()
        chosen = [number for number in range(start, len(scenes.phrases)) for _ in scenes.phrases[number]]
        spoken = [place for phrases in scenes.phrases[start:] for place in range(len(phrases))]
        right: dict[str, list[torch.Tensor]] = {}
        for part, which in zip(torch.tensor(chosen).split(100), torch.tensor(spoken).split(100)):
            for name, answers in self(scenes, part, which)[1].items():
                right.setdefault(name, []).append(answers.flatten())
        self.train()
        return {name: torch.cat(answers).mean().item() for name, answers in right.items()}


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
