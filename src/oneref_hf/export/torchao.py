# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Quantised weights for models that stay in PyTorch, through torchao."""

from .program import ExportError


# Patterns of the modules whose weights stay in float: what turns hidden states into answers. They are small, and an
# error there is an error of the box itself. Embeddings and the mask head are no linear layers and stay anyway.
FLOAT_MODULES = (
    "box_head",
    r"(.*\.)?(vision|text)_projection",
    "visual_token_head",
    "visual_relation_head",
    "mlm_head",
    "semantic_relation_head",
)
_GROUP_SIZE = 32  # weights that share a scale in 4 bits


def quantization_config(kind: str):
    """The `quantization_config` of `from_pretrained` for OneRef, with everything but the encoder's layers in float.

    ```python
    >>> model = OneRefForGrounding.from_pretrained("DIR", quantization_config=quantization_config("int8"))
    >>> model.save_pretrained("DIR-int8")   # small; from_pretrained("DIR-int8") needs no configuration
    ```

    Args:
        kind: "int8" for weights in 8 bits, with inputs that are quantised to 8 bits as they come; "int8-weights" and
            "int4-weights" for weights alone, whose products are those of the float model. torchao keeps the 4-bit
            values in bytes on the CPU, so those files are no smaller than those of "int8-weights".

    Returns:
        `transformers.TorchAoConfig`.

    Raises:
        ExportError: for another kind, or without torchao.
    """
    try:
        from torchao.quantization import (
            Int8DynamicActivationInt8WeightConfig,
            Int8WeightOnlyConfig,
            IntxWeightOnlyConfig,
            PerGroup,
        )
    except ImportError as error:
        raise ExportError("Quantised weights need torchao: pip install 'oneref-hf[quantization]'") from error
    import torch
    from transformers import TorchAoConfig

    kinds = {
        "int8": Int8DynamicActivationInt8WeightConfig(),
        "int8-weights": Int8WeightOnlyConfig(),
        "int4-weights": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(_GROUP_SIZE)),
    }
    if kind not in kinds:
        raise ExportError(f"Weights are quantised as {', '.join(kinds)}, not as {kind!r}.")
    return TorchAoConfig(kinds[kind], modules_to_not_convert=list(FLOAT_MODULES))
