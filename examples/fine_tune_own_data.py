# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune on your own data: here the model learns to be asked in German.

    python examples/fine_tune_own_data.py      # everything at once; results in outputs/examples/fine_tune_own_data

Or cell by cell, in any editor that knows `# %%`. For real training there is `training/finetune.py` with its recipes,
which runs on many devices and survives a stop; this shows what it is made of.
"""

# %% The model
import json
from pathlib import Path

from transformers import TrainingArguments, set_seed

from oneref_hf import OneRefProcessor, OneRefTrainer
from oneref_hf.cli import default_model
from oneref_hf.data import load_referring_dataset
from oneref_hf.data.collator import ReferringCollator
from oneref_hf.data.scenes import scene_sample
from oneref_hf.data.training import ReferringSamples
from oneref_hf.pipeline_oneref import AutoModelForReferringExpression, ReferringExpressionPipeline
from oneref_hf.visualization import draw_answers


MODEL = default_model()  # knows drawn scenes; for photographs the directory of a converted model, or its id on the Hub
OUTPUT = Path("outputs/examples/fine_tune_own_data")
NUM_PHRASES = {"train": 256, "val": 64}
EPOCHS = 4

set_seed(0)
processor = OneRefProcessor.from_pretrained(MODEL)
model = AutoModelForReferringExpression.from_pretrained(MODEL)

# %% Your data: JSON Lines, one object per phrase, boxes as x0, y0, x1, y1 in pixels. The README lists all fields.
COLOURS = {
    "red": "rot",
    "orange": "orange",
    "yellow": "gelb",
    "green": "gruen",
    "blue": "blau",
    "purple": "lila",
    "pink": "rosa",
    "brown": "braun",
    "black": "schwarz",
    "white": "weiss",
}
SHAPES = {
    "circle": "kreis",
    "square": "quadrat",
    "triangle": "dreieck",
    "star": "stern",
    "cross": "kreuz",
    "ring": "ring",
    "heart": "herz",
    "crescent": "mond",
    "arrow": "pfeil",
    "hexagon": "sechseck",
    "cup": "tasse",
    "drop": "tropfen",
}


def german(split: str, count: int):
    """Scenes whose target is the only one of its colour and shape, each with its phrase."""
    number = 0
    while count:
        sample = scene_sample(split, number)
        number += 1
        looks = [(thing.colour, thing.shape) for thing in sample.scene.objects]
        colour, shape = looks[sample.target]
        if looks.count((colour, shape)) == 1:
            count -= 1
            yield f"{SHAPES[shape]}, {COLOURS[colour]}", sample.record(160)


for split, count in NUM_PHRASES.items():
    folder = OUTPUT / "data" / split
    folder.mkdir(parents=True, exist_ok=True)
    with open(OUTPUT / "data" / f"{split}.jsonl", "w", encoding="utf-8") as file:
        for number, (phrase, record) in enumerate(german(split, count)):
            record["image"].save(folder / f"{number}.png")
            record["mask"].save(folder / f"{number}.mask.png")
            row = {"image": f"{split}/{number}.png", "phrase": phrase, "box": record["box"]}
            file.write(json.dumps({**row, "segmentation": f"{split}/{number}.mask.png"}) + "\n")

# %% From rows to samples: pictures letterboxed, augmented for training, masks and boxes along with them
records = {split: load_referring_dataset(OUTPUT / "data", split) for split in NUM_PHRASES}
augmentation = {"crop": False, "num_scales": 3, "color_jitter": 0.2}
train = ReferringSamples(records["train"], processor, augmentation=augmentation, target_masks="segmentation")
val = ReferringSamples(records["val"], processor, target_masks="segmentation")

# %% Training: the losses in the model's configuration, those whose labels the samples have
trainer = OneRefTrainer(
    model,
    TrainingArguments(
        output_dir=str(OUTPUT / "checkpoints"),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        learning_rate=3e-4,
        logging_steps=8,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
    ),
    data_collator=ReferringCollator(processor.tokenizer.pad_token_id),
    train_dataset=train,
    eval_dataset=val,
    schedule="cosine_per_step",
)
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
for name in ("accuracy@0.5", "mean_iou", "miou"):
    if f"eval_{name}" in after:
        print(f"{name:13} {before[f'eval_{name}']:.3f} before, {after[f'eval_{name}']:.3f} after")

# %% Save it as a directory that `oneref ground --model`, the pipeline and the Hub take, and ask it
model.save_pretrained(OUTPUT / "model")
processor.save_pretrained(OUTPUT / "model")
finder = ReferringExpressionPipeline(model=model, processor=processor)
record = records["val"][0]
picture = record["image"].resize([side * 2 for side in record["image"].size])
draw_answers(picture, finder(picture, record["phrase"])).save(OUTPUT / "answer.png")
print("written:", OUTPUT / "model", OUTPUT / "answer.png")
