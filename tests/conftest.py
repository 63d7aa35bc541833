# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Fixtures shared by all tests. `tests/fixtures/README.md` says what each golden file is."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


FIXTURES = Path(__file__).parent / "fixtures"

# Keys of the original's checkpoints by kind, as prefixes of the complete (MRefM) one.
_MASK_HEAD = ("seg_conv", "bn")
_MREFM_HEADS = ("mim_head", "mim_vts_head", "mlm_head", "mlm_sts_head")
_DROPPED_BY_KIND = {"rec": _MASK_HEAD + _MREFM_HEADS, "res": _MREFM_HEADS}
_ARGS_DROPPED = ("codebook_size", "enable_mrefm", "enable_ref_mim", "enable_ref_mlm")


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "golden.safetensors")


@pytest.fixture(scope="session")
def golden_facts() -> dict:
    return json.loads((FIXTURES / "golden.json").read_text())


def load_original(path: Path) -> dict:
    """Reads one of the fixture checkpoints: tensors, plain types and an argparse namespace."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True, map_location="cpu")


@pytest.fixture(scope="session")
def original_checkpoint(tmp_path_factory):
    """Returns a function `kind -> Path` giving a checkpoint in the original's container format.

    `mrefm` and `vqkd` are golden files; `rec`, `res` and `beit3` hold a subset of the tensors of `mrefm` and are cut
    out of it here rather than stored three more times.
    """
    folder = tmp_path_factory.mktemp("original_checkpoints")

    def path_of(kind: str) -> Path:
        if kind in ("mrefm", "vqkd"):
            return FIXTURES / f"{kind}_checkpoint.pth"
        path = folder / f"{kind}_checkpoint.pth"
        if not path.exists():
            complete = load_original(FIXTURES / "mrefm_checkpoint.pth")
            if kind == "beit3":
                cut = {"model": {k: v for k, v in complete["model"].items() if k.startswith("beit3.")}}
            else:
                args = {k: v for k, v in vars(complete["args"]).items() if k not in _ARGS_DROPPED}
                cut = {
                    **complete,
                    "model": {k: v for k, v in complete["model"].items() if not k.startswith(_DROPPED_BY_KIND[kind])},
                    "epoch": 19,
                    "args": argparse.Namespace(**{**args, "dataset": "unc"}),
                    "val_accu": torch.tensor(0.7757) if kind == "res" else 0.8875,
                }
            torch.save(cut, path)
        return path

    return path_of


@pytest.fixture(scope="session")
def tiny_sizes(golden_facts) -> dict[str, int]:
    """Sizes of the model that the golden files were made with, as configuration arguments."""
    facts = golden_facts["config"]
    return {
        "vocab_size": facts["vocab_size"],
        "hidden_size": facts["hidden_size"],
        "num_hidden_layers": facts["num_hidden_layers"],
        "num_attention_heads": facts["num_attention_heads"],
        "intermediate_size": 4 * facts["hidden_size"],
        "image_size": facts["image_size"],
        "patch_size": facts["patch_size"],
    }


@pytest.fixture(scope="session")
def golden_model(tiny_sizes, golden_facts):
    """Returns a function `(model_class, **config) -> model` in evaluation mode with the golden weights."""
    from oneref_keys import TASKS, assignments_of

    from oneref_hf import OneRefConfig

    original = load_original(FIXTURES / "mrefm_checkpoint.pth")["model"]
    task_of_class = {task.model_class: name for name, task in TASKS.items()}
    visual_vocab_size = golden_facts["config"]["codebook_size"]

    def build(model_class, **config):
        config = OneRefConfig(**tiny_sizes, visual_vocab_size=visual_vocab_size, **config)
        model = model_class(config).eval()
        sources = assignments_of(task_of_class[model_class.__name__], config.num_hidden_layers)
        weights = {
            target: torch.cat([original[name] for name in names]) if len(names) > 1 else original[names[0]]
            for target, names in sources.items()
        }
        model.load_state_dict(weights)
        return model

    return build


@pytest.fixture(scope="session")
def tiny_processor():
    """The processor that goes with it: pictures of 64 pixels, a vocabulary of a few words."""
    from tokenizer import build_tokenizer

    from oneref_hf import OneRefProcessor
    from oneref_hf.image_processing_pil_oneref import OneRefImageProcessorPil

    size = {"height": 64, "width": 64}
    return OneRefProcessor(OneRefImageProcessorPil(size=size), build_tokenizer(FIXTURES / "tiny.spm"))


@pytest.fixture(scope="session")
def golden_inputs(golden) -> dict[str, torch.Tensor]:
    return {name: golden[f"inputs.{name}"] for name in ("pixel_values", "input_ids", "attention_mask")}
