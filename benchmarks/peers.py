# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""OneRef beside the models in Transformers that also find phrases in pictures: time per picture, in one run.

    python benchmarks/peers.py [--phrases 1] [--models NAME ...] [--dtype float32] [--rounds 3]
    python benchmarks/peers.py --phrases 16 --rounds 1

Every model has its published configuration, written down below, and random weights, which take as long as trained
ones. Each gets one picture of 640 x 480 at the size that its own processor makes of it, and phrases of ten words as
token ids that are made up but as many as its own tokenizer makes; making them and reading the answers off is not
counted. How the phrases go in is what each model's documentation does:

- Grounding DINO puts all phrases into one text, so its cost hardly grows with them. Beyond 256 tokens, some twenty of
  our phrases, it takes another pass.
- OWLv2 and OmDet-Turbo encode picture and phrases apart and share the picture.
- CLIPSeg repeats the picture for every phrase.
- Florence-2 writes its answer: phrase, four coordinates and end, here 16 tokens, greedily (three beams are usual). The
  picture is repeated for every phrase.
- OneRef reads picture and phrase together in every layer, so it repeats all but the embedding of the picture.

They run in turn, round by round; ratios are taken within each round. The table shows medians.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measuring import (
    WORDS,
    fail,
    interleaved,
    machine,
    parser_of,
    print_header,
    print_row,
    ratio,
)
from torch import nn
from transformers import (
    BartConfig,
    BertConfig,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTextConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    SwinConfig,
    initialization,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from oneref_hf import OneRefConfig, OneRefForGrounding, OneRefForSegmentation
from oneref_hf.modeling_oneref import answer_phrases


WORDS_OF_PHRASE = 10
SWIN_TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12}
FLORENCE_IMAGE_TOKENS = 577
FLORENCE_PROMPT_TOKENS = 20  # BOS, "Locate the phrases in the caption: ", ten words, EOS
FLORENCE_ANSWER_TOKENS = 16  # BOS, ten words, four coordinates, EOS


@dataclass(frozen=True)
class Peer:
    """A model of the comparison.

    published: the checkpoint whose configuration it has.
    parameters: millions of them in that checkpoint.
    image_size: height and width of its input for a picture of 640 x 480.
    answers: what it says about a phrase.
    build: makes the model.
    run: `(model, pixel_values, number of phrases)` does its work.
    """

    published: str
    parameters: int
    image_size: tuple[int, int]
    answers: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, torch.Tensor, int], object]


def words(*shape: int) -> torch.Tensor:
    """Token ids that are ordinary words in every vocabulary of the comparison."""
    return torch.randint(2000, 20000, shape, generator=torch.Generator().manual_seed(0))


def grounding_dino(swin: dict, image_size: int) -> nn.Module:
    backbone = SwinConfig(**swin, image_size=image_size, out_indices=[2, 3, 4])
    return GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone, text_config=BertConfig()))


def run_grounding_dino(model, pixel_values, phrases):
    full_stop, first, last = 1012, 101, 102
    rows = torch.cat([words(phrases, WORDS_OF_PHRASE), torch.full((phrases, 1), full_stop)], dim=1).flatten()
    input_ids = torch.cat([torch.tensor([first]), rows, torch.tensor([last])])[None]
    if input_ids.shape[1] > model.config.max_text_len:
        fail(f"Grounding DINO reads {model.config.max_text_len} tokens at most; ask for fewer phrases than {phrases}.")
    return model(pixel_values, input_ids, attention_mask=torch.ones_like(input_ids))


def clip_text(phrases: int, length: int) -> dict[str, torch.Tensor]:
    """What CLIP's tokenizer makes of the phrases, padded to `length`: first and last have the highest ids."""
    first, last = 49406, 49407
    input_ids = torch.zeros(phrases, length, dtype=torch.long)
    input_ids[:, 1 : 1 + WORDS_OF_PHRASE] = words(phrases, WORDS_OF_PHRASE)
    input_ids[:, 0], input_ids[:, 1 + WORDS_OF_PHRASE] = first, last
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(length) < WORDS_OF_PHRASE + 2).long() + 0 * input_ids,
    }


def owlv2() -> nn.Module:
    return Owlv2ForObjectDetection(Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}))


def run_owlv2(model, pixel_values, phrases):
    return model(pixel_values=pixel_values, **clip_text(phrases, 16))


def omdet_turbo() -> nn.Module:
    # Swin as Transformers has it, which normalises its feature maps itself, rather than timm's.
    config = OmDetTurboConfig(
        backbone_config=SwinConfig(**SWIN_TINY, image_size=640, out_indices=[2, 3, 4]),
        apply_layernorm_after_vision_backbone=False,
        text_config=CLIPTextConfig(),
    )
    return OmDetTurboForObjectDetection(config)


