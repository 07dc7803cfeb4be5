"""Search an ANN index so that a longer list of results begins with the shorter one, as pages of results need it.

An ANN index that searches for more results also finds better ones that it missed before. If each page were cut from a
list of its own length, results would occur on two pages, or on none.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .video_store import RankedRows


if TYPE_CHECKING:
    import pyarrow as pa


FIRST_LEVEL, LEVEL_FACTOR = 10, 10  # results: 10, 100, 1000, ...


def search_in_levels(
    search: Callable[[np.ndarray, int], list[RankedRows]], query_embeddings: np.ndarray, k: int
) -> list[RankedRows]:
    """Return the `k` best rows of each query; those for a smaller `k` are the first of them.

    The first 10 rows are those of a search for 10. The next rows, up to 100, are those of a search for 100 that rank
    behind the first 10, and so on. A row that a search missed stays missed: per level 1 or 2 % of its rows.

    Args:
        search (`Callable`): returns the best rows of Q query embeddings, (Q, D), at most as many as asked for, with
            the columns path, start and end.
        query_embeddings (`np.ndarray` of shape `(Q, D)`): float32, normalised.
        k (`int`): rows per query, at least 1.
    """
    level = FIRST_LEVEL
    ranked = search(query_embeddings, level)
    open_queries = [number for number, found in enumerate(ranked) if len(found.scores) == level]
    while open_queries and level < k:
        level *= LEVEL_FACTOR
        depth = level + level // 10  # more rows than the level has, in place of those that were missed before
        deeper = search(query_embeddings[open_queries], depth)
        for number, found in zip(list(open_queries), deeper, strict=True):
            ranked[number] = _extend(ranked[number], found, level)
            if len(found.scores) < depth:
                open_queries.remove(number)
    return [RankedRows(found.scores[:k], found.rows.slice(0, k)) for found in ranked]


def _extend(head: RankedRows, found: RankedRows, length: int) -> RankedRows:
    """Append the found rows that rank behind the last row of `head`, up to `length` rows."""
    import pyarrow as pa

    held = set(zip(*_places(head.rows), strict=True))
    last = head.rows.slice(len(head.rows) - 1)
    (path,), (start,) = last["path"].to_pylist(), last["start"].to_pylist()
    last_place = -head.scores[-1], path, start or 0.0
    behind = [
        number
        for number, (score, *place) in enumerate(zip(found.scores, *_places(found.rows), strict=True))
        if tuple(place) not in held and (-score, place[0], place[1] or 0.0) > last_place
    ][: length - len(head.scores)]
    rows = pa.concat_tables([head.rows, found.rows.take(behind)]).combine_chunks()
    return RankedRows(np.concatenate([head.scores, found.scores[behind]]), rows)


def _places(rows: "pa.Table") -> list[list[Any]]:
    """Return path, start and end of each row; together they are unique in an index."""
    return [rows[name].to_pylist() for name in ("path", "start", "end")]


__all__ = ["search_in_levels"]
