# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The page of `oneref demo` as a Space on the Hugging Face Hub; README.md says how to make one."""

import os
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from oneref_hf.cli import main


arguments = ["demo", "--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860")]
if os.environ.get("ONEREF_MODEL"):
    arguments += ["--model", os.environ["ONEREF_MODEL"]]
sys.exit(main(arguments))
