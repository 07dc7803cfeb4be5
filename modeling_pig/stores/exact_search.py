"""Search embeddings in memory exactly: find the k rows with the highest cosines, faster than float32 rows are read.

Stores hold float16. A first pass scores all rows in float16 or float32, and keeps every row that its rounding error
could hide among the k best; these candidates are scored again in float64. NumKong multiplies float16 rows as they are
stored, half the bytes of float32, in several threads if there are many rows. For several queries, a product of torch
takes less time, if torch is imported: importing it would take longer than the search.
"""

import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numkong
import numpy as np

from .vectors import cosine_scores, to_float32


# The scores of all rows are held for so many queries (77 MB for 150,000 rows). So many rows are multiplied at a time:
# 8 MB in float32 with 512 dimensions, which caches hold.
_QUERY_BATCH, _ROW_BATCH = 128, 4096
_PAIRS = 512  # of a query and a row that are scored at a time
_BYTES_PER_THREAD = 16 * 2**20  # of rows: for fewer, a thread costs more time than it saves


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
            rows = to_float32(self.embeddings[first : first + _ROW_BATCH])
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
    if len(scores) == 1 or not _torch_multiplies_in_float32():
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
    packed = None if len(queries) == 1 else numkong.dots_pack(queries)

    def multiply(start: int, end: int) -> None:
        if packed is None:
            out[:, start:end] = numkong.cdist(queries, rows[start:end], metric="dot")
            return
        for first in range(start, end, _ROW_BATCH):
            products = np.asarray(numkong.dots_packed(rows[first : min(first + _ROW_BATCH, end)], packed))
            out[:, first : first + len(products)] = products.T

    num_parts = max(1, min(_num_threads(), rows.nbytes // _BYTES_PER_THREAD))
    ends = np.linspace(0, len(rows), num_parts + 1).astype(int).tolist()
    if num_parts == 1:
        multiply(*ends)
        return
    with ThreadPoolExecutor(num_parts - 1) as pool:  # NumKong uses one thread, and lets others run meanwhile
        others = pool.map(multiply, ends[1:-1], ends[2:])
        multiply(*ends[:2])
        deque(others, maxlen=0)  # raises their errors


def _num_threads() -> int:
    """Return the number of threads that torch uses, or would use."""
    if torch := sys.modules.get("torch"):
        return torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else os.cpu_count() or 1


def _torch_multiplies_in_float32() -> bool:
    """Return whether torch is imported, and not set to multiply in fewer bits, as it can on some processors."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    try:
        return torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee")
    except AttributeError:  # torch 2.8
        return torch.get_float32_matmul_precision() == "highest"


def _multiply_in_float32(rows: np.ndarray, queries: np.ndarray, out: np.ndarray) -> None:
    """Write the products of rows (N, D) float16 and queries (Q, D) float32 to `out` (Q, N)."""
    import torch

    converted = torch.empty(min(_ROW_BATCH, len(rows)), rows.shape[1])
    for first in range(0, len(rows), _ROW_BATCH):
        part = np.require(rows[first : first + _ROW_BATCH], requirements="W")  # torch warns of arrays without
        products = torch.from_numpy(out[:, first : first + len(part)])
        in_float32 = converted[: len(part)].copy_(torch.from_numpy(part))
        torch.mm(torch.from_numpy(queries), in_float32.t(), out=products)


def _rank_candidates(
    blocks: Sequence[Block], query_embeddings: np.ndarray, candidates: np.ndarray, k: int
) -> list[RankedIds]:
    """Rank the candidates (Q, N) of each query, k or more of the N rows: the k best and those equal to the last."""
    queries, rows = np.divmod(np.flatnonzero(candidates), candidates.shape[1])  # (C,): C pairs of a query and a row
    scores, embeddings = np.empty(len(rows), np.float32), [block.embeddings for block in blocks]
    for first in range(0, len(rows), _PAIRS):  # memory and caches hold few pairs
        part = slice(first, first + _PAIRS)
        partners = query_embeddings[0] if len(query_embeddings) == 1 else query_embeddings[queries[part]]
        scores[part] = cosine_scores(_take(embeddings, rows[part]), partners)
    best = _best_of_each(queries, scores, k)
    ids, scores = _take([block.ids for block in blocks], rows[best]), scores[best]
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


def _take(parts: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Return the rows at places (C,) of arrays as if they were one."""
    if len(parts) == 1:
        return parts[0][places]
    taken, start = np.empty((len(places), *parts[0].shape[1:]), parts[0].dtype), 0
    for part in parts:
        here = np.flatnonzero((places >= start) & (places < start + len(part)))
        taken[here] = part[places[here] - start]
        start += len(part)
    return taken


def is_among(ids: np.ndarray, sorted_ids: np.ndarray) -> np.ndarray:
    """Return a mask (N,) of the `ids` (N,) that are in `sorted_ids`, which is in ascending order."""
    if not len(sorted_ids):
        return np.zeros(len(ids), bool)
    return sorted_ids[np.searchsorted(sorted_ids, ids).clip(max=len(sorted_ids) - 1)] == ids


__all__ = ["Block", "RankedIds", "is_among", "search_blockwise", "search_exactly"]
