# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Time of one forward pass by every way to run a model, against the original's compute, as ratios measured in one run.

    pip install --no-deps torchscale==0.3.0
    python benchmarks/export_speed.py [--size base] [--task grounding] [--batch 1 4] [--ways eager onnx ...]
        [--rounds 5]
    python benchmarks/export_speed.py --model DIR [--phrases 64]

The yardstick is what the original does: BEiT-3's encoder from torchscale, in float32, every phrase padded to 64
tokens, with OneRef's heads on top. Ours gets the same pictures and a ten-word phrase. All run in turn, round by
round, and ratios are taken within each round; the table shows the median.

What bounds a way is the machine's speed at matrix products in its number format: the columns after the ratio give the
operations per second of the matrix products and their share of that. In 8 bits the share is lower, for attention,
norms and activations stay in float32.

The weights of the first table are random, so their boxes hardly move, and the overlap of boxes with those of float32
says little. With --model the same ways run a trained model on drawn scenes, and only the overlap is measured.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from encoder_speed import ORIGINAL_TOKENS, Original
from measuring import (
    PHRASE_TOKENS,
    SIZES,
    TASKS,
    fail,
    forward_gflop,
    interleaved,
    machine,
    make_inputs,
    parser_of,
    print_header,
    print_row,
    product_gflops,
    ratio,
    seconds,
)
from torch import nn

from oneref_hf import OneRefConfig, OneRefProcessor
from oneref_hf.export import aotinductor, onnx, quantization_config
from oneref_hf.export.program import OneRefProgram, random_inputs
from oneref_hf.export.verification import box_agreement
from oneref_hf.metrics import box_iou
from oneref_hf.modeling_oneref import OneRefGroundingOutput


# What each way multiplies its weights in.
WAYS = {
    "eager": "float32",
    "compiled": "float32",
    "aotinductor": "float32",
    "onnx": "float32",
    "onnx-int4": "int8",
    "onnx-int8": "int8",
    "onnx-int8-static": "int8",
    "torchao-int8": "int8",
}


