"""Rank the results of several rankings together."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from ..stores.results import SearchResult


_CONSTANT = 60  # of the paper


def fuse(*rankings: Iterable[tuple[float, SearchResult]]) -> list[SearchResult]:
    """Rank results by reciprocal rank fusion: the sum of 1 / (60 + rank) over the rankings that hold the result.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
    SIGIR 2009. Results with equal relevance share a rank: all segments of a file have the same words. Of results with
    equal sums, the one with the higher score comes first.

    Args:
        *rankings (`Iterable[tuple[float, SearchResult]]`): results with their relevance, in any order. Of an entry
            that several indexes hold, the most relevant result counts.

    Returns:
        `list[SearchResult]`: each entry once, best first, with its score.
    """
    sums: dict[tuple[str, float | None, float | None], float] = defaultdict(float)
    results = {}
    for ranking in rankings:
        rank, previous, seen = 0, None, set()
        for relevance, result in sorted(ranking, key=lambda match: -match[0]):
            entry = (result.path, result.start, result.end)
            if entry in seen:
                continue
            if relevance != previous:
                rank, previous = rank + 1, relevance
            sums[entry] += 1 / (_CONSTANT + rank)
            results[entry] = result
            seen.add(entry)
    fused = sorted(results, key=lambda entry: (-sums[entry], -results[entry].score, entry[0], entry[1] or 0))
    return [replace(results[entry], rank=rank) for rank, entry in enumerate(fused, start=1)]


__all__ = ["fuse"]
