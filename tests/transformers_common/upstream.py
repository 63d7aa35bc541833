# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Makes the test modules of Transformers importable, without the rest of its repository.

They belong to a package called `tests`, as ours do, and import from their siblings. So they are loaded as a package of
another name, whose `__path__` is the cache folder. Four modules that the source distribution lacks are stood in for.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from transformers_common.fetch import fetch


PACKAGE = "transformers_own_tests"
PHOTO = Path(__file__).parents[1] / "fixtures" / "astronaut_150x201.png"


def _empty_mixin(name: str) -> type:
    return type(name, (), {})


# Module name -> what is imported from it.
STAND_INS = {
    # Export and generation have test suites of their own, which ModelTesterMixin refers to.
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": _empty_mixin("ExportTesterMixin")},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": _empty_mixin("GenerationTesterMixin")},
    # General fields of every configuration, each with a value that is not its default.
    f"{PACKAGE}.utils.test_configuration_utils": {
        "config_common_kwargs": {
            "architectures": ["OneRef"],
            "chunk_size_feed_forward": 5,
            "dtype": "float16",
            "id2label": {0: "target"},
            "label2id": {"target": 0},
            "output_attentions": True,
            "output_hidden_states": True,
            "problem_type": "regression",
            "return_dict": False,
        }
    },
    # The tests' pictures live on the Hub; one of ours serves as well, and keeps the run offline.
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: str(PHOTO)},
}


def load(name: str) -> ModuleType:
    """Imports a module of Transformers' tests, for example `test_modeling_common`."""
    if PACKAGE not in sys.modules:
        folder = str(fetch())
        for stand_in, contents in STAND_INS.items():
            _register(stand_in, **contents)
        _register(PACKAGE, __path__=[folder])
    return importlib.import_module(f"{PACKAGE}.{name}")


def _register(name: str, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
