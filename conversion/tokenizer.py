# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Turns BEiT-3's SentencePiece model (`beit3.spm`) into a tokenizer of Transformers, once, at conversion."""

import os
import shutil
import tempfile
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, normalizers
from transformers import TokenizersBackend, XLMRobertaTokenizer


# `<s>` + at most 62 pieces + `</s>`, as in every released model.
MAX_LENGTH = 64

_FIRST_PIECES = ["<unk>", "<s>", "</s>"]
_SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]
_PROBES = ("a man in a red shirt on the left", "  café  naïve 🦒 №5", "tab\there")


def build_tokenizer(spm_path: str | os.PathLike) -> TokenizersBackend:
    """The tokenizer of OneRef, of 64 tokens at most: XLM-RoBERTa's reading of a SentencePiece model.

    Ids 0..3 are `<s> <pad> </s> <unk>`, piece k is at k + 1, `<mask>` last. Lower-casing is left to the processor.

    Returns:
        Transformers' `XLMRobertaTokenizer`. A model without a normaliser table gives a plain `TokenizersBackend` with
        the same vocabulary instead, because `XLMRobertaTokenizer` splits at every white space, where SentencePiece
        then knows spaces alone, and undoes any other setting when it is loaded. Either is saved as a `tokenizer.json`
        that needs neither sentencepiece nor protobuf.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such a model, or Transformers does not read it as SentencePiece does.
    """
    spm_path = Path(spm_path)
    if not spm_path.is_file():
        raise FileNotFoundError(f"There is no tokenizer file '{spm_path}'; OneRef needs BEiT-3's beit3.spm.")
    original = _load_original(spm_path)
    try:
        tokenizer = _translate(spm_path)
    except Exception as error:  # the library's own errors have no narrower type
        raise ValueError(f"'{spm_path}' is damaged; OneRef needs BEiT-3's beit3.spm.") from error
    if tokenizer.backend_tokenizer.normalizer is None:
        tokenizer = _spaces_only(tokenizer)
    _check(tokenizer, original, spm_path)
    return tokenizer


def check_tokenizer(tokenizer: TokenizersBackend, spm_path: str | os.PathLike) -> None:
    """Raises `ValueError` where a tokenizer has other ids than the SentencePiece model, for a word or a sentence."""
    _check(tokenizer, _load_original(Path(spm_path)), Path(spm_path))


def _load_original(spm_path: Path) -> SentencePieceProcessor:
    try:
        original = SentencePieceProcessor(model_file=str(spm_path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"'{spm_path}' is not a SentencePiece model; OneRef needs BEiT-3's beit3.spm.") from error
    if original.id_to_piece(list(range(min(3, len(original))))) != _FIRST_PIECES:
        raise ValueError(f"'{spm_path}' does not begin with the pieces {', '.join(_FIRST_PIECES)} as beit3.spm does.")
    return original


def _translate(spm_path: Path) -> XLMRobertaTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        # Under any other ending Transformers gives a vocabulary of five tokens, without an error.
        renamed = shutil.copyfile(spm_path, Path(folder) / "sentencepiece.bpe.model")
        parts = XLMRobertaTokenizer.convert_to_native_format(vocab_file=str(renamed))
    return XLMRobertaTokenizer(
        vocab=parts["vocab"],
        _spm_precompiled_charsmap=parts.get("_spm_precompiled_charsmap"),
        model_max_length=MAX_LENGTH,
    )


def _spaces_only(tokenizer: XLMRobertaTokenizer) -> TokenizersBackend:
    """The same vocabulary with SentencePiece's own handling of spaces."""
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(" +"), " "),
            normalizers.Replace(Regex("\\A |[ ▁]+\\z"), ""),
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
        ]
    )
    backend.pre_tokenizer = None
    return TokenizersBackend(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        model_max_length=MAX_LENGTH,
        model_input_names=tokenizer.model_input_names,
    )


def _check(tokenizer: TokenizersBackend, original: SentencePieceProcessor, spm_path: Path) -> None:
    pieces = original.id_to_piece(list(range(len(original))))
    expected = [*_SPECIAL_TOKENS, *pieces[3:], "<mask>"]
    ids = {token: index for index, token in enumerate(expected)}
    if len(ids) != len(expected) or tokenizer.get_vocab() != ids:
        raise ValueError(
            f"The {len(pieces)} pieces of '{spm_path}' do not give OneRef's vocabulary; it needs BEiT-3's beit3.spm."
        )
    for probe in _PROBES:
        ids = [piece + 1 if piece else tokenizer.unk_token_id for piece in original.encode(probe)]
        if tokenizer(probe)["input_ids"] != [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]:
            raise ValueError(f"Transformers and SentencePiece split {probe!r} differently with '{spm_path}'.")
