"""Train a small CLIP tokenizer for models that start from random weights."""

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer


_END_OF_WORD = "</w>"


def train_tokenizer(captions: Iterable[list[str]], vocab_size: int, max_length: int = 77) -> CLIPTokenizer:
    """Train a CLIP tokenizer: frequent words of the captions become one token each, other words are spelled out.

    The trainer of the tokenizers library numbers tokens differently in each run, and has no tokens for unseen bytes:
    CLIP's unknown token is its end-of-text token, so that a foreign letter would end a sentence early. This function
    returns the same tokenizer for the same captions, and every byte is a token, as in CLIP's vocabulary.

    Args:
        captions (`Iterable[list[str]]`): captions per video.
        vocab_size (`int`): largest number of tokens; 514 of them are bytes and special tokens.
        max_length (`int`): tokens of the longest text, special tokens included.

    Raises:
        ValueError: `vocab_size` is less than 514.
    """
    backend: Any = CLIPTokenizer().backend_tokenizer  # normalises and splits text like CLIP
    words: Counter[str] = Counter()
    for texts in captions:
        for text in texts:
            pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
            words.update(word for word, _ in pieces)

    alphabet = sorted(ByteLevel.alphabet())
    vocab = [*alphabet, *(byte + _END_OF_WORD for byte in alphabet)]
    room = vocab_size - len(vocab) - 2  # for start and end of text
    if room < 0:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens alone are {len(vocab) + 2}.")
    ranks: dict[tuple[str, str], int] = {}
    for word in sorted(words, key=lambda word: (-words[word], word)):
        first, *rest = _apply_merges(word, ranks)
        if len(rest) > room:
            break
        for piece in rest:  # the remaining pieces are merged from left to right
            ranks[first, piece] = len(ranks)
            first += piece
            vocab.append(first)
        room -= len(rest)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = list(ranks)  # pairs; the annotation of CLIPTokenizer lacks this type
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocab)}, merges=merges, model_max_length=max_length
    )


def _apply_merges(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    pieces = [*word[:-1], word[-1] + _END_OF_WORD]
    while len(pieces) > 1:
        rank, position = min((ranks.get(pair, math.inf), number) for number, pair in enumerate(pairwise(pieces)))
        if rank == math.inf:
            break
        pieces[position : position + 2] = [pieces[position] + pieces[position + 1]]
    return pieces


__all__ = ["train_tokenizer"]
