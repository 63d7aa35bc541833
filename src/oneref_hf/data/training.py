# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Records as training samples: picture opened, augmented, tokenised and, for MRefM, masked.

Everything random in a sample is a function of (seed, epoch, sample) and of nothing else. So a run gives the same
samples whatever the number of workers and processes, and one that was interrupted continues exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Sampler
from transformers.utils import logging

from ..letterbox_oneref import upright
from .augmentation import TrainingTransform
from .masking import blockwise_image_mask, dynamic_image_mask, random_image_mask, visual_relation_labels
from .rasterize import box_to_mask
from .records import open_image, target_mask, undecoded
from .scenes.wording import scene_words
from .text_masking import ReferringTextMasker, load_parser, parse_words


logger = logging.get_logger(__name__)

NO_AUGMENTATION = {"num_scales": 1, "crop": False, "translate": False, "color_jitter": 0.0}
TARGET_MASKS = (None, "box", "segmentation")
IMAGE_MASKS = ("referring", "random", "blockwise")
ON_UNREADABLE = ("skip", "stop")
_REPLACEMENTS = 20
_SHUFFLE_BUFFER = 1000


class UnusableSample(ValueError):
    """A record cannot become a sample; the message names it and says why."""


class SampleKey(int):
    """An index that knows its epoch; any dataset takes it."""

    epoch: int

    def __new__(cls, index: int, epoch: int):
        key = super().__new__(cls, index)
        key.epoch = epoch
        return key

    def __getnewargs__(self):
        return int(self), self.epoch


class EpochSampler(Sampler):
    """Every sample once per epoch, in an order that depends on seed and epoch alone.

    It yields `SampleKey`s rather than indices, so that workers, even persistent ones, know the epoch.

    Args:
        multiple_of: samples of an optimiser step; what is left of the last one, other samples in every epoch, is left
            out, so that an epoch has as many steps on any number of devices.
    """

    def __init__(self, num_samples: int, seed: int, multiple_of: int = 1):
        self.num_samples, self.seed, self.epoch = num_samples, seed, 0
        self.multiple_of = multiple_of

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next order is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples - self.num_samples % self.multiple_of

    def __iter__(self) -> Iterator[SampleKey]:
        order = torch.randperm(self.num_samples, generator=generator_for(self.seed, self.epoch, "order"))
        return (SampleKey(index, self.epoch) for index in order[: len(self)].tolist())


