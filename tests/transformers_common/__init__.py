# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Transformers' own common tests, run on our classes.

Transformers checks every model it contains with shared test cases (`ModelTesterMixin`, `ConfigTester`, ...). They are
part of its source distribution only, so `fetch.py` downloads that of the installed version once, `upstream.py` makes
its test modules importable, and the test files here bind them to our classes. What does not apply is listed with its
reason in `exceptions.py`; running that file prints the list.
"""
