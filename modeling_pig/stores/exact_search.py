"""Search embeddings in memory exactly: find the k rows with the highest cosines, faster than float32 rows are read.

Stores hold float16. A first pass scores all rows in int8, a quarter of the bytes of float32, and keeps every row that
its rounding error could hide among the k best; these candidates are scored again in float64. If there are few rows,
NumPy makes the first pass in float32; if torch is not imported, also for more, because importing it would take longer.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .vectors import cosine_scores


if TYPE_CHECKING:
    import torch

_MAX_FLOAT32_ROWS = 8_000  # up to so many rows, a pass in int8 takes more time than one in float32
_MAX_NUMPY_ROWS = 20_000  # up to so many rows, NumPy takes less time than importing torch
# Stored lengths may differ from 1 by 1e-3, see `VideoIndex.upsert`; rounding an embedding to float16 adds to that.
_LENGTH_ERROR = 1e-3 + 2**-11
# The scores of all rows are held for so many queries (38 MB for 150,000 rows). So many rows are multiplied at a time,
# and so many are converted to int8: 0.5 MB of float32 with 512 dimensions, which a processor's cache holds.
_QUERY_BATCH, _ROW_BATCH, _CONVERTED_ROWS = 64, 4096, 256
_PAIRS = 512  # of a query and a row that are scored at a time: 4 MB in float64


class _Int8Embeddings(NamedTuple):
    """Rows (N, D), approximately `centre + steps * values`, but for L dimensions that stay in float32.

    These have the largest ranges: in int8, most of the error of a score would come from them.

    Args:
        values (`torch.Tensor` of shape `(N, D)`): int8; 0 in the dimensions `large`.
        centre, steps (`torch.Tensor` of shape `(D,)`): float32; the centre is 0 in the dimensions `large`.
        large (`torch.Tensor` of shape `(L,)`): numbers of the dimensions that stay in float32.
        large_values (`torch.Tensor` of shape `(N, L + 1)`): the rows in these dimensions, float32, and a 1, by which
            the product with the centre is added.
        max_length (`float`): largest length of a row of `values`.
        max_error (`float`): largest distance of a row from its approximation, plus that of its length from 1.
    """

    values: "torch.Tensor"
    centre: "torch.Tensor"
    steps: "torch.Tensor"
    large: "torch.Tensor"
    large_values: "torch.Tensor"
    max_length: float
    max_error: float


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
        """Embeddings in float32 with length 1, which take twice the memory."""
        rows = self.embeddings.astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    @cached_property
    def int8_embeddings(self) -> _Int8Embeddings:
        """Embeddings in int8, which take half the memory."""
        import torch

        parts = torch.from_numpy(self.embeddings).split(_CONVERTED_ROWS)
        lowest = torch.stack([part.float().amin(dim=0) for part in parts]).amin(dim=0)  # (D,)
        highest = torch.stack([part.float().amax(dim=0) for part in parts]).amax(dim=0)
        large = (highest - lowest).topk(len(lowest) // 32).indices
        highest[large] = lowest[large] = 0
        centre, steps = (lowest + highest) / 2, ((highest - lowest) / 2 / _max_int8()).clamp(min=1e-9)
        values, large_values = torch.empty(self.embeddings.shape, dtype=torch.int8), []
        max_length, max_error = 0.0, 0.0
        for part, out in zip(parts, values.split(_CONVERTED_ROWS), strict=True):
            rows = part.float()
            length_errors = (rows.norm(dim=1) - 1).abs()
            large_values.append(torch.cat([rows[:, large], torch.ones(len(rows), 1)], dim=1))
            rows[:, large] = 0
            scaled = rows.sub_(centre).div_(steps)
            rounded = scaled.round()
            out.copy_(rounded)
            max_length = max(max_length, rounded.norm(dim=1).max().item())
            max_error = max(max_error, (length_errors + scaled.sub_(rounded).mul_(steps).norm(dim=1)).max().item())
        return _Int8Embeddings(values, centre, steps, large, torch.cat(large_values), max_length, max_error)


@cache
def _max_int8() -> int:
    """Return the largest int8 value whose products are exact on this processor.

    Processors without VNNI add two products in 16 bits, which saturate, after adding 128 to one of the factors.
    """
    import torch

    largest = torch.full((64, 512), 127, dtype=torch.int8)
    products = [torch._int_mm(largest[:queries], largest.t()) for queries in (1, 64)]
    return (
        127 if all((product == 127 * 127 * 512).all() for product in products) else 79
    )  # 2 * 79 * (79 + 128) < 2**15


class RankedIds(NamedTuple):
    """Results of one query: row ids (N,) uint64 and their scores (N,) float32."""

    ids: np.ndarray
    scores: np.ndarray


_NO_RESULTS = RankedIds(np.empty(0, np.uint64), np.empty(0, np.float32))


def search_exactly(
    blocks: Sequence[Block], query_embeddings: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> list[RankedIds]:
    """Find the k best rows of each query, best first, and all rows with the same score as the last of them.

    The blocks keep a copy of their rows in int8 or float32 for later searches.

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
    num_rows = sum(len(block.ids) for block in blocks)
    use_int8 = num_rows > (_MAX_FLOAT32_ROWS if "torch" in sys.modules else _MAX_NUMPY_ROWS)
    return _search(blocks, query_embeddings, k, excluded, _score_in_int8 if use_int8 else _score_in_float32)


