# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""A recipe as a training run: its stages one after the other, from wherever an earlier run was interrupted.

    OUTPUT_DIR/recipe.yaml              what is trained
    OUTPUT_DIR/STAGE/checkpoint-STEP    to continue from; the newest and the best are kept
    OUTPUT_DIR/STAGE/curves.png         every loss and score of the stage
    OUTPUT_DIR/STAGE/finished           the model that a stage hands on, complete with its processor
    OUTPUT_DIR/results.json             scores of the last one on the recipe's splits, which are on its card, too

The same command continues a run that was stopped, or does nothing if it is complete (but push it, where it should).
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from .complete_output import write_text
from .configuration_oneref import DEFAULT_LOSS_WEIGHTS, OneRefConfig
from .configuration_vqkd import VqkdConfig
from .data.collator import ReferringCollator
from .data.loading import load_referring_dataset
from .data.sources import DatasetError
from .data.text_masking import ReferringTextMasker
from .data.training import ReferringMasking, ReferringSamples, StreamedReferringSamples, with_parsed_words
from .modeling_beit3 import POSITION_OFFSET
from .modeling_oneref import OneRefForGrounding, OneRefForPreTraining, OneRefForSegmentation
from .modeling_vqkd import VqkdModel
from .processing_oneref import OneRefProcessor
from .recipes import FRESH, MODEL_SIZES, SYNTHETIC, Recipe, RecipeError, Stage
from .trainer import MRefMTrainer, OneRefTrainer
from .trainer_callbacks import AVERAGED_FOLDER
from .training_curves import save_training_curves
from .training_publish import push, require_login, write_card
from .training_smoke import smoke_processor, smoke_records


logger = logging.get_logger(__name__)

FINISHED = "finished"
STOPPED_BY_SIGTERM = 143  # what a shell reports for it
_MODEL_CLASSES = {
    "rec": OneRefForGrounding,
    "res": OneRefForSegmentation,
    "rec+res": OneRefForSegmentation,
    "mrefm": OneRefForPreTraining,
}
_NEED_MASKS = ("similarity_focal", "similarity_dice", "mask_focal", "mask_dice")


class RunStopped(Exception):
    """SIGTERM ended the run after a checkpoint; the message says how to continue."""


def run_recipe(recipe: Recipe) -> Path:
    """Trains every stage that is not finished, scores the result, pushes it if it should, and returns its directory.

    Called alike by all processes that `accelerate launch` starts.

    Raises:
        RecipeError: if the output directory holds another run, or something that the recipe names is missing.
        DatasetError, TrainingStopped, UnusableSample, OSError: with one sentence for a person.
        RunStopped: after SIGTERM.
    """
    state = PartialState(cpu=_on_cpu(recipe))
    _claim(recipe, state)
    require_login(recipe)
    results = Path(recipe.output_dir, "results.json")
    if not results.exists():
        with state.main_process_first():
            _require_scored_data(recipe)
    source = recipe.locate(recipe.model.init)
    for number, stage in enumerate(recipe.stages):
        source = recipe.locate(recipe.model.init) if stage.init == "model" else source
        following = recipe.stages[number + 1].init if number + 1 < len(recipe.stages) else "model"
        hand_on = recipe.evaluation.keep if following == "model" else following
        finished = Path(recipe.output_dir, stage.name, FINISHED)
        if not finished.is_dir():
            _run_stage(recipe, stage, source, hand_on, state)
        source = str(finished)
    if recipe.evaluation.splits and not results.exists():
        _score(recipe, recipe.stages[-1], source, results)
    if state.is_main_process:
        scores = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
        write_card(recipe, scores, Path(source))
        if recipe.push_to_hub is not None:
            push(Path(source), recipe.push_to_hub)
    return Path(source)


def _claim(recipe: Recipe, state: PartialState) -> None:
    """Notes the recipe in its output directory, or refuses one where another has been trained."""
    note, text = Path(recipe.output_dir, "recipe.yaml"), recipe.to_yaml()
    trained = any(path for kind in ("checkpoint-*", FINISHED) for path in note.parent.glob(f"*/{kind}"))
    if trained and note.is_file() and note.read_text(encoding="utf-8") != text:
        raise RecipeError(
            f"'{recipe.output_dir}' holds a run of another recipe; delete it or choose another with --output_dir."
        )
    state.wait_for_everyone()
    if state.is_main_process:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, text)
    state.wait_for_everyone()


