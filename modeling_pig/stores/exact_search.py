"""Search embeddings in memory exactly: find the k rows with the highest cosines, faster than float32 rows are read.

Stores hold float16. A first pass scores all rows in float16 or float32, and keeps every row that its rounding error
could hide among the k best; these candidates are scored again in float64. NumKong multiplies float16 rows as they are
stored, half the bytes of float32. For several queries, a product of torch takes less time, if torch is imported:
importing it would take longer than the search.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numkong
import numpy as np

from .vectors import cosine_scores


# The scores of all rows are held for so many queries (77 MB for 150,000 rows). So many rows are converted to float32
# at a time: 2 MB with 512 dimensions, which a processor's cache holds.
_QUERY_BATCH, _ROW_BATCH = 128, 1024
_PAIRS = 512  # of a query and a row that are scored at a time: 4 MB in float64


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
    def inverse_lengths(self) -> np.ndarray:
        """1 / length of each row (N,) float32: rounding to float16 changes the length."""
        inverse = np.empty(len(self.ids), np.float32)
        for first in range(0, len(inverse), _ROW_BATCH):
            rows = _to_float32(self.embeddings[first : first + _ROW_BATCH])
            inverse[first : first + len(rows)] = 1 / np.sqrt(np.einsum("ij,ij->i", rows, rows))
        return inverse


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
    excluded = None if masks is None or not blocks else ~np.concatenate(masks)  # (N,)
    return _search(blocks, query_embeddings, k, excluded)


def _search(
    blocks: Sequence[Block], query_embeddings: np.ndarray, k: int, excluded: np.ndarray | None = None
) -> list[RankedIds]:
    if not blocks:
        return [_NO_RESULTS] * len(query_embeddings)
    num_rows = sum(len(block.ids) for block in blocks)
    k = min(k, num_rows - (0 if excluded is None else int(excluded.sum())))
    results = []
    for first in range(0, len(query_embeddings), _QUERY_BATCH):
        batch = query_embeddings[first : first + _QUERY_BATCH]
        scores, max_errors = _score(blocks, batch)
        if excluded is not None:
            scores[:, excluded] = -np.inf
        # Rounding can swap two rows only if their scores differ by at most twice the error.
        thresholds = _kth_best(scores, k, excluded is None) - 2 * max_errors
        candidates = scores >= thresholds[:, None]
        results += _rank_candidates(blocks, batch, candidates, k)
    return results


def _kth_best(scores: np.ndarray, k: int, in_groups: bool) -> np.ndarray:
    """Return the k-th best score of each query (Q,), or, if `in_groups`, quicker, a lower one that few rows exceed."""
    num_groups = scores.shape[1] // 64
    if in_groups and num_groups > 16 * k:
        # The best scores of k groups are k scores. Neighbours, often of one video, are in different groups.
        scores = scores[:, : 64 * num_groups].reshape(len(scores), 64, num_groups).max(axis=1)
    return np.partition(scores, scores.shape[1] - k, axis=1)[:, -k]


def search_blockwise(blocks: Iterable[Block], query_embeddings: np.ndarray, k: int) -> list[RankedIds]:
    """Run [`search_exactly`] once, with one block in memory at a time. The results of a query come in any order."""
    best = [_NO_RESULTS] * len(query_embeddings)
    for block in blocks:
        found = _search([block], query_embeddings, k)
        for number, (block_ids, block_scores) in enumerate(found):
            ids = np.append(best[number].ids, block_ids)
            scores = np.append(best[number].scores, block_scores)
            if len(scores) > k:
                is_best = scores >= np.partition(scores, len(scores) - k)[-k]
                ids, scores = ids[is_best], scores[is_best]
            best[number] = RankedIds(ids, scores)
    return best


def _score(blocks: Sequence[Block], query_embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (Q, N) float32 and, per query, the largest error (Q,) that they can have."""
    scores = np.empty((len(query_embeddings), sum(len(block.ids) for block in blocks)), np.float32)
    max_errors = np.full(len(scores), (query_embeddings.shape[1] + 8) * 2**-23, np.float32)  # of sums in float32
    multiply = _multiply_in_float32
    if len(scores) == 1 or "torch" not in sys.modules:
        multiply, rounded = _multiply_in_float16, query_embeddings.astype(np.float16)
        max_errors += np.linalg.norm(query_embeddings - rounded, axis=1)
        query_embeddings = rounded
    first = 0
    for block in blocks:
        part = scores[:, first : first + len(block.ids)]
        multiply(block.embeddings, query_embeddings, part)
        part *= block.inverse_lengths
        first += len(block.ids)
    return scores, max_errors


