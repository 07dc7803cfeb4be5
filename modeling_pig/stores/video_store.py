"""What an index asks of the database behind it: the columns of its rows, and the few operations of a store."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np


if TYPE_CHECKING:
    import pyarrow as pa

    from .conditions import Condition


FOUND = ["key", "path", "start", "end", "duration"]  # what a search tells of a row: each column takes time to read


class VideoStore(Protocol):
    """A database of video embeddings. Rows go in and out as Arrow tables with the columns of [`row_schema`].

    A row's `key` is unique. Everything raises `OSError`, in one line, where the database fails: the place cannot be
    read or written, the disk is full, the server is down.

    metadata (`dict[str, Any]`): the fields of `IndexInfo`, as they were given when the store was made, and `storage`.
    is_new (`bool`): whether this object made it.
    search_method (`dict[str, Any]`): how it searches now: `{"method": "exact", ...}`, or the ANN index's parameters.
    """

    metadata: dict[str, Any]
    is_new: bool

    @property
    def search_method(self) -> dict[str, Any]: ...

    def count(self) -> int:
        """The number of rows."""

    def upsert(self, rows: "pa.Table") -> None:
        """Writes rows, in the place of all rows that have one of their paths: again, where a write is interrupted."""

    def delete(self, paths: Sequence[str]) -> int:
        """Removes all rows that have one of these paths; tells how many."""

    def rows(self, paths: Sequence[str]) -> "pa.Table":
        """All rows that have one of these paths, in any order."""

    def scan(self, columns: Sequence[str], batch_size: int) -> Iterator["pa.RecordBatch"]:
        """These columns of all rows, in batches of at most `batch_size`."""

    def search(
        self, vectors: np.ndarray, k: int, where: "Condition | None"
    ) -> tuple[list[np.ndarray], list["pa.Table"]]:
        """For each of `vectors` (Q, D) float32, normalised, 1 or more: scores (at most k) and rows with the columns
        `FOUND`, best first; equal scores of those found in order of key. Scores are cosines with the stored vectors,
        whatever found them."""

    def optimize(self) -> None:
        """Merges what many writes left behind, and makes or refreshes the ANN index where the size calls for it."""

    def drop(self) -> None:
        """Removes the store, if this object made it."""


def row_schema(width: int, storage: str) -> "pa.Schema":
    """The columns of a row: key, path, name, start, end, duration, size, modified, content_hash, embedding (D)."""
    import pyarrow as pa

    vector = pa.list_(pa.float16() if storage == "float16" else pa.float32(), width)
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("duration", pa.float64()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),
            pa.field("content_hash", pa.string()),
            pa.field("embedding", vector, nullable=False),
        ]
    )


def embeddings_of(rows: "pa.Table | pa.RecordBatch") -> np.ndarray:
    """The column `embedding` as an array (N, D), without a copy where it lies in one piece."""
    column = rows["embedding"]
    pieces = column.chunks if hasattr(column, "chunks") else [column]
    width = column.type.list_size
    arrays = [piece.flatten().to_numpy(zero_copy_only=True).reshape(-1, width) for piece in pieces]
    if not arrays:
        return np.empty((0, width), column.type.value_type.to_pandas_dtype())
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Scores (N,) float32 of vectors (N, D) with a query (D,): equal vectors get equal scores, wherever they stand."""
    rows, vector = vectors.astype(np.float64), query.astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows)) * np.linalg.norm(vector)
    return (np.einsum("ij,j->i", rows, vector) / lengths).astype(np.float32)


def synthetic_queries(vectors: np.ndarray, gap: float = 2.0) -> np.ndarray:
    """Queries (Q, D) float32, normalised, to measure recall with, from stored vectors (2 Q, D) in random order: what
    two of them have beyond the mean, added, and `gap` times as long a part in the direction in which vectors differ
    least. Sentences are not where videos are: even the true one has a small cosine with them, and those of all others
    are close behind, which is what makes it hard to find. A stored vector itself would be found too easily."""
    centred = vectors.astype(np.float32)
    centred -= centred.mean(axis=0)
    count = len(centred) // 2
    queries = centred[:count] + centred[count : 2 * count]
    apart = np.linalg.svd(centred)[2][-1]  # (D,), of length 1
    return _normalise(_normalise(queries) + gap * apart)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    """To length 1, but for what has none: equal vectors have nothing beyond their mean."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


__all__ = ["FOUND", "VideoStore", "cosines", "embeddings_of", "row_schema", "synthetic_queries"]
