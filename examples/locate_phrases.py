# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Locate phrases in your pictures: one picture, several phrases, a folder, and answers to keep.

    python examples/locate_phrases.py          # everything at once; results in outputs/examples/locate_phrases

Or cell by cell, in any editor that knows `# %%`.
"""

# %% The model
import json
from pathlib import Path

from PIL import Image
from transformers import pipeline

import oneref_hf  # noqa: F401  makes `pipeline` know its task
from oneref_hf.cli import default_model
from oneref_hf.data.scenes import scene_sample
from oneref_hf.visualization import draw_answers, draw_figure, draw_heatmap


MODEL = default_model()  # knows drawn scenes; for photographs the directory of a converted model, or its id on the Hub
OUTPUT = Path("outputs/examples/locate_phrases")
OUTPUT.mkdir(parents=True, exist_ok=True)

finder = pipeline("referring-expression", model=MODEL)


def show(picture: Image.Image, name: str) -> Image.Image:
    """Writes a picture; a notebook shows what the last line of a cell returns."""
    picture.save(OUTPUT / name)
    print("written:", OUTPUT / name)
    return picture


# %% Pictures: a folder of drawn scenes. Put your own there, or name another folder.
PICTURES = OUTPUT / "pictures"
PICTURES.mkdir(exist_ok=True)
phrases_of = {}
for number in range(6):
    sample = scene_sample("test", number)
    path = PICTURES / f"scene{number}.png"
    sample.record(320)["image"].save(path)
    phrases_of[path] = [sample.phrase]

# %% One picture, one phrase: score, label, box in pixels and, if the model segments, the mask
path, (phrase, *_) = next(iter(phrases_of.items()))
answer = finder(path, phrase)
print({name: value for name, value in answer.items() if name != "mask"})
show(draw_answers(path, answer), "one.png")

# %% Several phrases about one picture: each gets its own colour
phrases = [phrase, "the largest object", "the object farthest to the left"]
answers = finder(path, phrases)
show(draw_answers(path, answers), "several.png")

# %% Picture, mask, box and similarity in a row, as in the paper's Figure 6
answers = finder(path, phrases, heatmap=True)
show(draw_figure(path, answers), "figure.png")

# %% The similarity map alone: a float array of the picture's size
show(draw_heatmap(path, answers[0]["heatmap"]), "similarity.png")

# %% A whole folder, read as it goes: every picture with its own phrases. `batch_size` counts pictures.
rows = ({"image": str(path), "text": phrases} for path, phrases in phrases_of.items())
found = list(finder(rows, batch_size=2, mask=False))
for path, answers in zip(phrases_of, found):
    for answer in answers:
        print(f"{path.name}  {answer['score']:.2f}  {answer['label']}")

# %% Keep only answers the model prefers clearly: below the threshold there is None. The score ranks answers of one
# model; it is no probability, and OneRef always points at something.
threshold = sorted(answer["score"] for answers in found for answer in answers)[len(found) // 2]
kept = [finder(path, phrases, threshold=threshold, mask=False) for path, phrases in phrases_of.items()]
print(sum(answer is not None for answers in kept for answer in answers), "answers of", len(found), "are kept")

# %% Answers as JSON Lines. For large data sets there is `oneref predict`, which continues where it was stopped.
with open(OUTPUT / "answers.jsonl", "w", encoding="utf-8") as file:
    for path, answers in zip(phrases_of, found):
        for answer in answers:
            file.write(json.dumps({"image": path.name, **answer}) + "\n")
print("written:", OUTPUT / "answers.jsonl")