def _run_stage(recipe: Recipe, stage: Stage, source: str, hand_on: str, state: PartialState) -> None:
    folder = Path(recipe.output_dir, stage.name)
    trainer = build_trainer(recipe, stage, source)
    trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
    if state.is_main_process:
        _draw_curves(trainer.state.log_history, folder / "curves.png")
    if trainer.stopped_early:
        raise RunStopped(
            f"stopped after step {trainer.state.global_step} of stage '{stage.name}', which is saved in {folder}; the "
            "same command continues"
        )
    # By number, since the path in the state is wrong once the run has moved.
    best = folder / f"checkpoint-{trainer.state.best_global_step}"
    checkpoint = best if hand_on == "best" and best.is_dir() else Path(get_last_checkpoint(folder))
    if state.is_main_process:
        _finish(recipe, checkpoint, folder / FINISHED, trainer.processing_class)
    state.wait_for_everyone()


def _draw_curves(log: list[dict], path: Path) -> None:
    try:
        save_training_curves(log, path)
    except (ImportError, ValueError) as error:  # without matplotlib, or before anything was logged
        logger.warning(f"There is no {path}: {error}")


def _finish(recipe: Recipe, checkpoint: Path, folder: Path, processor: OneRefProcessor) -> None:
    """The model of a checkpoint, with averaged weights if there are any, without what only its training needed."""
    averaged = checkpoint / AVERAGED_FOLDER
    model = _MODEL_CLASSES[recipe.task].from_pretrained(averaged if averaged.is_dir() else checkpoint)
    model.config.drop_path_rate = 0.0
    model.config.loss_weights = dict(DEFAULT_LOSS_WEIGHTS)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    os.replace(partial, folder)


def build_trainer(recipe: Recipe, stage: Stage, source: str) -> OneRefTrainer:
    """The trainer of one stage, its model loaded from `source` (a directory, a Hub id or `fresh`)."""
    args = training_arguments(recipe, stage)
    set_seed(recipe.seed)  # of fresh weights
    processor = build_processor(recipe, source)
    model = build_model(recipe, stage, source, processor)
    with args.main_process_first(desc="reading the data"):
        data = training_data(recipe, stage, processor, args)
        validation = None
        if args.eval_strategy != "no":
            name = recipe.evaluation.dataset or recipe.data.dataset
            # The training goes on where one picture of many is unreadable; the scores in the end are exact.
            lenient = not recipe.data.strict
            validation = scored_data(recipe, processor, name, recipe.evaluation.split, lenient)
    options = {
        "data_collator": ReferringCollator(
            processor.tokenizer.pad_token_id,
            pad_to=recipe.data.max_text_length if stage.losses["semantic_relation"] else None,
        ),
        "train_dataset": data,
        "eval_dataset": validation,
        "processing_class": processor,
        "schedule": stage.schedule,
        "freeze_backbone": stage.freeze_backbone,
        "sync_batch_norm": recipe.run.sync_batch_norm,
        "ema_decay": recipe.run.ema_decay,
    }
    if recipe.task != "mrefm":
        return OneRefTrainer(model, args, **options)
    return MRefMTrainer(model, args, visual_tokenizer=_visual_tokenizer(recipe, stage), **options)


def training_arguments(recipe: Recipe, stage: Stage) -> TrainingArguments:
    """What `Trainer` itself knows of a stage."""
    run, evaluation = recipe.run, recipe.evaluation
    # The number of processes is known once the arguments have set up the connection between them.
    per_device, accumulated = stage.split_batch(PartialState().num_processes)
    scored = evaluation.split is not None and evaluation.metric is not None
    when = "steps" if recipe.data.streaming else "epoch"  # a stream has no epochs
    return TrainingArguments(
        output_dir=str(Path(recipe.output_dir, stage.name)),
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=per_device,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        learning_rate=stage.learning_rate,
        weight_decay=recipe.optimizer.weight_decay,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        optim="adamw_torch" if _on_cpu(recipe) else "adamw_torch_fused",
        bf16=run.precision == "bfloat16",
        activation_checkpointing=run.gradient_checkpointing,
        torch_compile=run.compile,
        seed=recipe.seed,
        logging_steps=run.log_steps,
        save_strategy="epoch" if run.save_steps is None else "steps",
        save_steps=run.save_steps or 500,
        save_total_limit=2,
        eval_strategy=when if scored else "no",
        eval_steps=run.save_steps,
        metric_for_best_model=f"eval_{evaluation.metric}" if scored else None,
        greater_is_better=True,
        dataloader_num_workers=run.workers,
        dataloader_drop_last=True,
        dataloader_pin_memory=not _on_cpu(recipe),
        use_cpu=_on_cpu(recipe),
        report_to="none",
    )


