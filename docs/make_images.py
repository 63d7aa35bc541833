# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Draws most pictures of the README and the documentation, from drawn scenes and the model that is used by default.

    python docs/make_images.py                      # all of them, into docs/images
    python docs/make_images.py masking scenes       # some; those need no model

The same model gives the same pictures again.
"""

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from PIL import Image

from oneref_hf import cli
from oneref_hf.data.scenes import scene_sample
from oneref_hf.data.scenes.contact_sheet import contact_sheet
from oneref_hf.data.scenes.showcase import showcase
from oneref_hf.illustrations import masking_figure, semantic_relation_figure, visual_relation_figure
from oneref_hf.visualization import draw_answers, draw_figure


IMAGES = Path(__file__).parent / "images"
_WIDEST = 1600  # pixels
# Scenes of the split "test" that show well what is to be seen; their pictures were never trained on.
_MASKED, _RELATED, _READ, _SHEET = 18, 71, 22, range(13, 25)
_FIGURE = 13
# With it, block-wise masking hides as much of the target as it does on average, two fifths.
_MASKING_SEED = 24


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        for name in options.names or PICTURES:
            print("written:", _write(PICTURES[name](), options.output / f"{name}.png"))
    except (cli.CommandError, OSError) as error:
        print(f"make_images: {error}", file=sys.stderr)
        return 1
    return 0


def scenes() -> Image.Image:
    """What the scenes look like, with their phrases."""
    return contact_sheet([scene_sample("test", number).record(320) for number in _SHEET])


def masking() -> Image.Image:
    """The paper's Figure 4: three ways to hide patches."""
    scene = scene_sample("test", _MASKED).record(480)
    return masking_figure(scene["image"], scene["box"], scene["phrase"], seed=_MASKING_SEED)


def visual_relation() -> Image.Image:
    """The paper's Figure 2: how each patch relates to the referred box."""
    scene = scene_sample("test", _RELATED).record(480)
    return visual_relation_figure(scene["image"], scene["box"], scene["phrase"])


def semantic_relation() -> Image.Image:
    """The same for words, as the frozen model labels them."""
    from oneref_hf.data.semantic_relation import semantic_relation_labels

    model, processor = _model()
    scene = scene_sample("test", _READ).record(480)
    inputs = processor(scene["image"], scene["phrase"], boxes=[scene["box"]])
    labels = semantic_relation_labels(model.oneref, inputs)[0]
    pieces = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])[1:-1]
    return semantic_relation_figure(scene["image"], scene["box"], pieces, labels[: len(pieces)], scene["phrase"])


def quickstart() -> Image.Image:
    """What `oneref ground --example` writes."""
    picture, phrases = showcase(cli.EXAMPLE)
    return draw_answers(picture, _finder()(picture, phrases, mask=False))


def figure() -> Image.Image:
    """What `oneref ground --example 13 --figure` writes: picture, mask, box and similarity map of every phrase."""
    picture, phrases = showcase(_FIGURE)
    return draw_figure(picture, _finder()(picture, phrases, heatmap=True))


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "scenes": scenes,
    "masking": masking,
    "visual_relation": visual_relation,
    "semantic_relation": semantic_relation,
    "quickstart": quickstart,
    "figure": figure,
}


@cache
def _model():
    """The model and the processor that the command uses without --model."""
    from oneref_hf import OneRefProcessor
    from oneref_hf.pipeline_oneref import AutoModelForReferringExpression

    directory = cli.default_model()
    return AutoModelForReferringExpression.from_pretrained(directory), OneRefProcessor.from_pretrained(directory)


def _finder():
    from oneref_hf.pipeline_oneref import ReferringExpressionPipeline

    model, processor = _model()
    return ReferringExpressionPipeline(model=model, processor=processor, device="cpu")


def _write(picture: Image.Image, path: Path) -> Path:
    """As a PNG of at most 256 colours, whose size suits a repository."""
    if picture.width > _WIDEST:
        size = (_WIDEST, round(picture.height * _WIDEST / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.quantize(256, Image.Quantize.MEDIANCUT, kmeans=3).save(partial, "PNG", optimize=True)
    partial.replace(path)
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--output", type=Path, default=IMAGES, metavar="DIR", help="default: docs/images")
    return parser


if __name__ == "__main__":
    sys.exit(main())
