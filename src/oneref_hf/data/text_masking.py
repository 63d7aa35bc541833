# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Referring-aware text masking: the subject and the object of a phrase are hidden first, then random words.

Words are found by a dependency parser once per dataset (`parse_words`, for `datasets.map`), located among the pieces
of the tokenised phrase without it, and masked in the training step at the cost of a few random numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch


SUBJECT_DEPENDENCIES = frozenset(
    ["subj", "xsubj", "npsubj", "nsubj", "nsubjpass", "csubj", "csubjpass", "agent", "expl"]
)
OBJECT_DEPENDENCIES = frozenset(["dobj", "pobj", "dative", "oprd"])

# Parts of spaCy's English pipelines that the dependency parser does not read; they take most of the time.
_UNUSED_COMPONENTS = ["tagger", "attribute_ruler", "lemmatizer", "ner", "senter"]

# Of the chosen tokens 80 % become the mask token, 10 % stay, 10 % become a random token.
_MASKED_SHARE, _KEPT_SHARE = 0.8, 0.1
_FIRST_ORDINARY_ID = 3  # <s>, <pad> and </s> are never random replacements
IGNORE_INDEX = -100


@functools.cache
def load_parser(name: str = "en_core_web_md"):
    """The spaCy pipeline that finds the words, loaded once per process.

    The original used `en_core_web_md`; its version 3.8 reproduces the original's choices.

    Raises:
        ImportError: if spaCy or the model is not installed, saying how to get it.
    """
    try:
        import spacy

        return spacy.load(name)
    except ImportError as error:
        raise ImportError("Finding subject and object words needs spaCy: pip install oneref-hf[train].") from error
    except OSError as error:
        raise ImportError(f"The spaCy model {name!r} is not installed: python -m spacy download {name}.") from error


def parse_words(texts: Iterable[str], nlp, batch_size: int = 256) -> dict[str, list[str | None]]:
    """Finds the subject and object word of every phrase, in one pass of the parser.

    Subject: the first token whose dependency is in `SUBJECT_DEPENDENCIES`, else the first root. Object: the first
    whose dependency is in `OBJECT_DEPENDENCIES`. Phrases are lower-cased first, as the model reads them.

    As a step of a dataset, cached under the name of the model rather than its weights:
    `dataset.map(lambda rows: parse_words(rows["phrase"], load_parser()), batched=True)`.

    Args:
        texts: phrases, in any case.
        nlp: a spaCy pipeline with a dependency parser (`load_parser()`).
        batch_size: phrases parsed together.

    Returns:
        `{"subject": [...], "object": [...]}`, None where there is no such word.
    """
    subjects, objects = [], []
    for document in nlp.pipe((text.lower() for text in texts), batch_size=batch_size, disable=_UNUSED_COMPONENTS):
        subject, object_ = _words_of(document)
        subjects.append(subject)
        objects.append(object_)
    return {"subject": subjects, "object": objects}