def generator_for(seed: int, epoch: int, sample: int | str) -> torch.Generator:
    """The source of all randomness of one sample in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{sample}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass
class ReferringMasking:
    """The masks of MRefM (section 3.3 of the paper) for one sample.

    Args:
        text_masker: masks words; its `nlp` is not used, because words are parsed beforehand (`with_parsed_words`).
        grid_size: patches per side of the canvas.
        image_mask: `"referring"` is the paper's dynamic masking; `"random"` (MAE) and `"blockwise"` (BEiT) are its
            ablations.
        inside_ratio, outside_ratio: of `dynamic_image_mask`.
        image_ratio: share of the patches that the two ablations mask; None is the default of their function.
    """

    text_masker: ReferringTextMasker
    grid_size: int
    image_mask: str = "referring"
    inside_ratio: float = 0.75
    outside_ratio: float = 0.35
    image_ratio: float | None = None

    def __post_init__(self):
        _require_one_of("image_mask", self.image_mask, IMAGE_MASKS)

    def __call__(self, record: Mapping, sample: Mapping, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """What masking adds to a sample: `bool_masked_pos` `(P,)`, `visual_relation_labels` `(P, 4)`, `mlm_input_ids`
        and `mlm_labels` `(T,)`."""
        box = sample["box_labels"]
        if self.image_mask == "referring":
            mask = dynamic_image_mask(box, self.grid_size, self.inside_ratio, self.outside_ratio, generator)
        else:
            function = random_image_mask if self.image_mask == "random" else blockwise_image_mask
            ratio = {} if self.image_ratio is None else {"ratio": self.image_ratio}
            mask = function(self.grid_size, generator=generator, **ratio)
        words = self.text_masker.locate(sample["input_ids"], record.get("subject"), record.get("object"))
        mlm_input_ids, mlm_labels = self.text_masker(sample["input_ids"], *words, generator=generator)
        return {
            "bool_masked_pos": mask,
            "visual_relation_labels": visual_relation_labels(box, self.grid_size),
            "mlm_input_ids": mlm_input_ids,
            "mlm_labels": mlm_labels,
        }


def with_parsed_words(records, parser: str = "en_core_web_md"):
    """Records with the columns `subject` and `object` of `parse_words`, made once per data set and kept in its cache.

    Records that have both columns already stay as they are.

    Args:
        records: `datasets.Dataset`; of an `IterableDataset`, only one with both columns.
        parser: name of a spaCy model, or `"scenes"` for drawn scenes, whose wording is known (`scenes.scene_words`).

    Raises:
        ValueError: for a stream without them, which would be parsed again in every epoch.
    """
    if {"subject", "object"} <= set(records.column_names or ()):
        return records
    if not hasattr(records, "__len__"):
        raise ValueError(
            "The phrases of a stream would be parsed again in every epoch; read the data without streaming, or parse "
            "them first and stream the result."
        )
    if parser == "scenes":
        return records.map(scene_words, input_columns="phrase", batched=True)
    load_parser(parser)  # if it is missing, now rather than in a worker
    return records.map(partial(_parsed_words, parser=parser), input_columns="phrase", batched=True)


def _parsed_words(phrases: list[str], parser: str) -> dict[str, list[str | None]]:
    """With the parser by its name, which is all that the cache of `datasets` and other processes need."""
    return parse_words(phrases, load_parser(parser))


class _SampleMaker:
    """One record to one sample.

    Args:
        processor: `OneRefProcessor`; its tokenizer and its canvas side are used.
        augmentation: keywords of `TrainingTransform`; None is the evaluation transform.
        target_masks: what `mask_labels` are: `"box"`, the rasterised box (untruncated, as in the original);
            `"segmentation"`, the annotated mask, or the box where there is none; None leaves them out.
        masking: adds what MRefM needs.
        semantic_relation: whether samples carry the record's `semantic_relation_labels`.
    """

    def __init__(
        self,
        processor,
        *,
        augmentation: Mapping | None = None,
        target_masks: str | None = None,
        masking: ReferringMasking | None = None,
        semantic_relation: bool = False,
        seed: int = 13,
    ):
        _require_one_of("target_masks", target_masks, TARGET_MASKS)
        keywords = NO_AUGMENTATION if augmentation is None else dict(augmentation)
        self.transform = TrainingTransform(_canvas_side(processor), for_visual_tokens=masking is not None, **keywords)
        self.processor = processor
        self.target_masks = target_masks
        self.masking = masking
        self.semantic_relation = semantic_relation
        self.seed = seed

    def __call__(self, record: Mapping, epoch: int, number: int | str) -> dict:
        """The sample of a record, random by (seed, epoch, number).

        Raises:
            UnusableSample: if the picture is not readable or an annotation is missing or does not fit it.
        """
        generator = generator_for(self.seed, epoch, number)
        try:
            if record["box_truncated"] is None:
                raise ValueError("it has no box")
            image = upright(open_image(record["image"]))
            mask = self._mask(record, (image.height, image.width))
            sample = self.transform(image, record["phrase"], record["box_truncated"], mask, generator)
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            raise UnusableSample(f"The record '{record['id']}' cannot be used: {error}") from error
        encoding = self.processor(text=record["phrase"])
        sample["input_ids"], sample["attention_mask"] = encoding["input_ids"][0], encoding["attention_mask"][0]
        if self.masking is not None:
            sample.update(self.masking(record, sample, generator))
        if self.semantic_relation:
            if record["semantic_relation_labels"] is None:
                raise UnusableSample(
                    f"The record '{record['id']}' has no semantic_relation_labels; make them with "
                    "training/label_semantic_relation.py or switch the loss off."
                )
            sample["semantic_relation_labels"] = torch.tensor(record["semantic_relation_labels"], dtype=torch.float32)
        return {**sample, "sample_id": record["id"]}

    def _mask(self, record: Mapping, size: tuple[int, int]) -> np.ndarray | None:
        if self.target_masks is None:
            return None
        mask = target_mask(record, size) if self.target_masks == "segmentation" else None
        if mask is None:
            x0, y0, x1, y1 = record["box"]
            mask = box_to_mask((x0, y0, x1 - x0, y1 - y0), size)
        return mask


class ReferringSamples(Dataset):
    """Samples of records that can be looked up.

    Args:
        records: `datasets.Dataset` with the columns of `record_features`, and `subject` and `object` with `masking`.
        processor, options: of `_SampleMaker`, which says what a sample is made of.
        on_unreadable: `"skip"` takes the next usable record in place of one that cannot be used, and warns; `"stop"`
            raises.

    A sample is a dictionary: `pixel_values` `(3, S, S)`, `box_labels` `(4,)`, `input_ids` and `attention_mask` `(T,)`,
    `sample_id`; by option `mask_labels` `(S, S)`, `pixel_values_unnormalized` and what `ReferringMasking` adds, and
    `semantic_relation_labels`. `ReferringCollator` makes batches of them.
    """

    def __init__(self, records, processor, *, on_unreadable: str = "skip", **options):
        _require_one_of("on_unreadable", on_unreadable, ON_UNREADABLE)
        self.records = undecoded(records)
        self.make = _SampleMaker(processor, **options)
        self.on_unreadable = on_unreadable
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of samples that are asked for by a bare index (the stock Trainer does)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int) -> dict:
        index, epoch = int(key), getattr(key, "epoch", self.epoch)
        for attempt in range(_REPLACEMENTS):
            try:
                # The number of the sample that was asked for, so that a replacement does not appear twice alike.
                return self.make(self.records[(index + attempt) % len(self)], epoch, index)
            except UnusableSample as error:
                if self.on_unreadable == "stop":
                    raise
                logger.warning_once(f"{error}; another record takes its place.")
        raise UnusableSample(f"None of {_REPLACEMENTS} neighbouring records from number {index} on can be used.")


class StreamedReferringSamples(IterableDataset):
    """Samples of records that are read as they come, without end: after the last record a new epoch begins.

    Each process reads its own part of the stream. Training needs `max_steps`.

    Args:
        records: `datasets.IterableDataset`.
        rank, world_size: of this process.
        processor, options: of `_SampleMaker`; samples are random by their record's `id`.
    """

    def __init__(self, records, processor, *, rank: int = 0, world_size: int = 1, on_unreadable="skip", **options):
        from datasets.distributed import split_dataset_by_node

        _require_one_of("on_unreadable", on_unreadable, ON_UNREADABLE)
        self.make = _SampleMaker(processor, **options)
        shuffled = undecoded(records).shuffle(seed=self.make.seed, buffer_size=_SHUFFLE_BUFFER)
        self.records = split_dataset_by_node(shuffled, rank=rank, world_size=world_size)
        self.on_unreadable = on_unreadable

    def __iter__(self) -> Iterator[dict]:
        epoch = 0
        while True:
            self.records.set_epoch(epoch)
            made = 0
            for record in self.records:
                try:
                    sample = self.make(record, epoch, record["id"])
                except UnusableSample as error:
                    if self.on_unreadable == "stop":
                        raise
                    logger.warning_once(f"{error}; it is left out.")
                    continue
                made += 1
                yield sample
            if not made:  # a worker without a shard of its own, or nothing usable at all
                return
            epoch += 1


def _canvas_side(processor) -> int:
    return processor.image_processor.size["height"]


def _require_one_of(name: str, value: str | None, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}, not {value!r}.")
