# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Look inside: where the phrase is found, layer by layer, and which words and patches look at one another.

    python examples/look_inside.py             # everything at once; results in outputs/examples/look_inside

Or cell by cell, in any editor that knows `# %%`.
"""

# %% The model, with attention that can be looked at
from pathlib import Path

import torch
from PIL import Image

from oneref_hf import OneRefProcessor
from oneref_hf.cli import default_model
from oneref_hf.data.scenes import scene_sample
from oneref_hf.illustrations import semantic_relation_figure
from oneref_hf.pipeline_oneref import AutoModelForReferringExpression
from oneref_hf.visualization import draw_answers, draw_heatmap, framed_panels


MODEL = default_model()  # knows drawn scenes; for photographs the directory of a converted model, or its id on the Hub
OUTPUT = Path("outputs/examples/look_inside")
OUTPUT.mkdir(parents=True, exist_ok=True)
PANEL = 240  # pixels of the longer side

processor = OneRefProcessor.from_pretrained(MODEL)
# Fused attention never has its probabilities in memory, hence "eager".
model = AutoModelForReferringExpression.from_pretrained(MODEL, attn_implementation="eager").eval()


def show(picture: Image.Image, name: str) -> Image.Image:
    """Writes a picture; a notebook shows what the last line of a cell returns."""
    picture.save(OUTPUT / name)
    print("written:", OUTPUT / name)
    return picture


# %% A picture and a phrase
sample = scene_sample("test", 5)
picture, phrase = sample.record(320)["image"], sample.phrase
picture.thumbnail((PANEL, PANEL))
size = (picture.height, picture.width)

inputs = processor(picture, phrase)
with torch.no_grad():
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
(answer,) = processor.post_process_grounded_object_detection(outputs, target_sizes=[size], text_labels=[phrase])
box = answer["boxes"][0].tolist()
pieces = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
num_patches = outputs.similarity_map[0].numel()
first_piece = 1 + num_patches  # the sequence is image CLS, patches, text

# %% The similarity map after every layer: what the last layer's projections make of earlier hidden states
oneref = model.oneref
states = [*outputs.hidden_states[1:-1], None]  # after each layer but the last, which is normalised already
maps = []
for state in states:
    if state is None:
        maps.append(outputs.similarity_map)
        continue
    patches = oneref.vision_projection(oneref.beit3.vision_norm(state[:, 1:first_piece]))
    bos = oneref.text_projection(oneref.beit3.text_norm(state[:, first_piece : first_piece + 1]))
    cosines = torch.cosine_similarity(patches, bos, dim=-1)  # (1, num_patches)
    maps.append(cosines.detach().view_as(outputs.similarity_map))


def spread(values: torch.Tensor) -> torch.Tensor:
    """A map over the patches, `(1, h, w)`, as one over the picture, `(height, width)`."""
    return processor.post_process_similarity({"similarity_map": values}, target_sizes=[size])[0]


panels = []
for layer, values in enumerate(maps, start=1):
    caption = f"layer {layer}\n{values.min():.2f} to {values.max():.2f}"
    panels.append((caption, draw_heatmap(picture, spread(values).numpy())))
corners = {"box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
panels.append(("the answer", draw_answers(picture, corners, labels=False)))
panels = panels if len(panels) <= 6 else [panels[round(k * (len(panels) - 1) / 5)] for k in range(6)]
show(framed_panels(phrase, panels), "similarity_by_layer.png")

# %% Where each word looks: attention from a text position to the patches, mean over the heads of the last layer
attention = outputs.attentions[-1][0].mean(0)  # (1 + num_patches + num_tokens, the same)
panels = []
for number, piece in enumerate(pieces[1:-1][:6], start=1):
    looked_at = attention[first_piece + number, 1:first_piece].view_as(outputs.similarity_map)
    share = looked_at.sum()  # the rest goes to the other words and to the image's CLS
    caption = f"{piece.replace('▁', '') or '_'}\n{share:.0%} on the picture"
    panels.append((caption, draw_heatmap(picture, spread(looked_at))))
show(framed_panels(f"{phrase}: where its words look", panels), "words_to_patches.png")

# %% And back: which words the patches of the answer look at
rows, columns = outputs.similarity_map.shape[-2:]
cx, cy, w, h = outputs.pred_boxes[0].tolist()
y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
inside = ((x - cx).abs() <= max(w / 2, 0.5 / columns)) & ((y - cy).abs() <= max(h / 2, 0.5 / rows))
to_words = attention[1:first_piece][inside.flatten()].mean(0)[first_piece + 1 : -1]
show(
    semantic_relation_figure(picture, box, pieces[1:-1], to_words, f"{phrase}: what its patches read"),
    "patches_to_words.png",
)
