"""Score embeddings, and draw the synthetic queries that measure the recall of an ANN index."""

import numkong
import numpy as np


def cosine_scores(embeddings: np.ndarray, query_embeddings: np.ndarray) -> np.ndarray:
    """Return the cosines (N,) float32 of embeddings (N, D) with one query embedding (D,), or with one each (N, D).

    Each score is computed in float64 and independently of the other rows: equal embeddings get equal scores.
    """
    rows = to_float32(embeddings)
    queries = np.broadcast_to(np.asarray(query_embeddings, np.float32), rows.shape)
    return (_dot(rows, queries) / np.sqrt(_dot(rows, rows) * _dot(queries, queries))).astype(np.float32)


def to_float32(vectors: np.ndarray) -> np.ndarray:
    """Convert an array of any shape. NumPy takes ten times as long to convert float16."""
    return np.asarray(numkong.astype(vectors, "float32"))


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the products (N,) float64 of the rows of two arrays (N, D) float32."""
    return np.asarray(numkong.dot(first, second)) if len(first) else np.empty(0)


def synthetic_queries(embeddings: np.ndarray, gap: float = 2.0) -> np.ndarray:
    """Make query embeddings (Q, D) float32, normalised, that are as hard to search for as sentences.

    Sentences are far from videos: even the correct video has a small cosine with its sentence, and all other videos
    are close behind. A stored embedding as the query would be found too easily. So each query is the sum of two
    centred stored embeddings, normalised, plus a vector of length `gap` in the direction in which the stored
    embeddings differ least.

    Args:
        embeddings (`np.ndarray` of shape `(2 * Q, D)`): stored embeddings in random order.
        gap (`float`): length of the added vector.
    """
    centred = embeddings.astype(np.float32)
    centred -= centred.mean(axis=0)
    count = len(centred) // 2
    sums = centred[:count] + centred[count : 2 * count]
    least_variance = np.linalg.svd(centred)[2][-1]  # (D,), of length 1
    return _normalise(_normalise(sums) + gap * least_variance)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    # Equal embeddings are zero once centred: a zero vector stays zero.
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)


__all__ = ["cosine_scores", "synthetic_queries", "to_float32"]