def run_omdet_turbo(model, pixel_values, phrases):
    # It remembers phrases; ours are always new.
    model.language_cache_class.cache.clear()
    model.language_cache_prompt.cache.clear()
    classes = clip_text(phrases, WORDS_OF_PHRASE + 2)
    # The task says all phrases once more, as far as CLIP's 77 tokens go.
    task = words(1, min(2 + phrases * (WORDS_OF_PHRASE + 1), 75))
    task = torch.cat([torch.tensor([[49406]]), task, torch.tensor([[49407]])], dim=1)
    return model(
        pixel_values=pixel_values,
        classes_input_ids=classes["input_ids"],
        classes_attention_mask=classes["attention_mask"],
        tasks_input_ids=task,
        tasks_attention_mask=torch.ones_like(task),
        classes_structure=torch.tensor([phrases]),
    )


def clipseg() -> nn.Module:
    config = CLIPSegConfig(vision_config={"patch_size": 16}, use_complex_transposed_convolution=True)
    return CLIPSegForImageSegmentation(config)


def run_clipseg(model, pixel_values, phrases):
    return model(pixel_values=pixel_values.repeat(phrases, 1, 1, 1), **clip_text(phrases, WORDS_OF_PHRASE + 2))


def florence2() -> nn.Module:
    text = BartConfig(
        vocab_size=51328,
        d_model=768,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
    )
    vision = Florence2VisionConfig(projection_dim=768)
    return Florence2ForConditionalGeneration(Florence2Config(text_config=text, vision_config=vision))


def run_florence2(model, pixel_values, phrases):
    image = torch.full((phrases, FLORENCE_IMAGE_TOKENS), model.config.image_token_id)
    input_ids = torch.cat([image, words(phrases, FLORENCE_PROMPT_TOKENS)], dim=1)
    return model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pixel_values=pixel_values.repeat(phrases, 1, 1, 1),
        min_new_tokens=FLORENCE_ANSWER_TOKENS,
        max_new_tokens=FLORENCE_ANSWER_TOKENS,
        num_beams=1,
        do_sample=False,
    )


def run_oneref(model, pixel_values, phrases):
    input_ids = torch.randint(WORDS.start, WORDS.stop, (phrases, WORDS_OF_PHRASE + 2))
    return answer_phrases(model, pixel_values, input_ids)


PEERS = {
    "OneRef base, REC": Peer(
        "rec-base", 225, (384, 384), "box", lambda: OneRefForGrounding(OneRefConfig()), run_oneref
    ),
    "OneRef base, RES": Peer(
        "res-base", 232, (384, 384), "box, mask", lambda: OneRefForSegmentation(OneRefConfig()), run_oneref
    ),
    "Grounding DINO tiny": Peer(
        "IDEA-Research/grounding-dino-tiny",
        172,
        (800, 1066),
        "boxes",
        lambda: grounding_dino(SWIN_TINY, 224),
        run_grounding_dino,
    ),
    "Grounding DINO base": Peer(
        "IDEA-Research/grounding-dino-base",
        233,
        (800, 1066),
        "boxes",
        lambda: grounding_dino(SWIN_BASE, 384),
        run_grounding_dino,
    ),
    "OWLv2 base": Peer("google/owlv2-base-patch16-ensemble", 155, (960, 960), "boxes", owlv2, run_owlv2),
    "OmDet-Turbo tiny": Peer("omlab/omdet-turbo-swin-tiny-hf", 115, (640, 640), "boxes", omdet_turbo, run_omdet_turbo),
    "CLIPSeg": Peer("CIDAS/clipseg-rd64-refined", 151, (352, 352), "mask", clipseg, run_clipseg),
    "Florence-2 base": Peer("florence-community/Florence-2-base", 232, (768, 768), "boxes", florence2, run_florence2),
}
OURS = "OneRef base, REC"


def with_random_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """The model in evaluation mode, its weights filled in a way that takes a tenth of the time of its own."""
    with initialization.no_init_weights():
        model = build().eval()
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02, generator=generator)
    return model


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--phrases", type=int, nargs="+", default=[1, 16], help="about the picture")
    parser.add_argument("--models", nargs="+", default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    unknown = [name for name in options.models if name not in PEERS]
    if unknown:
        fail(f"There is no model '{unknown[0]}' here; there are {', '.join(PEERS)}.")
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    peers = {name: PEERS[name] for name in dict.fromkeys([OURS, *options.models])}
    models = {name: with_random_weights(peer.build).to(dtype) for name, peer in peers.items()}
    pictures = {name: torch.randn(1, 3, *peer.image_size).to(dtype) for name, peer in peers.items()}
    interleaved({name: lambda n=name: peers[n].run(models[n], pictures[n], 1) for name in peers}, 0)  # warms up

    print(f"{machine()}, {options.dtype}; one picture")
    print_header(
        "model", "input", "million parameters", "answers", "phrases", "seconds", "per phrase", "times OneRef (min-max)"
    )
    for phrases in options.phrases:
        work = {name: lambda n=name: peers[n].run(models[n], pictures[n], phrases) for name in peers}  # noqa: B023
        times = interleaved(work, options.rounds, warm_up=False)
        for name, peer in peers.items():
            took = statistics.median(times[name])
            print_row(
                name,
                "{} x {}".format(*peer.image_size),
                f"{sum(parameter.numel() for parameter in models[name].parameters()) / 1e6:.0f}",
                peer.answers,
                phrases,
                f"{took:.2f}",
                f"{took / phrases:.2f}",
                ratio(times[name], times[OURS]),
            )


if __name__ == "__main__":
    main()
