# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""A tiny world to train in, for the tests of the trainers and for the processes that they start.

torchrun --nproc_per_node 2 tests/trainer_world.py FOLDER

trains every kind (FOLDER/KIND.json is its log), continues a run that one process was told to stop
(FOLDER/continued-RANK.json), gives one process a sample without a loss (FOLDER/broken-RANK.json) and reads a stream
(FOLDER/stream-RANK.json).
"""

import json
import math
import os
import signal
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import TrainerCallback, TrainingArguments, set_seed

from oneref_hf import (
    OneRefConfig,
    OneRefForGrounding,
    OneRefForPreTraining,
    OneRefForSegmentation,
    OneRefProcessor,
    VqkdConfig,
    VqkdModel,
)
from oneref_hf.data.collator import ReferringCollator
from oneref_hf.data.records import make_record, record_features
from oneref_hf.data.text_masking import ReferringTextMasker
from oneref_hf.data.training import ReferringMasking, ReferringSamples, StreamedReferringSamples
from oneref_hf.image_processing_pil_oneref import OneRefImageProcessorPil
from oneref_hf.trainer import MRefMTrainer, OneRefTrainer, TrainingStopped


FIXTURES = Path(__file__).parent / "fixtures"
SIDE, PATCH, LENGTH = 64, 16, 16
PICTURES = ["astronaut_150x201.png", "chelsea_121x121.png", "coffee_210x140.png", "rocket_63x40.png"]
PHRASES = ["the cup", "a red spoon left of the big cup", "person", "old dog near the wooden table by the bench", "cat"]

# What each kind of training optimises.
LOSSES = {
    "rec": ("box_l1", "box_giou", "similarity_focal", "similarity_dice"),
    "res": ("mask_focal", "mask_dice"),
    "mrefm": ("mim", "visual_relation", "mlm", "semantic_relation", "similarity_focal", "similarity_dice"),
    "image": ("mim", "similarity_focal"),
    "text": ("mlm", "similarity_focal"),
    "contrastive": ("box_l1", "contrastive"),
}
MODELS = {"rec": OneRefForGrounding, "res": OneRefForSegmentation, "contrastive": OneRefForGrounding}
AUGMENTATION = {"crop": True, "num_scales": 2, "translate": True, "color_jitter": 0.4}


def tokenizer():
    sys.path.insert(0, str(Path(__file__).parents[1] / "conversion"))
    from tokenizer import build_tokenizer

    return build_tokenizer(FIXTURES / "tiny.spm")


def processor() -> OneRefProcessor:
    return OneRefProcessor(OneRefImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer())


def records(number: int):
    from datasets import Dataset

    rows = []
    for index in range(number):
        path = FIXTURES / PICTURES[index % len(PICTURES)]
        width, height = Image.open(path).size
        x, y = 3 + index % 7, 2 + index % 5
        row = {
            "id": f"r{index}",
            "image": str(path),
            "phrase": PHRASES[index % len(PHRASES)],
            "box": [x, y, width - 2 * y, height - 2 * x],
            "segmentation": [[x, y, width - y, y, x, height - x]] if index % 2 else None,
            "semantic_relation_labels": [float((index + place) % 4) for place in range(LENGTH - 2)],
        }
        rows.append(make_record(row, default_id="", default_source="world"))
    return Dataset.from_list(rows, features=record_features())


def model(kind: str, **config):
    losses = OneRefConfig().loss_weights
    weights = {name: (losses[name] or 1.0) if name in LOSSES[kind] else 0.0 for name in losses}
    set_seed(1)
    return MODELS.get(kind, OneRefForPreTraining)(
        OneRefConfig(
            vocab_size=216,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=SIDE,
            patch_size=PATCH,
            visual_vocab_size=32,
            loss_weights=weights,
            **config,
        )
    )


def visual_tokenizer() -> VqkdModel:
    set_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return VqkdModel(VqkdConfig(**sizes, image_size=SIDE, patch_size=PATCH, codebook_size=32, codebook_dim=8))


def samples(kind: str, number: int = 12, augmentation: dict | None = None, **options) -> ReferringSamples:
    """`augmentation=None` is the evaluation transform."""
    if kind in MODELS:
        masking = None
    else:
        masking = ReferringMasking(ReferringTextMasker(tokenizer()), SIDE // PATCH)
        options["semantic_relation"] = kind == "mrefm"
    return ReferringSamples(
        records(number),
        processor(),
        augmentation=augmentation,
        target_masks="segmentation",
        masking=masking,
        **options,
    )


def arguments(folder, **options) -> TrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "dataloader_drop_last": True,
    }
    return TrainingArguments(output_dir=str(folder), **{**defaults, **options})


def trainer(kind: str, folder, *, data=None, net=None, callbacks=None, evaluate=None, extra=None, **options):
    """`extra` goes to the trainer, `options` to its `TrainingArguments`."""
    extra = dict(extra or {})
    trainer_class = OneRefTrainer
    if kind not in MODELS:
        trainer_class = MRefMTrainer
        extra["visual_tokenizer"] = visual_tokenizer()
    return trainer_class(
        model(kind) if net is None else net,
        arguments(folder, **options),
        data_collator=ReferringCollator(pad_to=LENGTH if kind == "mrefm" else None),
        train_dataset=samples(kind) if data is None else data,
        eval_dataset=evaluate,
        callbacks=callbacks,
        **extra,
    )


def curve(log: list[dict]) -> list[dict]:
    """The losses of every step."""
    skipped = ("learning_rate", "epoch", "step")
    return [{k: v for k, v in row.items() if k not in skipped} for row in log if "loss" in row]


class StopAt(TrainerCallback):
    """Ends training after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


