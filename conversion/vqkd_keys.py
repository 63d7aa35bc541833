# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What becomes of each tensor of an original VQ-KD checkpoint (BEiT v2) in `VqkdModel`. No file is read here."""

import re
from collections.abc import Iterable

import torch

from oneref_hf.configuration_vqkd import VqkdConfig


HEAD_DIM = 64  # of every released model; the weights do not show it

# original name -> ours; N is the number of a layer.
RENAMES = {
    "encoder.cls_token": "embeddings.cls_token",
    "encoder.pos_embed": "embeddings.position_embedding.weight",
    "encoder.patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "encoder.patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "encoder.blocks.N.norm1.weight": "layers.N.attention_norm.weight",
    "encoder.blocks.N.norm1.bias": "layers.N.attention_norm.bias",
    "encoder.blocks.N.attn.qkv.weight": "layers.N.attention.qkv_proj.weight",
    "encoder.blocks.N.attn.q_bias": "layers.N.attention.q_proj.bias",
    "encoder.blocks.N.attn.v_bias": "layers.N.attention.v_proj.bias",
    "encoder.blocks.N.attn.proj.weight": "layers.N.attention.out_proj.weight",
    "encoder.blocks.N.attn.proj.bias": "layers.N.attention.out_proj.bias",
    "encoder.blocks.N.norm2.weight": "layers.N.mlp_norm.weight",
    "encoder.blocks.N.norm2.bias": "layers.N.mlp_norm.bias",
    "encoder.blocks.N.mlp.fc1.weight": "layers.N.fc1.weight",
    "encoder.blocks.N.mlp.fc1.bias": "layers.N.fc1.bias",
    "encoder.blocks.N.mlp.fc2.weight": "layers.N.fc2.weight",
    "encoder.blocks.N.mlp.fc2.bias": "layers.N.fc2.bias",
    "encoder.fc_norm.weight": "patch_norm.weight",
    "encoder.fc_norm.bias": "patch_norm.bias",
    "encode_task_layer.0.weight": "projection.fc1.weight",
    "encode_task_layer.0.bias": "projection.fc1.bias",
    "encode_task_layer.2.weight": "projection.fc2.weight",
    "encode_task_layer.2.bias": "projection.fc2.bias",
    "quantize.embedding.weight": "codebook.weight",
}

# beginning of original names -> why they are left out
IGNORED = {
    "decoder.": "the decoder rebuilds the teacher's features while the tokenizer is trained; codes do not need it",
    "decode_task_layer.": "output layer of the decoder",
    "quantize.cluster_size": "running count that moved the codes during training",
    "quantize.embedding.cluster_size": "running count that moved the codes during training",
    "quantize.embedding.embed_avg": "running mean that moved the codes during training",
    "quantize.embedding.initted": "whether k-means had already set the first codes",
    "scaling_layer.": "prepared images for the teacher",
    "teacher_model.": "the teacher, CLIP, which only training asks",
    "loss": "training loss, no part of the tokenizer",
}


def config_from_tensors(source: dict[str, torch.Tensor]) -> VqkdConfig:
    """Infers the sizes of the tokenizer from shapes of original tensors. Raises `ValueError` where it cannot."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        tensor = source.get(name)
        if tensor is None or tensor.ndim != dimensions or not tensor.numel():
            found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise ValueError(f"This is no VQ-KD tokenizer: tensor '{name}' {found}.")
        return tuple(tensor.shape)

    hidden_size, num_channels, patch_size, _ = shape("encoder.patch_embed.proj.weight", 4)
    num_patches = shape("encoder.pos_embed", 3)[1] - 1
    intermediate_size = shape("encoder.blocks.0.mlp.fc1.weight", 2)[0]
    codebook_size, codebook_dim = shape("quantize.embedding.weight", 2)

    grid_size = round(num_patches**0.5)
    if num_patches < 1 or grid_size**2 != num_patches:
        raise ValueError(f"The position table has {num_patches + 1} rows, which is not a square of patches and CLS.")
    if hidden_size % HEAD_DIM:
        raise ValueError(f"The width {hidden_size} is not a multiple of the head width {HEAD_DIM}.")
    layers = {int(match[1]) for name in source if (match := re.match(r"encoder\.blocks\.(\d+)\.", name))}
    if layers != set(range(len(layers))):
        raise ValueError(f"The layers are not numbered from 0 without a gap: {sorted(layers)}.")
    return VqkdConfig(
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        num_channels=num_channels,
        hidden_size=hidden_size,
        num_hidden_layers=len(layers),
        num_attention_heads=hidden_size // HEAD_DIM,
        intermediate_size=intermediate_size,
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
    )


def rename(name: str) -> str | None:
    """Our name of an original tensor, or None if no row of `RENAMES` has it."""
    layer = re.match(r"encoder\.blocks\.(\d+)(\..+)", name)
    if layer is None:
        return RENAMES.get(name)
    target = RENAMES.get(f"encoder.blocks.N{layer[2]}")
    return target and target.replace(".N.", f".{layer[1]}.")


def reason_to_ignore(name: str) -> str | None:
    """Why an original tensor is left out, or None if no row of `IGNORED` has the beginning of its name."""
    return next((reason for beginning, reason in IGNORED.items() if name.startswith(beginning)), None)


def sources_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Which original tensor each of ours is made from."""
    sources = {}
    for name in names:
        target = rename(name)
        if target is not None:  # a fused one gives three, any other the same name three times
            sources |= {target.replace("qkv_proj", f"{part}_proj"): [name] for part in "qkv"}
    return sources


def split_qkv(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cuts each fused `qkv_proj.weight` (3D, D) into the weights of `q_proj`, `k_proj` and `v_proj`, (D, D) each."""
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(".qkv_proj.weight") and tensor.ndim == 2:
            for part, piece in zip("qkv", tensor.chunk(3)):
                result[name.replace("qkv_proj", f"{part}_proj")] = piece.clone()  # safetensors wants own storage
        else:
            result[name] = tensor
    return result


def squeeze_positions(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drops the batch dimension of the position table: (1, 1 + P, D) -> (1 + P, D)."""
    name = "embeddings.position_embedding.weight"
    return {key: tensor.squeeze(0) if key == name else tensor for key, tensor in tensors.items()}


def unknown_names(names: Iterable[str]) -> list[str]:
    """Those of the original names that neither table accounts for."""
    return [name for name in names if rename(name) is None and reason_to_ignore(name) is None]


def convert_tensors(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of `VqkdModel` by name, from those of an original checkpoint that `RENAMES` knows."""
    renamed = {target: tensor for name, tensor in source.items() if (target := rename(name)) is not None}
    return squeeze_positions(split_qkv(renamed))


def check_tensors(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], unknown: list[str]):
    """
    Compares converted tensors with those of the model (on any device; only shapes are read).

    Raises:
        ValueError: naming everything that is wrong: `unknown` original tensors, and converted ones that are missing,
            superfluous, of another shape or not floating point.
    """
    wrong_shape = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    problems = {
        "no place in the model": unknown,
        "missing": [name for name in expected if name not in tensors],
        "superfluous": [name for name in tensors if name not in expected],
        "wrong shape": wrong_shape,
        "not floating point": [name for name, tensor in tensors.items() if not tensor.is_floating_point()],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise ValueError(f"The checkpoint does not fit VqkdModel ({listed}).")
