"""Count the values of the owner's columns that have few different ones, to narrow a search by them."""

from collections.abc import Sequence
from dataclasses import dataclass

from .columns import BOOL, ID, TEXT, TEXTS
from .conditions import Comparison, Condition, Has, IsNull, Not
from .index import VideoIndex


MAX_VALUES = 20  # different values of a column
# Counting reads a column of all entries: Milvus Lite takes a second for 14,500 rows, LanceDB for a million.
MAX_ENTRIES = 200_000


@dataclass(frozen=True)
class Facet:
    """A column, and its values with the number of files that have each, the most frequent first."""

    column: str
    kind: str
    counts: dict[str | bool, int]

    def condition(self, value: str | bool) -> Condition:
        """Return the condition that an entry has a value of this column."""
        if self.kind == TEXTS:
            assert isinstance(value, str)
            return Has(self.column, value)
        return Comparison(self.column, "=", value)


def find_facets(indexes: Sequence[VideoIndex]) -> list[Facet]:
    """Find the columns by whose values a search can be narrowed.

    These are the columns of texts, truth values and lists of texts that all indexes have, with at most `MAX_VALUES`
    different values, of which two files or more share one. Indexes of more than `MAX_ENTRIES` entries have none.

    Raises:
        OSError: an index cannot be read.
    """
    by_index = [index.columns for index in indexes]
    shared = [
        name
        for name, kind in by_index[0].items()
        if name != ID and all(columns.get(name) == kind for columns in by_index)
    ]
    kinds = {name: by_index[0][name] for name in shared if by_index[0][name] in (TEXT, BOOL, TEXTS)}
    if not kinds or sum(map(len, indexes)) > MAX_ENTRIES:
        return []
    facets = [Facet(name, kind, _count_files(indexes, name, kind)) for name, kind in kinds.items()]
    return [facet for facet in facets if max(facet.counts.values(), default=0) > 1]


def _count_files(indexes: Sequence[VideoIndex], column: str, kind: str) -> dict[str | bool, int]:
    """Return the number of files by value, the largest first; an empty dictionary if there are too many values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found: list[pa.Table] = []  # files and values, each pair once
    values: set[str | bool] = set()
    for index in indexes:
        for batch in index.scan(["path", column], Not(IsNull(column))):
            paths, held = batch["path"], batch[column]
            if kind == TEXTS:
                paths, held = paths.take(pc.list_parent_indices(held)), pc.list_flatten(held)
            found.append(pa.table({"path": paths, "value": held}).group_by(["path", "value"]).aggregate([]))
            values.update(pc.unique(found[-1]["value"]).to_pylist())
            if len(values) > MAX_VALUES:
                return {}
    if not found:
        return {}
    pairs = pa.concat_tables(found).group_by(["path", "value"]).aggregate([])  # a file may be in several batches
    counts = pairs.group_by("value").aggregate([("path", "count")]).to_pylist()
    ranked = sorted(counts, key=lambda row: (-row["path_count"], str(row["value"]).casefold()))
    return {row["value"]: row["path_count"] for row in ranked}


__all__ = ["MAX_VALUES", "Facet", "find_facets"]
