# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""ONNX files, in float or with quantised weights, and running them with ONNX Runtime."""

import os
from pathlib import Path

import torch

from .program import AXES, INPUTS, OUTPUTS, ExportError, OneRefProgram


FILE = "model.onnx"
RUNS_CODE = False
# The first with an operator for attention, which takes an eighth of the time off on a CPU.
OPSET = 23
OLDEST_OPSET = 18
QUANTIZATIONS = ("int8", "int4")
INT4_BLOCK = 32  # weights that share a scale
_LARGEST_PROTOBUF = 2**31 - 2**24  # with some room for the graph
_INSTALL = "install it with: pip install 'oneref-hf[export]'"


def write(program: OneRefProgram, folder: Path, opset: int = OPSET) -> None:
    """Writes `FILE`, and beside it the weights where they are too many for one file.

    Raises:
        ExportError: if a package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"Writing ONNX needs the package {error.name}; {_INSTALL}") from error

    exported = torch.onnx.export(
        program.trace(),
        dynamo=True,
        opset_version=opset,
        input_names=INPUTS,
        output_names=OUTPUTS[program.task],
        dynamic_shapes=AXES,
        verbose=False,
    )
    size = sum(value.numel() * value.element_size() for value in program.state_dict().values())
    exported.save(folder / FILE, external_data=size > _LARGEST_PROTOBUF)


def quantize(folder: Path, kind: str) -> None:
    """Replaces the float file in a folder by one whose encoder has quantised weights.

    What is quantised are the products with the weights of the layers: nearly all of the work. Embeddings, projections
    and heads stay as they are.

    - `int8`: weights in 8 bits with a scale for each output; the input is quantised as it comes, with one scale. The
      weights use the range of 7 bits, for processors without VNNI add pairs of products in 16 bits, which overflow.
    - `int4`: weights in 4 bits with a scale for every 32.

    Raises:
        ExportError: if the file does not name its layers.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    path, quantized = folder / FILE, folder / f"quantized-{FILE}"
    model = onnx.load(path, load_external_data=False)
    nodes = products_of_layers(model)
    if not nodes:  # the quantiser would take an empty list for everything
        raise ExportError(f"'{path}' does not say which of its products belong to the encoder's layers.")
    if kind == "int8":
        quantize_dynamic(
            path,
            quantized,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_quantize=nodes,
        )
    else:
        others = [node.name for node in model.graph.node if node.name not in nodes]
        quantizer = MatMulNBitsQuantizer(
            str(path), bits=4, block_size=INT4_BLOCK, accuracy_level=4, nodes_to_exclude=others
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(quantized), use_external_data_format=False)
    Path(f"{path}.data").unlink(missing_ok=True)
    quantized.replace(path)


def products_of_layers(model) -> list[str]:
    """Names of the nodes that multiply with a weight of an encoder layer."""
    weights = {weight.name for weight in model.graph.initializer}

    def scope(node) -> str:
        return next((entry.value for entry in node.metadata_props if entry.key.endswith("name_scopes")), "")

    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and "beit3.layers." in scope(node)
    ]


class Runner:
    """Runs an ONNX file on the CPU, with as many threads as PyTorch has.

    Args:
        providers: ONNX Runtime's execution providers, the most wanted first.

    Raises:
        ExportError: without ONNX Runtime, or if it cannot read the file.
    """

    def __init__(self, path: Path, providers: tuple[str, ...] = ("CPUExecutionProvider",)):
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError(f"An ONNX model needs ONNX Runtime; {_INSTALL}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers))
        except Exception as error:  # of ONNX Runtime's many classes
            raise ExportError(f"ONNX Runtime cannot use '{path}': {str(error).splitlines()[0]}") from error

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        answers = self.session.run(None, {name: inputs[name].numpy() for name in INPUTS})
        return tuple(torch.from_numpy(answer) for answer in answers)
