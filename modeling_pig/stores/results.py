"""Define what an index returns: entries with their embeddings, states of files, and the results of searches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from ..files import is_content_id
from .columns import ID
from .records import VideoEntry, own_columns
from .video_store import RankedRows


class EmbeddedEntry(NamedTuple):
    """An entry with its embedding (D,), and its context tokens (S, D) if the index stores them."""

    entry: VideoEntry
    embedding: np.ndarray
    context_embeds: np.ndarray | None = None


class EntryBatch(NamedTuple):
    """N entries with their embeddings (N, D) and, if the index stores them, their context tokens (N, S, D)."""

    entries: list[VideoEntry]
    embeddings: np.ndarray
    context_embeds: np.ndarray | None = None

    def embedded(self) -> Iterator[EmbeddedEntry]:
        """Yield the entries one by one."""
        contexts = repeat(None) if self.context_embeds is None else self.context_embeds
        return map(EmbeddedEntry, self.entries, self.embeddings, contexts)


class ContextResults(NamedTuple):
    """Results of one query, best first, with their context tokens (N, S, D)."""

    results: list["SearchResult"]
    context_embeds: np.ndarray


class TextResults(NamedTuple):
    """Results that hold words of a query, best first, with their relevance: the sum of the columns' BM25 scores."""

    results: list["SearchResult"]
    relevance: list[float]


class FileState(NamedTuple):
    """State of a video file when it was indexed, to detect changes.

    If the entries of the file disagree, because writing them was interrupted, all fields but `num_entries` are `None`.

    Attributes:
        size (`int`, *optional*): size in bytes.
        modified (`int`, *optional*): time of the last change, in ns since 1970.
        content_hash (`str`, *optional*): SHA-256 of the file in hexadecimal, or [`make_content_id`].
        num_entries (`int`): number of the file's entries in the index.
        id (`str`, *optional*): identifier of the video: the owner's, or one made from the content.
    """

    size: int | None
    modified: int | None
    content_hash: str | None
    num_entries: int
    id: str | None = None


class Moment(NamedTuple):
    """Seconds of a found segment that a sentence describes best, see `refine` of [`SearchOptions`].

    Attributes:
        start, end (`float`): seconds after the start of the file.
        best (`float`): middle of the best 2 s.
        score (`float`): cosine of the query embedding and the embedding of the best 2 s.
    """

    start: float
    end: float
    best: float
    score: float


@dataclass(frozen=True)
class SearchResult:
    """One result of a query.

    Args:
        rank (`int`): rank in the results of the query, from 1.
        score (`float`): cosine of the query embedding and the stored embedding.
        path (`str`): absolute path of the video file.
        duration (`float`, *optional*): duration of the file in seconds.
        start (`float`, *optional*): start of the segment in seconds; `None` for a whole file.
        end (`float`, *optional*): end of the segment in seconds; `None` for a whole file.
        metadata (`Mapping[str, Any]`): values of the owner's columns that are known; times in UTC.
        duplicates (`tuple[str, ...]`): paths of the other files that this result stands for, see `collapse_duplicates`
            of [`SearchOptions`].
        moment (`Moment`, *optional*): best seconds of the segment, if the search was asked for them.
    """

    rank: int
    score: float
    path: str
    duration: float | None
    start: float | None = None
    end: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    duplicates: tuple[str, ...] = ()
    moment: Moment | None = None

    @property
    def span(self) -> tuple[float | None, float | None]:
        """Start and end of the moment, else of the segment, in seconds; `(None, None)` for a whole file."""
        return (self.start, self.end) if self.moment is None else self.moment[:2]

    @property
    def id(self) -> str | None:
        """Identifier of the video: its owner's, or one made from the content, see [`make_content_id`]."""
        return self.metadata.get(ID)

    @property
    def shown_metadata(self) -> Mapping[str, Any]:
        """`metadata` without an `id` that was made from the content, which says nothing to a person."""
        is_made = is_content_id(self.id)
        return {name: value for name, value in self.metadata.items() if not (is_made and name == ID)}


def make_results(ranked: Sequence[RankedRows]) -> list[list[SearchResult]]:
    """Return the results of each query. The rows of all queries are converted together, which takes less time."""
    import pyarrow as pa

    rows = pa.concat_tables([found.rows for found in ranked])
    columns = [rows[name].to_pylist() for name in ("path", "duration", "start", "end")]
    if own := own_columns(rows):
        values = rows.select(own).to_pylist()
        columns.append([{name: value for name, value in row.items() if value is not None} for row in values])
    fields, results = zip(*columns, strict=True), []
    for scores, _ in ranked:
        results.append([SearchResult(rank, score, *next(fields)) for rank, score in enumerate(scores.tolist(), 1)])
    return results


__all__ = [
    "ContextResults",
    "EmbeddedEntry",
    "EntryBatch",
    "FileState",
    "Moment",
    "SearchResult",
    "TextResults",
    "make_results",
]
