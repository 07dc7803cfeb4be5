"""Judge whether any video of the indexes fits a sentence, by comparison with sentences that describe no video.

A score alone says little: it depends on the model, on the number of entries and on the sentence. So each index is also
searched by `BACKGROUND`, sentences that no video shows. Their embeddings have a mean b and a covariance C, whose trace
is scaled to their number. A query q is compared in the directions in which these sentences do not differ: with the
vector w = (C + 0.1 I)^-1 (q - b), as in linear discriminant analysis. The statistic is the largest w · (x - m) of the
entries x, whose mean is m. Each sentence of the background gets its own, by the mean and covariance of the others. The
excess of a query is its distance from the mean of the background, in standard deviations.

A search of the same indexes with the same condition gives both, so that the number of entries cancels out.
"""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..stores.conditions import Condition
from ..stores.index import VideoIndex


NOTHING_FITS = "probably nothing here fits"
THRESHOLD = 0.0  # a compromise for two models, chosen on validation: docs/scores.md
MIN_ENTRIES = 20  # an index with fewer entries has no distribution of scores
_SHRINKAGE = 0.1
_NUM_DRAWN = 1000  # entries per index whose mean stands for that of all
_NUM_CONDITIONS = 32  # whose background is kept
_KEPT_FOR = 60.0  # seconds, of an index that cannot tell whether it has changed

BACKGROUND = (
    "the opposite of a rule",
    "what nobody expected to hear",
    "an opinion about the price of debt",
    "the meaning of a forgotten word",
    "nine percent of the remaining shares",
    "grammar and punctuation",
    "a promise that was not kept",
    "the reason for the delay",
    "a question without an answer",
    "twelve divided by four is three",
    "the terms of the contract",
    "a theory about prime numbers",
    "yesterday was cheaper than tomorrow",
    "the second paragraph of the law",
    "an invoice for last month",
    "thoughts on loyalty and regret",
    "a rumour about the election",
    "the average of all values",
    "please enter your password",
    "the history of an idea",
    "a proof by contradiction",
    "interest rates and inflation",
    "somebody else's point of view",
    "the difference between is and ought",
    "an exception to the policy",
    "a list of synonyms",
    "the probability of an error",
    "silence is an answer",
    "the deadline was moved to friday",
    "a summary of the minutes",
    "he would have preferred not to",
    "the cost of being right",
    "a word that rhymes with orange",
    "seven reasons to disagree",
    "the unpaid balance of the account",
    "everything that was left unsaid",
    "an apology in the third person",
    "the square root of two",
    "one of several possible causes",
    "a vote against the amendment",
    "being late is not an excuse",
    "the author's original intention",
    "a debt of gratitude",
    "how to spell necessary",
    "an argument about taxes",
    "the sum of the first hundred numbers",
    "neither true nor false",
    "permission to reproduce this text",
    "what the word freedom means",
    "a translation from latin",
    "the risk of inflation",
    "conditions of use",
    "a letter of recommendation",
    "last year's annual report",
    "the plural of a noun",
    "half of the members abstained",
    "an unexpected conclusion",
    "the principle of least effort",
    "doubts about the method",
    "a gap in the argument",
    "the name of the rule",
    "facts and assumptions",
    "an answer by return of post",
    "until further notice",
)


@dataclass(frozen=True)
class Judgement:
    """Whether any video fits a sentence.

    Args:
        nothing_fits (`bool`, *optional*): whether probably no video fits; `None` if that cannot be told, because the
            indexes hold fewer than 20 entries, no entry meets the condition, or the model is a `single_tower`.
        excess (`float`, *optional*): distance of the best video from what sentences that describe no video find, in
            standard deviations; `None` if it cannot be told.
        threshold (`float`): `nothing_fits` is `True` if the excess is less.
    """

    nothing_fits: bool | None
    excess: float | None
    threshold: float


class _Background(NamedTuple):
    """Mean of the entries (D,), and mean and standard deviation of the statistic over `BACKGROUND`."""

    centre: np.ndarray
    mean: float
    deviation: float


