"""Exact search over vectors that are held in memory: the k best rows by cosine, as fast as memory is read.

Half precision is what the store keeps, and half the bytes are half the time: a first pass over all rows in float16
leaves those that its rounding error could hide among the k best, and they are scored again in float64. Few rows are
scored in float32 by NumPy: importing torch takes longer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .video_store import cosines


# Queries that are scored one at a time: of more, a matrix product in float32 is faster than as many passes in float16.
_ONE_AT_A_TIME = 8
_FEW = 20_000  # rows
# A length that an index takes for 1 may differ from it by 1e-3, and rounding the vector to halves may add its share.
_LENGTH_ERROR = 1e-3 + 2**-11
# A part of that matrix product: so many queries, whose scores of all rows are held (38 MB at 150,000 rows), by so many
# rows, which take 16 MB in float32 at width 512.
_QUERIES, _ROWS = 64, 8192


@dataclass(frozen=True)
class Block:
    """Rows that came together: `ids` (N,) uint64 of the store, `vectors` (N, D) float16, C-contiguous."""

    ids: np.ndarray
    vectors: np.ndarray

    @cached_property
    def in_single(self) -> np.ndarray:
        """The vectors in float32, twice as large."""
        return self.vectors.astype(np.float32)


def search_exactly(
    blocks: Sequence[Block], queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query the ids and scores of its k best rows, best first, and of all that score the same as the last.

    Args:
        blocks (`Sequence[Block]`): N rows in all, normalised.
        queries (`np.ndarray` of shape `(Q, D)`): float32, normalised.
        k (`int`): 1 or more; all rows if there are fewer.
        allowed (`np.ndarray`, *optional*): ids of the rows that may be found, ascending; by default all.
    """
    masks = None
    if allowed is not None:
        masks = [where_in(block.ids, allowed) for block in blocks]
        masked = [(block, mask) for block, mask in zip(blocks, masks, strict=True) if mask.any()]
        blocks, masks = [block for block, _ in masked], [mask for _, mask in masked]
    if not blocks:
        return [(np.empty(0, np.uint64), np.empty(0, np.float32)) for _ in queries]
    hidden = None if masks is None else ~np.concatenate(masks)  # (N,)
    num_rows = sum(len(block.ids) for block in blocks)
    k = min(k, num_rows - (0 if hidden is None else int(hidden.sum())))
    score = _scores_in_half if len(queries) <= _ONE_AT_A_TIME and num_rows > _FEW else _scores
    found = []
    for first in range(0, len(queries), _QUERIES):
        part = queries[first : first + _QUERIES]
        for query, (scores, error) in zip(part, score(blocks, part), strict=True):
            if hidden is not None:
                scores[hidden] = -np.inf
            # Two scores that are `error` off at most can trade places only if they are twice that apart, or less.
            enough = np.partition(scores, len(scores) - k)[-k] - 2 * error
            found.append(_best(blocks, np.flatnonzero(scores >= enough), query, k))
    return found


def search_in_parts(blocks: Iterable[Block], queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[`search_exactly`] over rows of which one block at a time is held; the best come in any order."""
    best = [(np.empty(0, np.uint64), np.empty(0, np.float32)) for _ in queries]
    for block in blocks:
        for number, (own_ids, own_scores) in enumerate(search_exactly([block], queries, k)):
            ids, scores = np.append(best[number][0], own_ids), np.append(best[number][1], own_scores)
            if len(scores) > k:
                enough = scores >= np.partition(scores, len(scores) - k)[-k]
                ids, scores = ids[enough], scores[enough]
            best[number] = ids, scores
    return best


def _scores_in_half(blocks: Sequence[Block], queries: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """For each query its scores (N,) float32, and how far off they can be."""
    import torch

    for query in queries:
        half = torch.from_numpy(query.astype(np.float16))
        scores = torch.empty(sum(len(block.ids) for block in blocks), dtype=torch.float16)
        for block, out in zip(blocks, scores.split([len(block.ids) for block in blocks]), strict=True):
            torch.mv(torch.from_numpy(block.vectors), half, out=out)  # sums in float32: torch's default on CPUs
        # The query's rounding, that of a score of at most 1, and that of the sum.
        rounding = float(np.linalg.norm(query - half.float().numpy()))
        yield scores.float().numpy(), rounding + 2**-11 + len(query) * 2**-23 + _LENGTH_ERROR


def _scores(blocks: Sequence[Block], queries: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """The same in float32: one pass over the rows for all queries."""
    scores = np.empty((len(queries), sum(len(block.ids) for block in blocks)), np.float32)
    are_few, first = scores.shape[1] <= _FEW, 0
    for block in blocks:
        for start in range(0, len(block.ids), _ROWS):
            # Of few rows they are kept: turning halves into floats takes longer than the product with one query.
            vectors = block.in_single if are_few else block.vectors
            rows = vectors[start : start + _ROWS].astype(np.float32, copy=False)
            np.matmul(queries, rows.T, out=scores[:, first : first + len(rows)])
            first += len(rows)
    for row in scores:
        yield row, queries.shape[1] * 2**-23 + _LENGTH_ERROR


def _best(blocks: Sequence[Block], candidates: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the k best of some rows (positions in all blocks, ascending), and of the last one's equals."""
    ends = np.cumsum([len(block.ids) for block in blocks])
    parts = np.split(candidates, np.searchsorted(candidates, ends[:-1]))
    starts = ends - [len(block.ids) for block in blocks]
    chosen = [(block, part - start) for block, part, start in zip(blocks, parts, starts, strict=True) if len(part)]
    ids = np.concatenate([block.ids[part] for block, part in chosen])
    scores = cosines(np.concatenate([block.vectors[part] for block, part in chosen]), query)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= scores[order[k - 1]]]
    return ids[order], scores[order]


def where_in(ids: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Which of `ids` are among `some`, in ascending order: a mask (N,)."""
    if not len(some):
        return np.zeros(len(ids), bool)
    return some[np.searchsorted(some, ids).clip(max=len(some) - 1)] == ids


__all__ = ["Block", "search_exactly", "search_in_parts", "where_in"]