def _search(
    blocks: Sequence[Block],
    query_embeddings: np.ndarray,
    k: int,
    excluded: np.ndarray | None,
    score: Callable[[Sequence[Block], np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[RankedIds]:
    if not blocks:
        return [_NO_RESULTS] * len(query_embeddings)
    num_rows = sum(len(block.ids) for block in blocks)
    k = min(k, num_rows - (0 if excluded is None else int(excluded.sum())))
    results = []
    for first in range(0, len(query_embeddings), _QUERY_BATCH):
        batch = query_embeddings[first : first + _QUERY_BATCH]
        scores, max_errors = score(blocks, batch)
        if excluded is not None:
            scores[:, excluded] = -np.inf
        # Rounding can swap two rows only if their scores differ by at most twice the error.
        thresholds = _kth_best(scores, k, excluded is None) - 2 * max_errors
        candidates = scores >= thresholds[:, None]
        results += _rank_candidates(blocks, batch, candidates, k, refine=score is _score_in_int8)
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
        found = _search([block], query_embeddings, k, None, _score_in_float32)
        for number, (block_ids, block_scores) in enumerate(found):
            ids = np.append(best[number].ids, block_ids)
            scores = np.append(best[number].scores, block_scores)
            if len(scores) > k:
                is_best = scores >= np.partition(scores, len(scores) - k)[-k]
                ids, scores = ids[is_best], scores[is_best]
            best[number] = RankedIds(ids, scores)
    return best


def _score_in_int8(blocks: Sequence[Block], query_embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (Q, N) float32 and, per query, the largest error (Q,) that they can have."""
    import torch

    queries, largest = torch.from_numpy(query_embeddings), _max_int8()
    scores = torch.empty(len(queries), sum(len(block.ids) for block in blocks))
    max_errors, first = torch.zeros(len(queries)), 0
    for block in blocks:
        rows = block.int8_embeddings
        weights = queries * rows.steps  # (Q, D): the queries in units of `rows.values`
        scales = (weights.abs().amax(dim=1, keepdim=True) / largest).clamp(min=1e-30)  # (Q, 1)
        coarse = (weights / scales).round()
        rest = weights - coarse * scales
        fine, fine_scales = None, scales / (2 * largest)
        if len(queries) > 1:
            # A second int8 vector leaves one candidate in seven. For a single query, the product takes longer than
            # the candidates.
            fine = (rest / fine_scales).round()
            rest -= fine * fine_scales
            fine = fine.to(torch.int8)
        max_errors = torch.maximum(max_errors, rest.norm(dim=1) * rows.max_length + rows.max_error)
        coarse = coarse.to(torch.int8)
        large_queries = torch.cat([queries[:, rows.large], (queries @ rows.centre)[:, None]], dim=1)
        for part, large_part in zip(rows.values.split(_ROW_BATCH), rows.large_values.split(_ROW_BATCH), strict=True):
            dots = torch._int_mm(coarse, part.t()) * scales
            if fine is not None:
                dots.addcmul_(torch._int_mm(fine, part.t()), fine_scales)
            torch.addmm(dots, large_queries, large_part.t(), out=scores[:, first : first + len(part)])
            first += len(part)
    return scores.numpy(), max_errors.numpy() + _float32_error(query_embeddings)


def _score_in_float32(blocks: Sequence[Block], query_embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what [`_score_in_int8`] returns, without torch."""
    rows = [block.float32_embeddings for block in blocks]
    scores = np.concatenate([query_embeddings @ part.T for part in rows], axis=1)
    return scores, np.full(len(scores), _float32_error(query_embeddings))


def _float32_error(query_embeddings: np.ndarray) -> float:
    """Return the largest rounding error of a product of normalised float32 vectors, and of normalising them."""
    return (query_embeddings.shape[-1] + 8) * 2**-23


def _rank_candidates(
    blocks: Sequence[Block], query_embeddings: np.ndarray, candidates: np.ndarray, k: int, refine: bool
) -> list[RankedIds]:
    """Rank the candidates (Q, N) of each query, at least k, among the N rows: the k best and those equal to the last.

    If `refine`, there are many: scores in float32 leave out most of them, before the others are scored in float64.
    """
    queries, rows = np.divmod(np.flatnonzero(candidates), candidates.shape[1])  # (C,): C pairs of a query and a row
    if refine:
        scores = _score_pairs(_float32_scores, blocks, query_embeddings, queries, rows)
        best = _best_of_each(queries, scores, k, 2 * (_LENGTH_ERROR + _float32_error(query_embeddings)))
        queries, rows = queries[best], rows[best]
    scores = _score_pairs(cosine_scores, blocks, query_embeddings, queries, rows)
    best = _best_of_each(queries, scores, k)
    ids, scores = _take(blocks, rows[best])[0], scores[best]
    ends = np.searchsorted(queries[best], range(1, len(query_embeddings)))
    return list(map(RankedIds, np.split(ids, ends), np.split(scores, ends)))


def _best_of_each(queries: np.ndarray, scores: np.ndarray, k: int, margin: float = 0.0) -> np.ndarray:
    """Return positions of the scores that are at most `margin` below the k-th best of their query, best first.

    Args:
        queries (`np.ndarray` of shape `(C,)`): number of the query of each score, ascending, each k times or more.
        scores (`np.ndarray` of shape `(C,)`): the scores.
        k (`int`): scores per query.
        margin (`float`): distance from the k-th best.
    """
    order = np.lexsort((-scores, queries))
    kth = scores[order[np.searchsorted(queries, range(queries[-1] + 1)) + k - 1]]  # (Q,)
    return order[scores[order] >= kth[queries] - margin]


def _score_pairs(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    blocks: Sequence[Block],
    query_embeddings: np.ndarray,
    queries: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """Score pairs of a query and a row, given as positions (C,), a few at a time: memory and caches hold few pairs."""
    scores = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _PAIRS):
        part = slice(first, first + _PAIRS)
        partners = query_embeddings[0] if len(query_embeddings) == 1 else query_embeddings[queries[part]]
        scores[part] = score(_take(blocks, rows[part])[1], partners)
    return scores


def _float32_scores(embeddings: np.ndarray, query_embeddings: np.ndarray) -> np.ndarray:
    """Return the products that [`cosine_scores`] divides by the lengths, in float32."""
    import torch

    rows = torch.from_numpy(embeddings).float().numpy()  # faster than NumPy converts them
    return rows @ query_embeddings if query_embeddings.ndim == 1 else np.einsum("ij,ij->i", rows, query_embeddings)


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