class ReferringTextMasker:
    """Chooses and masks the tokens of a phrase for masked language modelling.

    Args:
        tokenizer: a SentencePiece-based Transformers tokenizer that wraps a phrase as BOS, pieces, EOS.
        nlp: a spaCy pipeline, read by `word_positions` alone; None if words are parsed beforehand (`parse_words`).
        mask_ratio: share of the tokens to mask, BOS aside.

    Raises:
        ValueError: if mask_ratio is outside [0, 1].
    """

    def __init__(self, tokenizer, nlp=None, mask_ratio: float = 0.4):
        if not 0 <= mask_ratio <= 1:
            raise ValueError(f"A masking ratio lies between 0 and 1, not {mask_ratio}.")
        self.tokenizer = tokenizer
        self.nlp = nlp
        self.mask_ratio = mask_ratio
        self._special_ids = (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id)
        self._num_ids = len(tokenizer)

    def word_positions(self, text: str) -> tuple[int | None, int | None]:
        """Parses one phrase and returns the piece positions of its subject and object (see `locate`).

        Raises:
            ValueError: if the masker was made without `nlp`.
        """
        if self.nlp is None:
            raise ValueError(
                "word_positions parses the phrase and needs a spaCy pipeline: ReferringTextMasker(nlp=...)."
            )
        text = text.lower()
        return self.locate(self.tokenizer(text)["input_ids"], *_words_of(self.nlp(text)))

    def locate(self, input_ids, subject: str | None, object_: str | None) -> tuple[int | None, int | None]:
        """The piece positions of two words in a tokenised phrase, counted from 0 after BOS.

        A word is found where a piece equals "▁" + word; a word that is split into several pieces, follows punctuation
        without a space or was cut off is not: None.

        Args:
            input_ids: ids of one phrase with BOS and EOS, a list or `(T,)` tensor, padded or not.
            subject, object_: lower-case words, None if there is none.
        """
        pieces = torch.as_tensor(input_ids).tolist()[1:]
        return self._position(pieces, subject), self._position(pieces, object_)

    def __call__(
        self,
        input_ids,
        subject_index: int | None = None,
        object_index: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks one tokenised phrase.

        With n tokens (BOS, pieces, EOS), `max(min(int((n - 1) * mask_ratio + 0.5), n - 1), 1)` positions are chosen:
        the subject, then the object, then distinct random ones behind BOS (EOS can be drawn, as in the original).
        Each becomes the mask token (80 %), stays (10 %) or becomes a random id from 3 on (10 %).

        Args:
            input_ids: ids of one phrase with BOS and EOS, a list or `(T,)` tensor; padding may follow.
            subject_index, object_index: from `locate` or `word_positions`.
            generator: source of randomness; torch's global one by default.

        Returns:
            `(input_ids, mlm_labels)`, both int64 `(T,)`; labels are -100 where nothing was chosen. The input is kept.

        Raises:
            ValueError: if a position lies outside the phrase or the phrase has fewer than two tokens.
        """
        # Lists, because a phrase is short: every operation on tensors would take longer than all of this.
        masked = torch.as_tensor(input_ids).tolist()
        length = len(masked) - masked.count(self.tokenizer.pad_token_id)
        if length < 2:
            raise ValueError("A phrase to mask needs at least BOS and EOS; tokenise it with special tokens.")
        chosen = self._choose(length, subject_index, object_index, generator)
        fates = torch.rand(len(chosen), generator=generator).tolist()
        random_ids = torch.randint(_FIRST_ORDINARY_ID, self._num_ids, (len(chosen),), generator=generator).tolist()
        labels = [IGNORE_INDEX] * len(masked)
        for position, fate, random_id in zip(chosen, fates, random_ids):
            labels[position] = masked[position]
            if fate < _MASKED_SHARE:
                masked[position] = self.tokenizer.mask_token_id
            elif fate >= _MASKED_SHARE + _KEPT_SHARE:
                masked[position] = random_id
        return torch.tensor(masked), torch.tensor(labels)

    def _choose(self, length: int, subject_index, object_index, generator) -> list[int]:
        """Distinct positions in 1..length-1, words first."""
        count = max(min(int((length - 1) * self.mask_ratio + 0.5), length - 1), 1)
        words = []
        for index in (subject_index, object_index):
            if index is None or index + 1 in words:
                continue
            if not 0 <= index < length - 1:
                raise ValueError(f"The piece position {index} lies outside a phrase of {length - 2} pieces.")
            words.append(index + 1)
        order = torch.randperm(length - 1, generator=generator).tolist()
        others = (position + 1 for position in order if position + 1 not in words)
        return [*words, *others][:count]

    def _position(self, pieces: list[int], word: str | None) -> int | None:
        piece = self.tokenizer.convert_tokens_to_ids(f"▁{word}") if word else None
        return pieces.index(piece) if piece in pieces and piece not in self._special_ids else None


def _words_of(document) -> tuple[str | None, str | None]:
    subject = root = object_ = None
    for token in document:
        if subject is None and token.dep_ in SUBJECT_DEPENDENCIES:
            subject = token.text
        if root is None and token.dep_ == "ROOT":
            root = token.text
        if object_ is None and token.dep_ in OBJECT_DEPENDENCIES:
            object_ = token.text
    return subject or root, object_