class Ways:
    """Functions from the model's inputs to boxes, made when they are asked for; files go to a folder.

    Without `compiles` PyTorch compiles nothing, which changes how long it takes but not what comes out.
    """

    def __init__(self, model: nn.Module, task: str, folder: Path, compiles: bool):
        self.program, self.folder, self.compiles = OneRefProgram(model, task).eval(), folder, compiles

    def __call__(self, way: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
        if way in ("eager", "compiled", "torchao-int8"):
            return self._in_pytorch(way)
        place = self.folder / way
        if way.startswith("onnx"):
            self._write_onnx(way, place)
            runner = onnx.Runner(place / onnx.FILE)
        else:
            place.mkdir()
            aotinductor.write(self.program, place)
            runner = aotinductor.Runner(place / aotinductor.FILE)
        return lambda inputs: runner(complete(inputs))[0]

    def _in_pytorch(self, way: str):
        model = self.program.model
        if way == "torchao-int8":
            model.save_pretrained(self.folder / "float32")
            model = (
                type(model)
                .from_pretrained(self.folder / "float32", quantization_config=quantization_config("int8"))
                .eval()
            )
        run = model
        if way != "eager" and self.compiles:
            compiled = torch.compile(model, dynamic=False)

            def run(**inputs):
                # Only frozen weights find their way to the library's products of 8 bits.
                with torch._inductor.config.patch(freezing=True):
                    return compiled(**inputs)

        def boxes(inputs):
            if inputs["attention_mask"].all():  # a compiled model need not be given a mask of ones
                inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
            return run(**inputs).pred_boxes

        return boxes

    def _write_onnx(self, way: str, place: Path):
        source = self.folder / "onnx"
        if not source.exists():
            source.mkdir()
            onnx.write(self.program, source)
        if way == "onnx":
            return
        shutil.copytree(source, place)
        if way == "onnx-int8-static":
            quantize_statically(place / onnx.FILE, self.program.config)
        else:
            onnx.quantize(place, way.removeprefix("onnx-"))


def complete(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the mask of the canvas that a program takes."""
    everywhere = torch.ones_like(inputs["pixel_values"][:, 0], dtype=torch.long)
    return {"pixel_mask": everywhere, **inputs}


def quantize_statically(path: Path, config: OneRefConfig, num_batches: int = 4):
    """As `onnx.quantize` to int8, but with ranges of the inputs of every product measured beforehand, on noise."""
    import onnx as onnx_package
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Noise(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(
                {name: value.numpy() for name, value in random_inputs(config, 2, 12, seed=seed).items()}
                for seed in range(num_batches)
            )

        def get_next(self):
            return next(self.batches, None)

    quantize_static(
        path,
        path,
        Noise(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=onnx.products_of_layers(onnx_package.load(path, load_external_data=False)),
        extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )


def int8_gops(repeats: int = 15) -> float:
    """1e9 operations per second of ONNX Runtime's product of 8 bits, at the largest of the base model."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = 2048, 768, 3072
    weight = numpy_helper.from_array(np.full((inner, columns), 3, np.int8), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weight"], ["outputs"])],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, [rows, inner])],
        [helper.make_tensor_value_info("outputs", TensorProto.INT32, [rows, columns])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"inputs": np.full((rows, inner), 5, np.uint8)}
    best = min(seconds(session.run, None, inputs) for _ in range(repeats))
    return 2 * rows * inner * columns / best / 1e9


def measure_speed(options, folder: Path):
    torch.manual_seed(0)
    size = SIZES[options.size]
    config = OneRefConfig(**size)
    original = Original(config, size, options.task).eval()
    ways = Ways(TASKS[options.task](config).eval(), options.task, folder, compiles=True)
    bounds = {"float32": product_gflops(torch.float32), "int8": int8_gops()}
    print(f"{machine()}; product peak: " + ", ".join(f"{name} {speed:.0f} G/s" for name, speed in bounds.items()))
    functions = {way: ways(way) for way in options.ways}
    print_header("batch", "way", "seconds", "original", "ratio (min-max)", "G/s", "of peak", "box IoU with float32")
    for batch_size in options.batch:
        torch.compiler.reset()  # or else PyTorch gives up after a few shapes and compiles no more
        theirs, ours = make_inputs(batch_size, ORIGINAL_TOKENS), make_inputs(batch_size, PHRASE_TOKENS)
        with torch.inference_mode():
            exact = ways("eager")(ours)
            overlaps = {way: box_iou(function(ours), exact).mean().item() for way, function in functions.items()}
        calls = {way: lambda function=function, ours=ours: function(ours) for way, function in functions.items()}
        times = interleaved({"original": lambda theirs=theirs: original(**theirs), **calls}, options.rounds)
        gflop = forward_gflop(options.task, size, batch_size)
        for way, overlap in overlaps.items():
            took = statistics.median(times[way])
            print_row(
                batch_size,
                way,
                f"{took:.2f}",
                f"{statistics.median(times['original']):.2f}",
                ratio(times["original"], times[way]),
                f"{gflop / took:.0f}",
                f"{gflop / took / bounds[WAYS[way]]:.0%}",
                f"{overlap:.4f}",
            )


def measure_agreement(options, folder: Path):
    try:
        model = TASKS[options.task].from_pretrained(options.model).eval()
        processor = OneRefProcessor.from_pretrained(options.model)
    except (OSError, ValueError) as error:
        fail(f"The model '{options.model}' cannot be loaded: {str(error).splitlines()[0]}")
    ways = Ways(model, options.task, folder, compiles=False)
    print_header("way", f"mean box IoU with float32, {options.phrases} drawn scenes")
    for way in options.ways:
        function = ways(way)

        def exported(function=function, **inputs):
            with torch.inference_mode():
                return OneRefGroundingOutput(pred_boxes=function(inputs))

        print_row(way, f"{box_agreement(exported, ways.program, processor, options.phrases):.4f}")


def main():
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--task", choices=TASKS, default="grounding")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--model", metavar="DIR", help="measure the boxes of this model instead of time")
    parser.add_argument("--phrases", type=int, default=64, metavar="N", help="how many scenes with --model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="export-speed-") as folder:
        (measure_speed if options.model is None else measure_agreement)(options, Path(folder))


if __name__ == "__main__":
    main()
