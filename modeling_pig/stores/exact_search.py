"""Search embeddings in memory exactly: find the k rows with the highest cosines, as fast as memory is read.

Stores hold float16: half the bytes take half the time. A first pass scores all rows in float16 and keeps every row
that its rounding error could hide among the k best; these candidates are scored again in float64. If there are few
rows, NumPy scores them in float32, because importing torch would take longer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .vectors import cosine_scores


_MAX_HALF_QUERIES = 8  # for more queries, one matrix product in float32 is faster than one float16 pass per query
_MIN_HALF_ROWS = 20_000  # up to so many rows, NumPy takes less time than importing torch
# Stored lengths may differ from 1 by 1e-3, see `VideoIndex.upsert`; rounding an embedding to float16 adds to that.
_LENGTH_ERROR = 1e-3 + 2**-11
# Size of one float32 matrix product. The scores of all rows are held for so many queries (38 MB for 150,000 rows); so
# many rows of 512 dimensions take 16 MB in float32.
_QUERY_BATCH, _ROW_BATCH = 64, 8192


@dataclass(frozen=True)
class Block:
    """Rows that are scored together.

    Args:
        ids (`np.ndarray` of shape `(N,)`): row ids of the store, uint64.
        embeddings (`np.ndarray` of shape `(N, D)`): float16, C-contiguous.
    """

    ids: np.ndarray
    embeddings: np.ndarray

    @cached_property
    def float32_embeddings(self) -> np.ndarray:
        """Embeddings in float32, which take twice the memory."""
        return self.embeddings.astype(np.float32)


class RankedIds(NamedTuple):
    """Results of one query: row ids (N,) uint64 and their scores (N,) float32."""

    ids: np.ndarray
    scores: np.ndarray


_NO_RESULTS = RankedIds(np.empty(0, np.uint64), np.empty(0, np.float32))


def search_exactly(
    blocks: Sequence[Block], query_embeddings: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> list[RankedIds]:
    """Find the k best rows of each query, best first, and all rows with the same score as the last of them.

    Args:
        blocks (`Sequence[Block]`): the rows, normalised.
        query_embeddings (`np.ndarray` of shape `(Q, D)`): float32, normalised.
        k (`int`): results per query, at least 1. If there are fewer rows, all of them are results.
        allowed (`np.ndarray`, *optional*): ascending ids of the rows that may be results; by default all rows.
    """
    masks = None
    if allowed is not None:
        masks = [is_among(block.ids, allowed) for block in blocks]
        masked = [(block, mask) for block, mask in zip(blocks, masks, strict=True) if mask.any()]
        blocks, masks = [block for block, _ in masked], [mask for _, mask in masked]
    if not blocks:
        return [_NO_RESULTS] * len(query_embeddings)
    excluded = None if masks is None else ~np.concatenate(masks)  # (N,)
    num_rows = sum(len(block.ids) for block in blocks)
    k = min(k, num_rows - (0 if excluded is None else int(excluded.sum())))
    use_half = len(query_embeddings) <= _MAX_HALF_QUERIES and num_rows > _MIN_HALF_ROWS
    score = _score_in_float16 if use_half else _score_in_float32
    results = []
    for first in range(0, len(query_embeddings), _QUERY_BATCH):
        batch = query_embeddings[first : first + _QUERY_BATCH]
        for query, (scores, max_error) in zip(batch, score(blocks, batch), strict=True):
            if excluded is not None:
                scores[excluded] = -np.inf
            # Rounding can swap two rows only if their scores differ by at most twice the error.
            threshold = np.partition(scores, len(scores) - k)[-k] - 2 * max_error
            results.append(_rank_candidates(blocks, np.flatnonzero(scores >= threshold), query, k))
    return results


def search_blockwise(blocks: Iterable[Block], query_embeddings: np.ndarray, k: int) -> list[RankedIds]:
    """Run [`search_exactly`] with one block in memory at a time. The results of a query come in any order."""
    best = [_NO_RESULTS] * len(query_embeddings)
    for block in blocks:
        for number, (block_ids, block_scores) in enumerate(search_exactly([block], query_embeddings, k)):
            ids = np.append(best[number].ids, block_ids)
            scores = np.append(best[number].scores, block_scores)
            if len(scores) > k:
                is_best = scores >= np.partition(scores, len(scores) - k)[-k]
                ids, scores = ids[is_best], scores[is_best]
            best[number] = RankedIds(ids, scores)
    return best


def _score_in_float16(blocks: Sequence[Block], query_embeddings: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the scores (N,) float32 of each query, and the largest error that they can have."""
    import torch

    lengths = [len(block.ids) for block in blocks]
    for query in query_embeddings:
        half = torch.from_numpy(query.astype(np.float16))
        scores = torch.empty(sum(lengths), dtype=torch.float16)
        for block, out in zip(blocks, scores.split(lengths), strict=True):
            torch.mv(torch.from_numpy(block.embeddings), half, out=out)  # accumulates in float32, by default on CPUs
        # Rounding errors of the query, of a score of at most 1 and of the sum.
        query_error = float(np.linalg.norm(query - half.float().numpy()))
        yield scores.float().numpy(), query_error + 2**-11 + len(query) * 2**-23 + _LENGTH_ERROR


def _score_in_float32(blocks: Sequence[Block], query_embeddings: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """Yield what [`_score_in_float16`] yields, from one pass over the rows for all queries."""
    scores = np.empty((len(query_embeddings), sum(len(block.ids) for block in blocks)), np.float32)
    keep_float32, first = scores.shape[1] <= _MIN_HALF_ROWS, 0
    for block in blocks:
        for start in range(0, len(block.ids), _ROW_BATCH):
            # Few rows are kept in float32: converting them takes longer than the product with one query.
            embeddings = block.float32_embeddings if keep_float32 else block.embeddings
            rows = embeddings[start : start + _ROW_BATCH].astype(np.float32, copy=False)
            np.matmul(query_embeddings, rows.T, out=scores[:, first : first + len(rows)])
            first += len(rows)
    for row in scores:
        yield row, query_embeddings.shape[1] * 2**-23 + _LENGTH_ERROR


def _rank_candidates(blocks: Sequence[Block], candidates: np.ndarray, query: np.ndarray, k: int) -> RankedIds:
    """Rank candidate rows, given as ascending positions in all blocks: the k best and those equal to the last."""
    ends = np.cumsum([len(block.ids) for block in blocks])
    starts = ends - [len(block.ids) for block in blocks]
    by_block = np.split(candidates, np.searchsorted(candidates, ends[:-1]))
    chosen = [(block, rows - start) for block, rows, start in zip(blocks, by_block, starts, strict=True) if len(rows)]
    ids = np.concatenate([block.ids[rows] for block, rows in chosen])
    scores = cosine_scores(np.concatenate([block.embeddings[rows] for block, rows in chosen]), query)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= scores[order[k - 1]]]
    return RankedIds(ids[order], scores[order])


def is_among(ids: np.ndarray, sorted_ids: np.ndarray) -> np.ndarray:
    """Return a mask (N,) of the `ids` (N,) that are in `sorted_ids`, which is in ascending order."""
    if not len(sorted_ids):
        return np.zeros(len(ids), bool)
    return sorted_ids[np.searchsorted(sorted_ids, ids).clip(max=len(sorted_ids) - 1)] == ids


__all__ = ["Block", "RankedIds", "is_among", "search_blockwise", "search_exactly"]