def _on_cpu(recipe: Recipe) -> bool:
    """Without an accelerator this must be said, or each of several processes would take itself for the only one."""
    return recipe.smoke or not torch.accelerator.is_available()


# Model ------------------------------------------------------------------------------------------------------------
def build_processor(recipe: Recipe, source: str) -> OneRefProcessor:
    """The processor of `source`, for canvas side and text length of the recipe."""
    if source == FRESH and recipe.model.size == "tiny":
        return smoke_processor(recipe.model.image_size, recipe.data.max_text_length)
    if source == FRESH:  # the vocabulary is all that a fresh model takes from a released one
        source = recipe.locate(f"beit3-{recipe.model.size}")
    processor = _loaded(OneRefProcessor.from_pretrained, source)
    processor.image_processor.size = {"height": recipe.model.image_size, "width": recipe.model.image_size}
    processor.tokenizer.model_max_length = recipe.data.max_text_length  # what is saved, too
    return processor


def build_model(recipe: Recipe, stage: Stage, source: str, processor: OneRefProcessor) -> nn.Module:
    """The model of `source` with drop path and loss weights of the stage.

    Raises:
        RecipeError: if it cannot be loaded, or is of another size.
    """
    model_class = _MODEL_CLASSES[recipe.task]
    changes = {
        "drop_path_rate": stage.drop_path_rate,
        "loss_weights": dict(stage.losses),
        "trained_on_masks_only": recipe.trained_on_masks_only,
    }
    sizes = MODEL_SIZES.get(recipe.model.size, {})
    if source == FRESH:
        if recipe.model.size == "tiny":
            sizes = {**sizes, "vocab_size": len(processor.tokenizer)}
        return model_class(OneRefConfig(**sizes, image_size=recipe.model.image_size, **changes))
    model = _loaded(model_class.from_pretrained, source, **changes)
    found = {name: getattr(model.config, name) for name in sizes}
    if found != sizes:
        raise RecipeError(f"model.init: '{source}' is not of size {recipe.model.size} ({found}).")
    return resize_positions(model, recipe.model.image_size)


def resize_positions(model: nn.Module, image_size: int) -> nn.Module:
    """The model with the position table of another canvas, interpolated as `interpolate_pos_encoding` does."""
    if model.config.image_size == image_size:
        return model
    embeddings = model.backbone.vision_embeddings
    side = image_size // model.config.patch_size
    table = embeddings.position_embedding.weight.data
    rows = torch.cat([table[:POSITION_OFFSET], embeddings.interpolate_pos_encoding(side, side).data])
    embeddings.position_embedding = nn.Embedding.from_pretrained(rows, freeze=False)
    embeddings.image_size, embeddings.grid_size = image_size, side
    model.config.image_size = image_size
    return model


def _visual_tokenizer(recipe: Recipe, stage: Stage) -> VqkdModel | None:
    if not stage.losses["mim"]:
        return None
    name = recipe.model.visual_tokenizer
    if name != FRESH:
        return _loaded(VqkdModel.from_pretrained, recipe.locate(name))
    sizes = MODEL_SIZES[recipe.model.size]
    return VqkdModel(VqkdConfig(**sizes, image_size=recipe.model.image_size, codebook_size=8192))


def _loaded(load: Callable, source: str, **options):
    try:
        return load(source, **options)
    except Exception as error:  # missing files, another architecture, network, ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RecipeError(f"'{source}' cannot be loaded: {lines[0]}") from error


