"""Merge and group ranked results of one or several indexes. Importing this module imports no torch."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import TypeAlias, TypeVar

from ..stores.results import SearchResult
from .search_options import MAX_FETCHED, FileResult, SearchOptions


Arrange: TypeAlias = Callable[[list[SearchResult]], list[SearchResult]]  # ranked entries -> results
_Ranked = TypeVar("_Ranked")


def fetch_until_complete(rank: Callable[[int], tuple[_Ranked, bool]], first: int, depth: int) -> _Ranked:
    """Return the results of `rank`, called with ever more entries per index until they are complete or the most."""
    fetch, max_fetch = first, max(depth, MAX_FETCHED)
    while True:
        results, is_complete = rank(fetch)
        if is_complete or fetch == max_fetch:
            return results
        fetch = min(4 * fetch, max_fetch)


def rank_lists(
    lists: Sequence[Sequence[SearchResult]], fetched: int, options: SearchOptions, arrange: Arrange
) -> tuple[list[SearchResult], bool]:
    """Merge lists of at most `fetched` results into one ranking; also return whether its page is complete."""
    min_score = -math.inf if options.min_score is None else options.min_score
    merged, is_last = merge_certain(lists, fetched, min_score)
    results = arrange(merged)
    # All segments of a file, and all copies of a video, are found once the next one begins.
    is_complete = is_last or len(results) >= options.depth + options.joins_entries
    return results[options.offset : options.depth], is_complete


def merge_certain(
    lists: Sequence[Sequence[SearchResult]], fetched: int, min_score: float
) -> tuple[list[SearchResult], bool]:
    """Merge lists of at most `fetched` results, as far as their ranks are certain; also return if no more can follow.

    Behind the last result of a full list, its index may hold entries that rank before those of the other lists.
    """
    certain_to = min((_place(results[-1]) for results in lists if len(results) == fetched), default=None)
    found = chain.from_iterable(lists)
    merged = merge_results(
        result
        for result in found
        if result.score >= min_score and (certain_to is None or _place(result) <= certain_to)
    )
    return merged, certain_to is None or -certain_to[0] < min_score


def _place(result: SearchResult) -> tuple[float, str, float]:
    """Return what orders results: the score, then path and start."""
    return -result.score, result.path, result.start or 0.0


def merge_results(results: Iterable[SearchResult]) -> list[SearchResult]:
    """Rank results of several searches together; an entry that occurs several times keeps its best score."""
    best: dict[tuple[str, float | None, float | None], SearchResult] = {}
    for result in sorted(results, key=_place):
        best.setdefault((result.path, result.start, result.end), result)
    return number_results(best.values())


def number_results(results: Iterable[SearchResult]) -> list[SearchResult]:
    return [replace(result, rank=rank) for rank, result in enumerate(results, start=1)]


def group_by_file(ranked: Sequence[SearchResult], num_files: int) -> list[SearchResult]:
    """Group ranked segments by file, in order of the best segment. Stop at the first segment of file `num_files`."""
    files: dict[str, list[SearchResult]] = {}
    for result in ranked:
        files.setdefault(result.path, []).append(result)
        if len(files) == num_files:
            break
    return [
        FileResult(**{**asdict(best), "rank": rank}, others=tuple(others))
        for rank, (best, *others) in enumerate(files.values(), start=1)
    ]


__all__ = [
    "Arrange",
    "fetch_until_complete",
    "group_by_file",
    "merge_certain",
    "merge_results",
    "number_results",
    "rank_lists",
]