class Terminate(TrainerCallback):
    """What a cluster does to a process in the middle of a step."""

    def __init__(self, step, rank=0):
        self.step, self.rank = step, rank

    def on_step_begin(self, args, state, control, **kwargs):
        if (state.global_step, args.process_index) == (self.step - 1, self.rank):
            os.kill(os.getpid(), signal.SIGTERM)


def long_run(kind, folder, callbacks=None, **options):
    """20 steps with everything random switched on: augmentation, masks, drop path, averaged weights."""
    net = model(kind, drop_path_rate=0.3)
    data = samples(kind, augmentation=AUGMENTATION)
    extra = {"schedule": "cosine_per_epoch", "ema_decay": 0.9}
    options = {"save_strategy": "steps", "save_steps": 10, "num_train_epochs": 8, "logging_steps": 5, **options}
    return trainer(kind, folder, data=data, net=net, callbacks=callbacks, extra=extra, **options)


def all_weights(run) -> dict[str, torch.Tensor]:
    """Of the model and of its average."""
    return {**run.model.state_dict(), **{f"averaged {k}": v for k, v in run.average.module.state_dict().items()}}


def train_every_kind(folder: Path, kinds=("rec", "res", "mrefm", "contrastive"), **options) -> None:
    for kind in kinds:
        run = trainer(kind, folder / kind, evaluate=samples(kind, 7), **options)
        run.train()
        found = {"curve": curve(run.state.log_history), "scores": run.evaluate()}
        if run.is_world_process_zero():
            (folder / f"{kind}.json").write_text(json.dumps(found))


def continue_after_sigterm(folder: Path, **options) -> None:
    """The second process alone is told to stop."""
    straight = long_run("mrefm", folder / "straight", **options)
    straight.train()
    stopped = long_run("mrefm", folder / "parts", [Terminate(7, rank=1)], **options)
    stopped.train()
    resumed = long_run("mrefm", folder / "parts", **options)
    resumed.train(resume_from_checkpoint=True)
    expected, found = all_weights(straight), all_weights(resumed)
    facts = {
        "stopped": [stopped.stopped_early, stopped.state.global_step],
        "resumed": [resumed.stopped_early, resumed.state.global_step],
        "different": [name for name in expected if not torch.equal(expected[name], found[name])],
    }
    (folder / f"continued-{resumed.args.process_index}.json").write_text(json.dumps(facts))


def stop_at_a_broken_sample(folder: Path, **options) -> None:
    """One sample of the first step, which only one process has, gives no loss."""
    run = trainer("rec", folder / "broken", **options)
    data = [run.train_dataset[index] for index in range(len(run.train_dataset))]
    first = next(iter(run._get_train_sampler()))
    data[first]["box_labels"] = torch.full((4,), math.nan)
    run.train_dataset = data
    try:
        run.train()
    except TrainingStopped as error:
        (folder / f"broken-{run.args.process_index}.json").write_text(
            json.dumps([data[first]["sample_id"], str(error)])
        )


def read_a_stream(folder: Path, **options) -> None:
    """Each process notes the samples of its steps."""
    run = trainer("rec", folder / "stream", max_steps=4, extra={"schedule": "cosine_per_step"}, **options)
    place = {"rank": run.args.process_index, "world_size": run.args.world_size}
    run.train_dataset = StreamedReferringSamples(records(8).to_iterable_dataset(num_shards=2), processor(), **place)
    seen, check = [], run._check_together
    run._check_together = lambda losses, sample_ids: (seen.extend(sample_ids), check(losses, sample_ids))
    run.train()
    (folder / f"stream-{run.args.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, each = Path(sys.argv[1]), {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    train_every_kind(place, **each)
    continue_after_sigterm(place, **each)
    stop_at_a_broken_sample(place, **each)
    read_a_stream(place, **each)
