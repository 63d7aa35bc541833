# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""What passes before the first answer: imports, `oneref ground` step by step, and loading a base model.

    python benchmarks/startup.py [--model DIR] [--size base] [--rounds 7]

Imports and loading are timed as whole processes, or inside fresh ones, in turn; the tables show medians. `--model` is
the model that `oneref ground` asks, by default the one that comes with the package. What is loaded is written
to a temporary directory first, so its bytes are in the page cache; because weights are mapped into memory rather than
read, every number is looked at once before the clock stops, so that all of them have arrived.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import SIZES, fail, parser_of, print_header, print_row, ratio

from oneref_hf import SMALL_MODEL


PICTURE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "coffee_210x140.png"
PHRASE = "the red cup"

IMPORTS = {
    "python alone": "pass",
    "import torch": "import torch",
    "import torch, transformers": "import torch, transformers",
    "import oneref_hf": "import oneref_hf",
    "what a model of Transformers needs": "from transformers import Pipeline, PreTrainedModel, ProcessorMixin",
    "what `oneref ground` needs": (
        "from oneref_hf import OneRefForSegmentation, OneRefProcessor, ReferringExpressionPipeline"
    ),
}
REFERENCES = {
    "import oneref_hf": "import torch, transformers",
    "what `oneref ground` needs": "what a model of Transformers needs",
}

# Each step prints its name and how long it took; the first one what passed since the parent started the process.
GROUND = """
import json, sys, time
started, model, picture, phrase = float(sys.argv[1]), *sys.argv[2:]
steps = {"start Python": time.time() - started}

def step(name, function):
    start = time.perf_counter()
    result = function()
    steps[name] = time.perf_counter() - start
    return result

def import_torch():
    import torch

def import_transformers():
    from transformers import Pipeline, PreTrainedModel, ProcessorMixin

def import_oneref():
    from oneref_hf import OneRefForSegmentation, OneRefProcessor, ReferringExpressionPipeline

step("import torch", import_torch)
step("import Transformers", import_transformers)
step("import oneref_hf", import_oneref)
from oneref_hf.cli import load_finder, quiet
with quiet(verbose=False):
    finder = step("load the model", lambda: load_finder(model, None, "auto"))
    step("answer", lambda: finder(picture, phrase))
print(json.dumps(steps))
"""

LOAD = """
import json, sys, time
directory = sys.argv[2]
path = directory + "/model.safetensors"
import numpy as np
import torch
from oneref_hf import OneRefForGrounding
from safetensors.torch import load_file
from oneref_hf.cli import quiet

def read():
    with open(path, "rb", buffering=0) as file:
        content = memoryview(np.empty(file.seek(0, 2), np.uint8))
        file.seek(0)
        position = 0
        while position < len(content):
            position += file.readinto(content[position:])

def touched(tensors):
    for tensor in tensors:
        tensor.detach().sum()

ways = {
    "read": read,
    "load_file": lambda: touched(load_file(path).values()),
    "from_pretrained": lambda: touched(OneRefForGrounding.from_pretrained(directory).state_dict().values()),
}
with quiet(verbose=False):
    start = time.perf_counter()
    ways[sys.argv[1]]()
    print(json.dumps(time.perf_counter() - start))
"""
WAYS = {
    "read the bytes": "read",
    "safetensors' load_file": "load_file",
    "OneRefForGrounding.from_pretrained": "from_pretrained",
}


def run_python(program: str, *arguments: str) -> tuple[float, str]:
    """Seconds that a fresh process took, and what it printed."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    took = time.perf_counter() - start
    if result.returncode != 0:
        fail(f"A measured process failed: {result.stderr.strip().splitlines()[-1]}")
    return took, result.stdout


def measure_imports(rounds: int) -> None:
    times = {name: [] for name in IMPORTS}
    for number in range(-1, rounds):
        for name, program in IMPORTS.items():
            took, _ = run_python(program)
            if number >= 0:
                times[name].append(took)
    print_header("process", "seconds", "ratio (min-max)", "to")
    for name, seconds in times.items():
        reference = REFERENCES.get(name)
        cells = ("", "") if reference is None else (ratio(seconds, times[reference]), reference)
        print_row(name, f"{statistics.median(seconds):.2f}", *cells)


def measure_ground(model: str, rounds: int) -> None:
    arguments = (str(PICTURE), PHRASE)
    steps, whole = [], []
    for number in range(-1, rounds):
        _, printed = run_python(GROUND, repr(time.time()), model, *arguments)
        command = "import sys; from oneref_hf.cli import main; sys.exit(main(sys.argv[1:]))"
        took, _ = run_python(command, "ground", *arguments, "--model", model)
        if number >= 0:
            steps.append(json.loads(printed.splitlines()[-1]))
            whole.append(took)
    total = statistics.median(whole)
    print_header("`oneref ground`", "seconds", "share")
    for name in steps[0]:
        took = statistics.median(row[name] for row in steps)
        print_row(name, f"{took:.2f}", f"{took / total:.0%}")
    print_row("the whole command", f"{total:.2f}", "100%")


def measure_loading(directory: str, rounds: int) -> None:
    times = {name: [] for name in WAYS}
    for number in range(-1, rounds):
        for name, way in WAYS.items():
            took = json.loads(run_python(LOAD, way, directory)[1].splitlines()[-1])
            if number >= 0:
                times[name].append(took)
    gigabytes = (Path(directory) / "model.safetensors").stat().st_size / 1e9
    print_header(f"{gigabytes:.2f} GB of weights", "seconds", "GB/s", "times reading (min-max)")
    for name, seconds in times.items():
        took = statistics.median(seconds)
        print_row(name, f"{took:.2f}", f"{gigabytes / took:.2f}", ratio(seconds, times["read the bytes"]))


def save_model(directory: Path, size: str) -> str:
    """A OneRef model with random weights."""
    import torch
    from transformers import initialization

    from oneref_hf import OneRefConfig, OneRefForGrounding

    with initialization.no_init_weights():
        model = OneRefForGrounding(OneRefConfig(**SIZES[size]))
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.02, 0.02)
    model.save_pretrained(directory)
    return str(directory)


def main():
    parser = parser_of(__doc__)
    parser.add_argument(
        "--model", default=str(SMALL_MODEL), help="what `oneref ground` asks (default: the model of the package)"
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="of the model that is loaded")
    parser.set_defaults(rounds=7)
    options = parser.parse_args()
    if not Path(options.model).is_dir():
        fail(f"There is no model directory '{options.model}'.")
    with tempfile.TemporaryDirectory() as folder:
        loaded = save_model(Path(folder) / "loaded", options.size)
        measure_imports(options.rounds)
        print()
        measure_ground(options.model, options.rounds)
        print()
        measure_loading(loaded, options.rounds)


if __name__ == "__main__":
    main()