class Judge:
    """Judge whether any video of the indexes fits a query. Threads may share it.

    Args:
        text_encoder (`Callable`): encodes Q sentences into normalised embeddings, `(Q, D)` float32.
        indexes (`Sequence[VideoIndex]`): indexes that are searched as one.
    """

    def __init__(self, text_encoder: Callable[[Sequence[str]], np.ndarray], indexes: Sequence[VideoIndex]):
        self._text_encoder, self._indexes = text_encoder, indexes
        self._embeddings: np.ndarray | None = None  # of `BACKGROUND`, (64, D)
        self._known: dict[Hashable, _Background | None] = {}  # by the versions of the indexes and the conditions
        self._lock = threading.Lock()

    def excess(self, query_embeddings: np.ndarray, conditions: Sequence[Condition | None]) -> list[float | None]:
        """Return the excess of each query, see [`Judgement`]; `None` if it cannot be told.

        Args:
            query_embeddings (`np.ndarray` of shape `(Q, D)`): normalised embeddings of sentences.
            conditions (`Sequence[Condition | None]`): condition on the entries of each index.

        Raises:
            OSError: an index cannot be read.
        """
        background = self._background(tuple(conditions))
        if background is None or not len(query_embeddings):
            return [None] * len(query_embeddings)
        assert self._embeddings is not None
        directions = np.stack([discriminant(query, self._embeddings) for query in query_embeddings])
        best = self._best(directions, background.centre, conditions)
        return [None if np.isnan(value) else float(value - background.mean) / background.deviation for value in best]

    def _background(self, conditions: tuple[Condition | None, ...]) -> _Background | None:
        with self._lock:
            clock = int(time.monotonic() // _KEPT_FOR)
            versions = tuple(clock if (v := index.data_version) is None else v for index in self._indexes)
            key = (versions, conditions)
            if key not in self._known:
                while len(self._known) >= _NUM_CONDITIONS:
                    del self._known[next(iter(self._known))]
                self._known[key] = self._measure(conditions)
            return self._known[key]

    def _measure(self, conditions: Sequence[Condition | None]) -> _Background | None:
        counts = [len(index) for index in self._indexes]
        if sum(counts) < MIN_ENTRIES:
            return None
        if self._embeddings is None:
            self._embeddings = self._text_encoder(BACKGROUND)
        means = [
            index.draw_embeddings(_NUM_DRAWN).astype(np.float32).mean(axis=0) * (count / sum(counts))
            for index, count in zip(self._indexes, counts, strict=True)
            if count
        ]
        centre, known = np.sum(means, axis=0), self._embeddings
        directions = np.stack([discriminant(row, np.delete(known, n, axis=0)) for n, row in enumerate(known)])
        best = self._best(directions, centre, conditions)
        if np.isnan(best).any() or best.std() < 1e-9:
            return None
        return _Background(centre, float(best.mean()), float(best.std()))

    def _best(self, directions: np.ndarray, centre: np.ndarray, conditions: Sequence[Condition | None]) -> np.ndarray:
        """Return per direction, (Q, D), the largest product with an entry minus the centre; NaN without entries."""
        cosines = np.full(len(directions), np.nan)
        for index, condition in zip(self._indexes, conditions, strict=True):
            found = index.search(directions, 1, condition)
            scores = [results[0].score if results else np.nan for results in found]
            cosines = np.fmax(cosines, scores)
        return cosines * np.linalg.norm(directions, axis=1) - directions @ centre


def discriminant(query_embedding: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return (C + 0.1 I)^-1 (q - b), (D,), for the mean b and the scaled covariance C of a background.

    Args:
        query_embedding (`np.ndarray` of shape `(D,)`): the query q.
        background (`np.ndarray` of shape `(N, D)`): embeddings of sentences, not all equal.
    """
    mean = background.mean(axis=0)
    centred = background - mean
    products = centred @ centred.T  # (N, N): by the Woodbury identity, N x N instead of D x D numbers are inverted
    scale = _SHRINKAGE * np.trace(products) / len(background)
    rest = query_embedding - mean
    explained = centred.T @ np.linalg.solve(products + scale * np.eye(len(background)), centred @ rest)
    return ((rest - explained) / _SHRINKAGE).astype(np.float32)


__all__ = ["BACKGROUND", "MIN_ENTRIES", "NOTHING_FITS", "THRESHOLD", "Judge", "Judgement", "discriminant"]
