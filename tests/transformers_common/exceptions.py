# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Where our runs of Transformers' tests differ from Transformers' own, each with its reason.

    python tests/transformers_common/exceptions.py

prints the list as Markdown, for the README. What Transformers' tests skip by themselves (no accelerator, no
sub-models, no generation, ...) is not listed; pytest reports it.
"""

import unittest


# Test suites of Transformers -> why they are not run at all.
NOT_RUN = {
    "PipelineTesterMixin": "it knows only models whose tiny versions lie on the Hub, by an index outside the archive",
    "TokenizerTesterMixin": "the tokenizer is Transformers' own XLMRobertaTokenizer, tested there",
    "GenerationTesterMixin": "no class of ours generates text; the file is not in the source distribution either",
    "ExportTesterMixin": "the file is not in the source distribution",
}

# Test case -> test -> why it does not apply.
SKIPPED = {
    "OneRefImageProcessingTest": {
        "test_pil_can_run_without_torchvision": "its subprocess does not import oneref_hf; we run without torchvision",
    },
    "OneRefProcessorTest": {
        "test_processor_text_has_no_visual": "a phrase without a picture in a batch of pairs is an error, by design",
    },
}

# Test case -> test, or switch of that name -> why ours differs.
ADAPTED = {
    "OneRefImageProcessingTest": {
        "test_cast_dtype": "switched on, since it is off by default",
        "test_new_models_require_torchvision_backend": (
            "asks AutoImageProcessor for the torchvision class instead of an instance, which needs torchvision"
        ),
    },
    "VqkdModelTest": {
        "test_model_get_set_embeddings": "a convolution embeds the patches, so it expects no nn.Embedding",
        "test_resize_embeddings": "switched off, since there is no vocabulary to resize",
    },
}


def with_exceptions(case: type[unittest.TestCase]) -> type[unittest.TestCase]:
    """
    Class decorator that skips what `SKIPPED` lists for a test case.

    Raises:
        ValueError: if the case changes other tests of Transformers than those that `ADAPTED` lists.
    """
    theirs = next(base for base in case.__mro__ if not base.__module__.startswith("transformers_common."))
    names = [name for name in dir(theirs) if name.startswith("test_")]
    changed = {name for name in names if _differs(getattr(case, name), getattr(theirs, name))}
    if changed != set(ADAPTED.get(case.__name__, {})):
        raise ValueError(f"{case.__name__} changes {sorted(changed)}, but exceptions.py lists other tests as ADAPTED.")
    for name, reason in SKIPPED.get(case.__name__, {}).items():
        setattr(case, name, unittest.skip(reason)(getattr(case, name)))
    return case


def _differs(ours, theirs) -> bool:
    # Transformers wraps the tests of every subclass, which leaves `__module__` as it was.
    return ours.__module__ != theirs.__module__ if callable(theirs) else ours != theirs


def as_markdown() -> str:
    lines = [f"- `{suite}` is not run: {reason}." for suite, reason in NOT_RUN.items()]
    for word, exceptions in (("skipped", SKIPPED), ("adapted", ADAPTED)):
        for case, tests in exceptions.items():
            lines += [f"- `{case}.{test}` is {word}: {reason}." for test, reason in tests.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
