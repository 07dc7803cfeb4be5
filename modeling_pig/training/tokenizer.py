"""A small CLIP tokenizer for models that start from random weights."""

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer


_END_OF_WORD = "</w>"


def train_tokenizer(captions: Iterable[list[str]], vocab_size: int, max_length: int = 77) -> CLIPTokenizer:
    """A CLIP tokenizer in which the frequent words of these captions are one token each; others are spelled out.

    The library's own trainer numbers tokens in another order at each run, and leaves bytes that it has not seen
    unknown: CLIP's unknown token is its end-of-text token, so that a foreign letter would end a sentence early. Here
    the same captions give the same tokenizer, and every byte is a token, as in CLIP's own vocabulary.

    Args:
        captions (`Iterable[list[str]]`): the captions of each video.
        vocab_size (`int`): upper limit; 514 are bytes and special tokens.
        max_length (`int`): longest text in tokens, the special ones included.

    Raises:
        ValueError: a limit under 514.
    """
    backend: Any = CLIPTokenizer().backend_tokenizer  # for CLIP's own way to normalise and to split
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
        for piece in rest:  # what is left apart is joined from left to right
            ranks[first, piece] = len(ranks)
            first += piece
            vocab.append(first)
        room -= len(rest)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = list(ranks)  # pairs, which the annotation of CLIPTokenizer does not foresee
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
