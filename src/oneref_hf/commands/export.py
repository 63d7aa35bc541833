# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""`oneref export`: a model as a program for another runtime.

oneref export DIR --format onnx --output DIR-onnx
oneref export DIR --format onnx --quantize int8 --output DIR-int8
oneref ground picture.jpg "the cup" --model DIR-onnx
"""

import argparse


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Adds `oneref export` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="turn a model into a program for another runtime",
        description="Writes a model as an ONNX file, a torch.export program or a compiled AOTInductor package, with "
        "its processor, for any batch size and text length; then compares it with the model, and keeps it only if the "
        "two agree. The directory is a model for every other command.",
        epilog="example: oneref export DIR --format onnx --output DIR-onnx",
    )
    parser.add_argument("model", metavar="MODEL", help="directory of a OneRef model, or its id on the Hub")
    parser.add_argument("--format", required=True, choices=["onnx", "torch_export", "aotinductor"])
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--task",
        choices=["grounding", "segmentation"],
        help="grounding leaves the mask head out (default: whatever the model can do)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="number format of the weights (default: float32)",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: the fastest)")
    parser.add_argument("--quantize", choices=["int8", "int4"], help="weights of an ONNX file in 8 or 4 bits")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace):
    """Exports the model that the options name."""
    from ..cli import check_model_source, quiet, refusing

    check_model_source(options.model)
    with quiet(options.verbose):
        from ..export.exporting import export_model
        from ..export.program import ExportError
        from ..pipeline_oneref import UnsupportedModelError

        with refusing(ExportError, UnsupportedModelError, OSError, ValueError, RuntimeError):
            report = export_model(
                options.model,
                options.output,
                options.format,
                task=options.task,
                dtype=options.dtype,
                opset=options.opset,
                quantize=options.quantize,
                overwrite=options.overwrite,
            )
    difference = report.difference
    print(
        f"compared with PyTorch: {difference.num_cases} batches, largest difference {difference.value:.1e} "
        f"({difference.output}), allowed {report.tolerance:.0e}"
    )
    if report.box_iou is not None:
        print(f"quantised to {options.quantize}: mean box IoU with float32 {report.box_iou:.4f} on drawn scenes")
    print(f"written: {report.folder} ({report.num_bytes / 1e6:.1f} MB; {', '.join(report.outputs)})")
