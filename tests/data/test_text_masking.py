# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Referring-aware text masking against the original's choices. spaCy's model is only used where it is installed."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from transformers import XLMRobertaTokenizer

from oneref_hf.data import training
from oneref_hf.data.masking import ReferringTextMasker, parse_words
from oneref_hf.data.text_masking import load_parser


FIXTURES = Path(__file__).parent.parent / "fixtures"
ROWS = json.loads((FIXTURES / "text_masking.json").read_text())["rows"]
VOCABULARIES = {"tiny": "tiny.spm", "beit3_partial": "beit3_partial.spm"}


class FakeParser:
    """Stands in for spaCy: texts are looked up in a table of (word, dependency) pairs."""

    def __init__(self, table: dict[str, list[tuple[str, str]]]):
        self.table = table

    def __call__(self, text):
        return [SimpleNamespace(text=word, dep_=dependency) for word, dependency in self.table[text]]

    def pipe(self, texts, batch_size, disable):
        return map(self, texts)


# The original's words as a parse that yields them, for `word_positions` on the golden phrases.
GOLDEN_PARSER = FakeParser(
    {
        row["text"]: [(row["subject"], "nsubj")] + ([(row["object"], "pobj")] if row["object"] else [])
        for row in ROWS
    }
)  # fmt: skip


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request, tmp_path_factory):
    """Name of a golden vocabulary and its tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(FIXTURES / VOCABULARIES[request.param], folder / "sentencepiece.bpe.model")
    return request.param, XLMRobertaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return vocabulary[1]


def test_positions_and_counts_equal_the_original(vocabulary):
    name, tokenizer = vocabulary
    masker = ReferringTextMasker(tokenizer, GOLDEN_PARSER)
    for row in ROWS:
        expected = row[name]
        positions = masker.word_positions(row["text"])
        assert positions == (expected["subject_index"], expected["object_index"]), row["text"]
        assert positions == masker.word_positions(row["text"].lower())
        input_ids = tokenizer(row["text"])["input_ids"]
        assert len(input_ids) == expected["num_tokens"]
        masked, labels = masker(input_ids, *positions, generator=torch.Generator().manual_seed(0))
        assert (labels != -100).sum() == expected["num_masked"], row["text"]
        assert positions == masker.locate(torch.tensor([*input_ids, 1, 1]), row["subject"], row["object"])
        # The words come first: the subject always, the object as soon as two tokens are masked.
        found = [index + 1 for index in positions if index is not None][: expected["num_masked"]]
        assert all(labels[index] == input_ids[index] for index in found)
        untouched = labels == -100
        assert torch.equal(masked[untouched], torch.tensor(input_ids)[untouched]) and untouched[0]


def test_selection_rule():
    table = {
        "a": [("x", "det"), ("dog", "nsubjpass"), ("cat", "nsubj"), ("runs", "ROOT")],  # the first subject
        "b": [("red", "amod"), ("car", "ROOT"), ("and", "cc"), ("bus", "ROOT")],  # else the first root
        "c": [("seen", "ROOT"), ("by", "agent"), ("her", "pobj"), ("him", "dobj")],  # agent counts; the first object
        "d": [("x", "ROOT"), ("y", "oprd")],
        "e": [],
    }
    words = parse_words(["A", "b", "c", "d", "e"], FakeParser(table))
    assert words == {"subject": ["dog", "car", "by", "x", None], "object": [None, None, "her", "y", None]}


@pytest.mark.parametrize("length", [2, 3, 10])
def test_distinct_positions_behind_bos(tokenizer, length):
    """Whatever is drawn: BOS never, EOS sometimes, each position once, exactly as many as the formula says."""
    input_ids = torch.tensor([0, *range(5, 5 + length - 2), 2])
    masker = ReferringTextMasker(tokenizer, mask_ratio=0.4)
    chosen = torch.stack([masker(input_ids, generator=torch.Generator().manual_seed(s))[1] != -100 for s in range(60)])
    assert (chosen.sum(1) == max(int((length - 1) * 0.4 + 0.5), 1)).all()
    assert not chosen[:, 0].any() and chosen[:, 1:].any(0).all()


def test_one_word_as_subject_and_object_is_masked_once(tokenizer):
    masker = ReferringTextMasker(tokenizer, mask_ratio=0.5)
    _, labels = masker([0, 5, 6, 7, 2], 1, 1, torch.Generator().manual_seed(0))
    assert (labels != -100).sum() == 2 and labels[2] == 6


def test_what_becomes_of_a_chosen_token(tokenizer):
    """80 % mask token, 10 % as they were, 10 % a random ordinary id; padding and the caller's tensor are untouched."""
    input_ids = torch.tensor([0] + [5] * 6000 + [2] + [tokenizer.pad_token_id] * 3)
    before = input_ids.clone()
    masked, labels = ReferringTextMasker(tokenizer, mask_ratio=1.0)(
        input_ids, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(input_ids, before)
    assert torch.equal(masked[-3:], input_ids[-3:]) and (labels[-3:] == -100).all()
    words = masked[1:6001]
    is_mask, is_same = words == tokenizer.mask_token_id, words == 5
    other = words[~is_mask & ~is_same]
    assert is_mask.double().mean() == pytest.approx(0.8, abs=0.03)
    assert is_same.double().mean() == pytest.approx(0.1, abs=0.02)
    assert other.min() >= 3 and other.max() < len(tokenizer) and len(other.unique()) > 50


def test_masking_follows_the_generator(tokenizer):
    masker = ReferringTextMasker(tokenizer)
    ids = torch.tensor([0, *range(5, 25), 2])
    runs = [masker(ids, 2, 5, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


def test_unknown_words_are_not_found(tokenizer):
    """A word the vocabulary lacks must not match the unknown tokens of the phrase."""
    masker = ReferringTextMasker(tokenizer)
    ids = [0, tokenizer.unk_token_id, 5, 2]
    assert masker.locate(ids, "zzzqqq", None) == (None, None)


def test_bad_input_is_named(tokenizer):
    masker = ReferringTextMasker(tokenizer)
    with pytest.raises(ValueError, match="needs a spaCy pipeline"):
        masker.word_positions("a dog")
    with pytest.raises(ValueError, match="position 3 lies outside a phrase of 2 pieces"):
        masker([0, 5, 6, 2], subject_index=3)
    with pytest.raises(ValueError, match="at least BOS and EOS"):
        masker([0])
    with pytest.raises(ValueError, match="between 0 and 1, not 2"):
        ReferringTextMasker(tokenizer, mask_ratio=2)


def test_words_are_parsed_once_per_dataset(monkeypatch, tmp_path):
    """Later runs read the cache; they check that the parser is there, but never ask it."""
    texts = [row["text"] for row in ROWS]
    datasets.Dataset.from_dict({"phrase": texts}).save_to_disk(tmp_path)
    for parser in (GOLDEN_PARSER, None):
        monkeypatch.setattr(training, "load_parser", lambda name, parser=parser: parser)
        records = training.with_parsed_words(datasets.load_from_disk(tmp_path), "a_parser")
        for key in ("subject", "object"):
            assert records[key][:] == [row[key] for row in ROWS]


@pytest.mark.parametrize("parser", ["a_parser", "scenes"])
def test_streams_must_bring_their_words(monkeypatch, parser):
    """Or they would be parsed in every epoch, while training waits."""
    monkeypatch.setattr(training, "load_parser", lambda name: GOLDEN_PARSER)
    records = datasets.Dataset.from_dict({"phrase": [row["text"] for row in ROWS]})
    with pytest.raises(ValueError, match="parsed again in every epoch; read the data without streaming"):
        training.with_parsed_words(records.to_iterable_dataset(), parser)
    parsed = training.with_parsed_words(records, "a_parser").to_iterable_dataset()
    monkeypatch.setattr(training, "load_parser", None)
    again = training.with_parsed_words(parsed, parser)
    assert [row["subject"] for row in pickle.loads(pickle.dumps(again))] == [row["subject"] for row in ROWS]


def test_a_pipeline_of_spacy_parses_a_data_set(tmp_path):
    """Tokens, dependencies, `pipe` and loading are spaCy's; only the rules that set the dependencies are made up."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    parser = nlp.add_pipe("attribute_ruler", name="parser")
    for word, dependency in {"dog": "nsubj", "left": "pobj", "car": "ROOT", "n't": "dobj", "it": "expl"}.items():
        parser.add([[{"ORTH": word}]], {"DEP": dependency})
    # What the parser does not need must not run: this would make a subject of every first word.
    nlp.add_pipe("attribute_ruler", name="ner").add([[{}]], {"DEP": "nsubj"})
    nlp.to_disk(tmp_path / "pipeline")
    phrases = ["The DOG on the left", "a red car", "Its car, left of the dog", "it isn't a dog", "cup"] * 60
    datasets.Dataset.from_dict({"phrase": phrases}).save_to_disk(tmp_path / "data")
    records = training.with_parsed_words(datasets.load_from_disk(tmp_path / "data"), str(tmp_path / "pipeline"))
    assert records["subject"][:] == ["dog", "car", "dog", "it", None] * 60
    assert records["object"][:] == ["left", None, "left", "n't", None] * 60


def test_missing_model_is_named():
    pytest.importorskip("spacy")
    with pytest.raises(ImportError, match="'no_such_model' is not installed"):
        load_parser("no_such_model")


def test_real_parser_equals_the_original():
    pytest.importorskip("en_core_web_md", reason="the spaCy model en_core_web_md is not installed")
    words = parse_words([row["text"] for row in ROWS], load_parser())
    assert words == {key: [row[key] for row in ROWS] for key in ("subject", "object")}
