# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The tokenizer built from `beit3.spm`: the original's ids for every text, also after saving."""

import json
import random
import sys

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizer import build_tokenizer
from transformers import AutoTokenizer, TokenizersBackend, XLMRobertaTokenizer


# The original's class, where it splits text as SentencePiece does; the incomplete copy lost its normaliser table.
CLASSES = {"tiny": XLMRobertaTokenizer, "beit3_partial": TokenizersBackend}


@pytest.fixture(scope="module", params=CLASSES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def spm_path(fixtures_dir, name):
    return fixtures_dir / f"{name}.spm"


@pytest.fixture(scope="module")
def tokenizer(spm_path):
    return build_tokenizer(spm_path)


@pytest.fixture(scope="module")
def rows(fixtures_dir, name):
    """The texts of the golden file with their ids. The dataset of the original lower-cases before it tokenises."""
    rows = json.loads((fixtures_dir / "tokenization.json").read_text())["rows"]
    assert len(rows) == 60
    return [(row["text"].lower(), row[name]) for row in rows]


def assert_equals_the_original(tokenizer, rows):
    for text, ids in rows:
        assert tokenizer(text, truncation=True)["input_ids"] == ids, text


def test_ids_equal_the_original(tokenizer, rows, name):
    assert type(tokenizer) is CLASSES[name]
    assert_equals_the_original(tokenizer, rows)


def test_vocabulary(tokenizer, spm_path):
    pieces = SentencePieceProcessor(model_file=str(spm_path))
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert len(tokenizer) == len(pieces) + 2 and tokenizer.mask_token_id == len(pieces) + 1
    for piece in range(3, len(pieces)):
        assert tokenizer.convert_tokens_to_ids(pieces.id_to_piece(piece)) == piece + 1
    assert tokenizer.model_max_length == 64
    assert list(tokenizer("a red shirt")) == ["input_ids", "attention_mask"]
    assert tokenizer.decode(tokenizer("red shirt")["input_ids"], skip_special_tokens=True) == "red shirt"


def test_any_text_is_split_as_sentencepiece_does(tokenizer, spm_path):
    pieces = SentencePieceProcessor(model_file=str(spm_path))
    letters = [*"abcdehilnorst  '-", "  ", *"\t\n\r\v\u00a0\u3000\u2028\u200b\u00ad▁é½ﬁＡ🦒"]
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(letters, k=rng.randint(1, 14)))
        ids = [piece + 1 if piece else 3 for piece in pieces.encode(text)]
        assert tokenizer(text)["input_ids"] == [0, *ids, 2], repr(text)


def test_saved_tokenizer_needs_no_sentencepiece(tokenizer, rows, name, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    for library in ("sentencepiece", "google.protobuf", "tiktoken"):
        monkeypatch.setitem(sys.modules, library, None)
    for loader in (AutoTokenizer, CLASSES[name]):
        reloaded = loader.from_pretrained(tmp_path)
        assert type(reloaded) is CLASSES[name] and reloaded.model_max_length == 64
        assert_equals_the_original(reloaded, rows)


def test_other_files_are_refused(fixtures_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no tokenizer file '.*nowhere.spm'"):
        build_tokenizer(tmp_path / "nowhere.spm")
    (tmp_path / "empty.spm").write_bytes(b"")
    for path in (tmp_path / "empty.spm", fixtures_dir / "golden.json"):
        with pytest.raises(ValueError, match=f"{path.name}' is not a SentencePiece model"):
            build_tokenizer(path)


def test_damaged_files_are_refused(fixtures_dir, tmp_path):
    """Flipped bytes and truncations: a tokenizer, or one sentence."""
    draw, good, path = random.Random(0), (fixtures_dir / "tiny.spm").read_bytes(), tmp_path / "damaged.spm"
    messages = []
    for case in range(40):
        data = bytearray(good)
        at = draw.randrange(len(data) // 4 if case % 2 else len(data))  # the vocabulary, or the normaliser's table
        if case % 4 == 0:
            del data[at:]
        else:
            data[at : at + 4] = draw.randbytes(4)
        path.write_bytes(data)
        try:
            build_tokenizer(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), case
            messages.append(str(error))
    assert len(messages) > 20 and any("is damaged" in message for message in messages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}, "does not begin with the pieces <unk>, <s>, </s>"),
        ({"user_defined_symbols": ["<mask>"]}, "do not give OneRef's vocabulary"),
        ({"model_type": "bpe"}, "split 'a man in a red shirt on the left' differently"),
    ],
)
def test_sentencepiece_models_of_another_kind_are_refused(tmp_path, options, message):
    sentences = ["a man in a red shirt on the left", "the white dog", "two women under a tree", "café tab here"] * 5
    options = {"model_type": "unigram", "hard_vocab_limit": False, **options}
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(tmp_path / "other"),
        vocab_size=60,
        minloglevel=2,
        **options,
    )
    with pytest.raises(ValueError, match=message):
        build_tokenizer(tmp_path / "other.model")
