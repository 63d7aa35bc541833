# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Subcommands of `oneref`, one module each: `add_parser(subparsers)` and `run(options)`."""
