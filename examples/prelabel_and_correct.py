# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-label a folder, correct the labels in an annotation tool, and train on what comes back.

    python examples/prelabel_and_correct.py    # everything at once; results in outputs/examples/prelabel_and_correct

Or cell by cell, in any editor that knows `# %%`.
"""

# %% The model
import json
from pathlib import Path

from transformers import pipeline

import oneref_hf  # noqa: F401  makes `pipeline` know its task
from oneref_hf.cli import default_model
from oneref_hf.data import load_referring_dataset
from oneref_hf.data.exports import (
    LABEL_STUDIO_CONFIG,
    coco_dataset,
    label_studio_rows,
    label_studio_tasks,
    labelled_picture,
    write_json,
)
from oneref_hf.data.scenes import scene_sample
from oneref_hf.data.scenes.contact_sheet import contact_sheet


MODEL = default_model()  # knows drawn scenes; for photographs the directory of a converted model, or its id on the Hub
OUTPUT = Path("outputs/examples/prelabel_and_correct")
PICTURES = OUTPUT / "pictures"
PICTURES.mkdir(parents=True, exist_ok=True)

finder = pipeline("referring-expression", model=MODEL)

# %% A folder of pictures and what to look for in each. Here drawn scenes; a list of your own files does as well.
phrases_of = {}
for number in range(8):
    sample = scene_sample("test", number)
    path = PICTURES / f"scene{number}.png"
    sample.record(320)["image"].save(path)
    phrases_of[path] = [sample.phrase, "the largest object"]

# %% Pre-label: one pass over the folder. People look at the least certain pictures first.
labelled = [labelled_picture(path, finder(str(path), phrases), PICTURES) for path, phrases in phrases_of.items()]
labelled.sort(key=lambda picture: min(answer["score"] for answer in picture.answers))

# %% COCO JSON, which most annotation tools open: box, mask, phrase and score of every answer
write_json(OUTPUT / "coco.json", coco_dataset(labelled))

# %% Label Studio: import the tasks, paste the labelling interface, and let it serve the folder as local storage.
# regions="masks" gives masks to brush instead, if the model segments.
write_json(OUTPUT / "label_studio.json", label_studio_tasks(labelled, regions="boxes"))
(OUTPUT / "label_studio.xml").write_text(LABEL_STUDIO_CONFIG, encoding="utf-8")
print("written:", *(OUTPUT / name for name in ("coco.json", "label_studio.json", "label_studio.xml")))

# %% What people do to the COCO file, in short: a phrase reworded, a box moved, an answer thrown away
dataset = json.loads((OUTPUT / "coco.json").read_text(encoding="utf-8"))
reworded, moved, *_, wrong = dataset["annotations"]
reworded["phrase"] += " over there"
moved["bbox"] = [40, 30, 80.5, 60]
moved.pop("segmentation", None)
dataset["annotations"].remove(wrong)
write_json(OUTPUT / "corrected.json", dataset)

# %% Back again: the corrected file is a referring data set, ready for training/finetune.py and oneref predict
records = load_referring_dataset(OUTPUT / "corrected.json", None, images=PICTURES)
print(f"{len(records)} phrases, the first: {records[0]['phrase']!r} at {records[0]['box']}")
contact_sheet([records[number] for number in range(len(records))], columns=5).save(OUTPUT / "corrected.png")

# %% The same from Label Studio: "Export", "JSON". Here its first task is accepted as it is.
exported = json.loads((OUTPUT / "label_studio.json").read_text(encoding="utf-8"))
exported[0]["annotations"] = [{"result": exported[0]["predictions"][0]["result"]}]
with open(OUTPUT / "corrected.jsonl", "w", encoding="utf-8") as file:
    file.writelines(json.dumps(row) + "\n" for row in label_studio_rows(exported))
records = load_referring_dataset(OUTPUT / "corrected.jsonl", None, images=PICTURES)
print(f"{len(records)} phrases from Label Studio, the first: {records[0]['phrase']!r} at {records[0]['box']}")
