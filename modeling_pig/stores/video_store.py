"""Define what an index requires of the database behind it: the operations of a store."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from .records import IndexInfo


if TYPE_CHECKING:
    import pyarrow as pa

    from .conditions import Condition


RESULT_COLUMNS = ["path", "start", "end", "duration"]  # and the owner's: each column takes time to read


class IndexVersion(NamedTuple):
    """A version of an index: each write makes one.

    Attributes:
        number (`int`): number of the version, ascending.
        time (`datetime`): time of the write, with time zone.
        num_entries (`int`): number of entries.
        names (`list[str]`): names under which the version is kept.
    """

    number: int
    time: datetime
    num_entries: int
    names: list[str]


class RankedRows(NamedTuple):
    """Results of a query, best first: scores (N,) float32, N rows with `RESULT_COLUMNS` and the owner's columns."""

    scores: np.ndarray
    rows: "pa.Table"


def rank_rows(scores: np.ndarray, rows: "pa.Table", queries: np.ndarray | None = None) -> np.ndarray:
    """Return the order of rows by score (N,), best first; equal scores are in order of path and start.

    With the numbers of their `queries` (N,), the rows of each query come together.
    """
    starts = np.nan_to_num(rows["start"].to_numpy().astype(np.float64))  # whole files have none
    keys = (starts, rows["path"].to_numpy(), -scores)
    return np.lexsort(keys if queries is None else (*keys, queries))


class TextMatches(NamedTuple):
    """Rows that hold words of a query, best first: sums of BM25 scores (N,) float32, and the rows with cosines."""

    relevance: np.ndarray
    ranked: RankedRows


class VideoStore(Protocol):
    """Database of video embeddings. Rows are Arrow tables with the columns of [`row_schema`]; keys are unique.

    A store is opened as `Store(uri, info)`. With an `IndexInfo` it is created if it does not exist; with `None` it
    must exist. All methods raise `OSError` with a one-line message if the database fails: the folder cannot be read or
    written, the disk is full, the server is down.

    Attributes:
        info (`IndexInfo`): the info that the store was created with.
        is_new (`bool`): whether this object created the store.
    """

    info: IndexInfo
    is_new: bool

    @property
    def search_method(self) -> dict[str, Any]:
        """Current search method: `{"method": "exact"}`, or name, parameters and measured recall of the ANN index."""

    @property
    def columns(self) -> dict[str, str]:
        """The owner's columns, name -> type, as they are now."""

    @property
    def data_version(self) -> Any:
        """Value that changes with every write of any process; `None` if the store cannot tell."""

    def add_columns(self, columns: Mapping[str, str]) -> None:
        """Add columns of the owner, without values. Columns that exist with the same type stay."""

    def update(self, rows: "pa.Table") -> None:
        """Replace values of the owner's columns: rows with `key` and these. Rows with unknown keys are ignored."""

    def count(self) -> int:
        """Return the number of rows."""

    def upsert(self, rows: "pa.Table") -> None:
        """Write rows and remove all other rows of the same files. An interrupted call can be repeated."""

    def delete(self, paths: Sequence[str]) -> int:
        """Remove all rows of the files at `paths`. Return the number of removed rows."""

    def rows(self, paths: Sequence[str]) -> "pa.Table":
        """Return all rows of the files at `paths`, in any order."""

    def scan(
        self, columns: Sequence[str], batch_size: int, where: "Condition | None" = None
    ) -> Iterator["pa.RecordBatch"]:
        """Yield `columns` of all rows that meet a condition, in batches of at most `batch_size` rows."""

    def warm(self) -> None:
        """Read into memory what searches read, so that the first searches are as fast as later ones."""

    def draw_embeddings(self, count: int) -> np.ndarray:
        """Return the embeddings (at most `count`, D) of rows drawn at random, in random order."""

    def search(
        self,
        query_embeddings: np.ndarray,
        k: int,
        where: "Condition | None",
        with_context: bool = False,
    ) -> list[RankedRows]:
        """Return the results of each query: at most `k` rows, those with equal scores in order of
        path and start.

        Scores are cosines with the stored embeddings, also if an ANN index found the rows. The results for a smaller
        `k` are the first of those for a larger one.

        Args:
            query_embeddings (`np.ndarray` of shape `(Q, D)`): float32, normalised, Q at least 1.
            k (`int`): results per query, at least 1.
            where (`Condition`, *optional*): condition that all results meet.
            with_context (`bool`): rows also have their context tokens.
        """

    def search_text(
        self,
        text: str,
        columns: Sequence[str],
        query_embedding: np.ndarray,
        k: int,
        where: "Condition | None",
    ) -> TextMatches:
        """Return the rows whose `columns` hold words of a text: at most `k` rows by BM25.

        Args:
            text (`str`): words; it has no query syntax.
            columns (`Sequence[str]`): the owner's columns of type "text" or "texts", at least one.
            query_embedding (`np.ndarray` of shape `(D,)`): float32, normalised; rows are scored by their cosines.
            k (`int`): number of rows at most, at least 1.
            where (`Condition`, *optional*): condition that all rows meet.

        Raises:
            ValueError: the database has no full-text search.
        """

    def optimize(self, ann_index: bool = True) -> None:
        """Compact the stored files; with `ann_index`, build or refresh the ANN index if there are enough rows."""

    def versions(self) -> list[IndexVersion]:
        """Return the versions that can be restored, oldest first. Raises `ValueError` if the store has none."""

    def keep_version(self, name: str) -> None:
        """Keep the newest version under a name. Raises `ValueError` if the name is not valid, or taken."""

    def release_version(self, name: str) -> None:
        """Remove a name. Raises `ValueError` if there is none."""

    def restore(self, version: int | str) -> None:
        """Make a version, by number or name, the newest again. Raises `ValueError` if there is none."""

    def drop(self) -> None:
        """Delete the store if this object created it and it is empty."""


__all__ = ["RESULT_COLUMNS", "IndexVersion", "RankedRows", "TextMatches", "VideoStore", "rank_rows"]