# Data -------------------------------------------------------------------------------------------------------------
def training_data(recipe: Recipe, stage: Stage, processor: OneRefProcessor, args: TrainingArguments):
    """Augmented samples with the labels that the losses of the stage need.

    Raises:
        RecipeError: if there are fewer records than one batch has.
    """
    records = _records(recipe, recipe.data.dataset, recipe.data.train_split)
    augmentation = recipe.data.augmentation
    options = {
        "augmentation": dict(vars(augmentation)),
        "target_masks": recipe.data.target_masks if any(stage.losses[name] for name in _NEED_MASKS) else None,
        "seed": recipe.seed,
        "on_unreadable": "stop" if recipe.data.strict else "skip",
    }
    if recipe.task == "mrefm":
        if stage.losses["mlm"] and not recipe.smoke:
            records = with_parsed_words(records, recipe.data.masking.parser)
        masking = recipe.data.masking
        options["semantic_relation"] = bool(stage.losses["semantic_relation"])
        options["masking"] = ReferringMasking(
            ReferringTextMasker(processor.tokenizer, mask_ratio=masking.text_ratio),
            grid_size=recipe.model.image_size // OneRefConfig().patch_size,
            image_mask=masking.strategy,
            inside_ratio=masking.inside_ratio,
            outside_ratio=masking.outside_ratio,
            image_ratio=masking.image_ratio,
        )
    if not recipe.data.streaming and len(records) < stage.batch_size:
        raise RecipeError(
            f"The data set '{recipe.data.dataset}' has {len(records)} records to train on, which is less than one "
            f"batch; give --stages.{stage.name}.batch_size at most that."
        )
    if recipe.data.streaming:
        place = {"rank": args.process_index, "world_size": args.world_size}
        return StreamedReferringSamples(records, processor, **place, **options)
    return ReferringSamples(records, processor, **options)


def scored_data(
    recipe: Recipe, processor: OneRefProcessor, dataset: str, split: str, lenient: bool = False
) -> ReferringSamples:
    """Samples of the evaluation transform.

    Records without a box are left out. A picture that cannot be read is an error or, if `lenient`, gives its place to
    the next one.
    """
    target_masks = "segmentation" if recipe.task in ("res", "rec+res") else None
    records = _scored_records(recipe, dataset, split)
    on_unreadable = "skip" if lenient else "stop"
    return ReferringSamples(records, processor, target_masks=target_masks, on_unreadable=on_unreadable)


def _scored_records(recipe: Recipe, dataset: str, split: str):
    """Those with a box, which every score needs.

    Raises:
        RecipeError: if there are none, or with `data.strict` if one has none.
    """
    records = _records(recipe, dataset, split, streaming=False)
    boxes = records.select_columns("box_truncated").with_format("arrow")
    valid = itertools.chain.from_iterable(part["box_truncated"].is_valid().to_pylist() for part in boxes.iter(1000))
    kept = [index for index, has_box in enumerate(valid) if has_box]
    missing = len(records) - len(kept)
    if not kept or (missing and recipe.data.strict):
        raise RecipeError(f"{missing} of {len(records)} records of '{dataset}', split {split}, have no box to score.")
    if missing:
        logger.warning(f"{dataset}, {split}: {missing} records without a box are not scored.")
        records = records.select(kept)
    return records


def _records(recipe: Recipe, dataset: str, split: str, streaming: bool | None = None):
    data = recipe.data
    streaming = data.streaming if streaming is None else streaming
    if dataset == SYNTHETIC:
        return smoke_records(split).to_iterable_dataset() if streaming else smoke_records(split)
    return load_referring_dataset(
        recipe.locate(dataset),
        split,
        streaming=streaming,
        column_mapping=data.columns,
        images=data.images,
        strict=data.strict,
    )


def _require_scored_data(recipe: Recipe) -> None:
    """What is missing for the scores is said before the training rather than after it."""
    for dataset, splits in recipe.evaluation.splits.items():
        for split in splits:
            try:
                _scored_records(recipe, dataset, split)
            except (DatasetError, RecipeError) as error:
                raise RecipeError(f"evaluation.splits: {error}") from error


def _score(recipe: Recipe, stage: Stage, source: str, results: Path) -> None:
    """The finished model on the splits of the recipe, all processes together, into `results`."""
    processor = OneRefProcessor.from_pretrained(source)
    model = _MODEL_CLASSES[recipe.task].from_pretrained(source)
    trainer = OneRefTrainer(model, training_arguments(recipe, stage), ReferringCollator(), eval_dataset=[])
    scores: dict = {}
    for dataset, splits in recipe.evaluation.splits.items():
        for split in splits:
            found = trainer.evaluate(scored_data(recipe, processor, dataset, split))
            names = {name.removeprefix("eval_"): value for name, value in found.items()}
            scores.setdefault(dataset, {})[split] = {
                name: value
                for name, value in names.items()
                if name != "epoch" and not name.startswith(("runtime", "samples_", "steps_"))
            }
    if trainer.is_world_process_zero():
        write_text(results, json.dumps(scores, indent=2) + "\n")
    trainer.accelerator.wait_for_everyone()