def _multiply_in_float16(rows: np.ndarray, queries: np.ndarray, out: np.ndarray) -> None:
    """Write the products of rows (N, D) and queries (Q, D), both float16, to `out` (Q, N); sums are in float32."""
    if len(queries) == 1:
        out[:] = numkong.cdist(queries, rows, metric="dot")
        return
    packed = numkong.dots_pack(queries)
    for first in range(0, len(rows), _ROW_BATCH):
        products = np.asarray(numkong.dots_packed(rows[first : first + _ROW_BATCH], packed))
        out[:, first : first + len(products)] = products.T


def _multiply_in_float32(rows: np.ndarray, queries: np.ndarray, out: np.ndarray) -> None:
    """Write the products of rows (N, D) float16 and queries (Q, D) float32 to `out` (Q, N)."""
    import torch

    for first in range(0, len(rows), _ROW_BATCH):
        part = torch.from_numpy(_to_float32(rows[first : first + _ROW_BATCH]))
        products = torch.from_numpy(out[:, first : first + len(part)])
        torch.mm(torch.from_numpy(queries), part.t(), out=products)


def _to_float32(rows: np.ndarray) -> np.ndarray:
    return np.asarray(numkong.astype(rows, "float32"))  # NumPy takes ten times as long


def _rank_candidates(
    blocks: Sequence[Block], query_embeddings: np.ndarray, candidates: np.ndarray, k: int
) -> list[RankedIds]:
    """Rank the candidates (Q, N) of each query, k or more of the N rows: the k best and those equal to the last."""
    queries, rows = np.divmod(np.flatnonzero(candidates), candidates.shape[1])  # (C,): C pairs of a query and a row
    scores = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _PAIRS):  # memory and caches hold few pairs
        part = slice(first, first + _PAIRS)
        partners = query_embeddings[0] if len(query_embeddings) == 1 else query_embeddings[queries[part]]
        scores[part] = cosine_scores(_take(blocks, rows[part])[1], partners)
    best = _best_of_each(queries, scores, k)
    ids, scores = _take(blocks, rows[best])[0], scores[best]
    ends = np.searchsorted(queries[best], range(1, len(query_embeddings)))
    return list(map(RankedIds, np.split(ids, ends), np.split(scores, ends)))


def _best_of_each(queries: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Return positions of the k best scores of each query, and of those that equal the last of them, best first.

    Args:
        queries (`np.ndarray` of shape `(C,)`): number of the query of each score, ascending, each k times or more.
        scores (`np.ndarray` of shape `(C,)`): the scores.
        k (`int`): scores per query.
    """
    order = np.lexsort((-scores, queries))
    kth = scores[order[np.searchsorted(queries, range(queries[-1] + 1)) + k - 1]]  # (Q,)
    return order[scores[order] >= kth[queries[order]]]


def _take(blocks: Sequence[Block], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (C,) and embeddings (C, D) of rows (C,), given as positions in all blocks."""
    if len(blocks) == 1:
        return blocks[0].ids[rows], blocks[0].embeddings[rows]
    ids = np.empty(len(rows), blocks[0].ids.dtype)
    embeddings = np.empty((len(rows), blocks[0].embeddings.shape[1]), np.float16)
    start = 0
    for block in blocks:
        places = np.flatnonzero((rows >= start) & (rows < start + len(block.ids)))
        ids[places], embeddings[places] = block.ids[rows[places] - start], block.embeddings[rows[places] - start]
        start += len(block.ids)
    return ids, embeddings


def is_among(ids: np.ndarray, sorted_ids: np.ndarray) -> np.ndarray:
    """Return a mask (N,) of the `ids` (N,) that are in `sorted_ids`, which is in ascending order."""
    if not len(sorted_ids):
        return np.zeros(len(ids), bool)
    return sorted_ids[np.searchsorted(sorted_ids, ids).clip(max=len(sorted_ids) - 1)] == ids


__all__ = ["Block", "RankedIds", "is_among", "search_blockwise", "search_exactly"]
