"""How a LanceDB table is searched: exactly, its vectors in memory, while that is fast; by an ANN index beyond."""

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from .exact import Block, search_exactly, where_in
from .store import cosines, embeddings_of
from .where import Condition, to_sql


if TYPE_CHECKING:
    import pyarrow as pa


# One core, width 512, CPU time: exact search takes 7.6 ms at 100,000 rows, loaded in 0.5 s (3.6 s at a million)
# and 1.5 to 2.3 times the vectors' bytes. The size below is reckoned from these, for 20 ms a query; not measured.
EXACT_UP_TO = 250_000

# The ANN index: cells of vectors, each vector kept as one bit a number (RaBitQ) for a first pass, of which the best
# `_REFINE_FACTOR` times k are scored again by what the table holds of them.
_ROWS_A_CELL = 4096
_REFINE_FACTOR = 30
_RETRAIN_AT = 2  # times the rows that the cells were made for
# How many cells a search looks into is measured, with so many queries, at so many answers each.
_QUERIES, _AT = 100, 10
_SHARES = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # of the cells, the first that finds enough
_ENOUGH = 0.985

_COLUMN = "embedding"
_METADATA_KEY = "pig:ann"  # of the column


class LanceSearch:
    """Searches a table from any number of threads, each time as it then is.

    database (`lancedb.DBConnection`): without `read_consistency_interval`, so that a table stays at the version at
        which it was opened.
    """

    def __init__(self, database: Any, table_name: str):
        self._database = database
        self._table_name = table_name
        self._lock = threading.Lock()
        self._snapshot: tuple[Any, dict[int, Block] | None] | None = None

    def search(
        self, version: int, vectors: np.ndarray, k: int, where: Condition | None
    ) -> tuple[list[np.ndarray], list["pa.Table"]]:
        """See [`VideoStore.search`]. `version` is the table's newest."""
        table, blocks = self._at(version)
        condition = None if where is None else to_sql(where)
        if blocks is None:
            return _search_on_disk(table, vectors, k, condition)
        allowed = None if condition is None else _row_ids(table, condition)
        return _with_rows(table, search_exactly(list(blocks.values()), vectors, k, allowed), k)

    def _at(self, version: int) -> tuple[Any, dict[int, Block] | None]:
        """The table at this version or a later one, and its vectors by fragment, unless there are too many."""
        with self._lock:
            if self._snapshot is None or self._snapshot[0].version < version:
                held = (self._snapshot and self._snapshot[1]) or {}
                table = self._database.open_table(self._table_name)
                self._snapshot = table, _load(table, held) if table.count_rows() <= EXACT_UP_TO else None
            return self._snapshot


def _load(table: Any, held: dict[int, Block]) -> dict[int, Block]:
    """The table's vectors by fragment, of which those are read that are not held yet.

    Without stable row ids, which LanceDB does not make by itself, a row's id is its address, the number of its
    fragment and its place in there: a row that changes gets a new one, and none is given twice.
    """
    ids, width = _row_ids(table), table.schema.field(_COLUMN).type.list_size
    numbers, starts, counts = np.unique(ids >> 32, return_index=True, return_counts=True)
    blocks, missing = {}, {}
    for number, start, count in zip(numbers.tolist(), starts, counts, strict=True):
        own, block = ids[start : start + count], held.get(number)
        if block is None:
            missing[number] = Block(own, np.empty((len(own), width), np.float16))
        elif len(block.ids) == len(own):
            blocks[number] = block
        else:  # some were deleted
            blocks[number] = Block(own, block.vectors[where_in(block.ids, own)])
    if missing:
        newer = table.search().where(f"_rowid >= {min(missing) << 32}")  # new fragments have the highest numbers
        for batch in newer.select([_COLUMN]).with_row_id(True).to_batches(8192):
            row_ids, vectors = batch["_rowid"].to_numpy(), embeddings_of(batch)
            for number in missing.keys() & np.unique(row_ids >> 32).tolist():
                block, rows = missing[number], np.flatnonzero(row_ids >> 32 == number)
                block.vectors[np.searchsorted(block.ids, row_ids[rows])] = vectors[rows]
    return blocks | missing


def _row_ids(table: Any, condition: str | None = None) -> np.ndarray:
    """Ids in ascending order of all rows, or of those that meet a condition."""
    query = table.search().select(["duration"]).with_row_id(True)  # without a column, all would be read
    ids = (query if condition is None else query.where(condition)).to_arrow()["_rowid"].to_numpy()
    return np.sort(ids)


def _with_rows(
    table: Any, best: list[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[list[np.ndarray], list["pa.Table"]]:
    """Scores and rows from ids and scores; equal scores in order of key, at most k."""
    ids = np.unique(np.concatenate([ids for ids, _ in best]))
    columns = [name for name in table.schema.names if name != _COLUMN]
    rows = table.take_row_ids(ids.tolist()).select(columns).with_row_id().to_arrow()
    rows = rows.take(np.argsort(rows["_rowid"].to_numpy())).drop_columns("_rowid")
    keys = rows["key"].to_numpy()
    scores, found = [], []
    for own_ids, own_scores in best:
        places = np.searchsorted(ids, own_ids)
        order = np.lexsort((keys[places], -own_scores))[:k]
        scores.append(own_scores[order])
        found.append(rows.take(places[order]))
    return scores, found


def _search_on_disk(
    table: Any, vectors: np.ndarray, k: int, condition: str | None
) -> tuple[list[np.ndarray], list["pa.Table"]]:
    """By the ANN index, and exactly for rows that it does not know yet; all exactly where a condition leaves few."""
    parameters = ann_parameters(table)
    if parameters is None or (condition is not None and table.count_rows(condition) <= EXACT_UP_TO):
        return _with_rows(table, _exactly_on_disk(table, vectors, k, condition), k)
    scores, found = [], []
    for vector in vectors:
        query = _query_index(table, vector, k, parameters)
        rows = (query if condition is None else query.where(condition, prefilter=True)).to_arrow()
        own_scores = cosines(embeddings_of(rows), vector)
        order = np.lexsort((rows["key"].to_numpy(), -own_scores))
        scores.append(own_scores[order])
        found.append(rows.take(order).drop_columns([_COLUMN, "_distance"]))
    return scores, found


def _query_index(table: Any, vector: np.ndarray, k: int, parameters: dict[str, Any]) -> Any:
    query = table.search(vector, vector_column_name=_COLUMN).distance_type("cosine").limit(k)
    return query.nprobes(parameters["nprobes"]).refine_factor(parameters["refine_factor"])


def ann_parameters(table: Any) -> dict[str, Any] | None:
    """How the table's ANN index is searched, and what share of the true answers that finds; `None` without one."""
    parameters = (table.schema.field(_COLUMN).metadata or {}).get(_METADATA_KEY.encode())
    return json.loads(parameters) if parameters else None


def refresh_index(table: Any) -> dict[str, Any]:
    """Makes the table's ANN index if the size calls for one, or makes it anew if the table has outgrown it.

    Returns how the table is now searched, with the share of the true answers that the index was measured to find.
    """
    count = table.count_rows()
    if count <= EXACT_UP_TO:
        return {"method": "exact"}
    known = ann_parameters(table)
    if known is not None and count < _RETRAIN_AT * known["rows"]:
        return known  # `optimize` of LanceDB has put new rows into their cells
    from lancedb.index import IvfRq

    cells = count // _ROWS_A_CELL
    # Ten rounds over 64 rows a cell, not LanceDB's 50 over 256: 16 s, not 57, for 316 cells at 100,000 rows.
    table.create_index(_COLUMN, config=IvfRq("cosine", num_partitions=cells, max_iterations=10, sample_rate=64))
    parameters = {"method": "IVF_RQ", "rows": count, "num_partitions": cells, **_measure(table, cells)}
    table.update_field_metadata({"path": _COLUMN, "metadata": {_METADATA_KEY: json.dumps(parameters)}})
    return parameters


def _measure(table: Any, cells: int) -> dict[str, Any]:
    """How many cells to look into, and what that finds: recall against exact search."""
    queries = _made_up_queries(table)
    truth = [ids for ids, _ in _exactly_on_disk(table, queries, _AT)]
    for share in _SHARES:
        parameters = {"nprobes": max(int(share * cells), 1), "refine_factor": _REFINE_FACTOR}
        found = [_query_index(table, query, _AT, parameters).with_row_id(True).to_arrow() for query in queries]
        hits = [np.isin(rows["_rowid"].to_numpy(), ids).sum() for rows, ids in zip(found, truth, strict=True)]
        recall = round(float(np.mean(hits)) / _AT, 4)
        if recall >= _ENOUGH:
            break
    return {**parameters, f"recall@{_AT}": recall, "queries": len(queries)}


def _made_up_queries(table: Any) -> np.ndarray:
    """What two stored vectors have beyond the mean of all, added: sentences are not where videos are, and a stored
    vector itself would be found too easily."""
    ids = _row_ids(table)
    some = np.random.default_rng(0).choice(ids, 2 * _QUERIES, replace=False)
    vectors = embeddings_of(table.take_row_ids(some.tolist()).select([_COLUMN]).to_arrow()).astype(np.float32)
    np.random.default_rng(1).shuffle(vectors)  # they come in the order of their ids
    vectors -= vectors.mean(0)
    queries = vectors[:_QUERIES] + vectors[_QUERIES:]
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def _exactly_on_disk(
    table: Any, queries: np.ndarray, k: int, condition: str | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each query ids and scores of the k best rows, in one pass over the table and little memory."""
    scan = table.search().select([_COLUMN]).with_row_id(True)
    scores, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.uint64)
    for batch in (scan if condition is None else scan.where(condition)).to_batches(8192):
        vectors = embeddings_of(batch).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = np.concatenate([scores, queries @ vectors.T], axis=1)
        ids = np.concatenate([ids, np.tile(batch["_rowid"].to_numpy(), (len(queries), 1))], axis=1)
        best = np.argsort(-scores, axis=1)[:, :k]
        scores, ids = np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)
    return list(zip(ids, scores, strict=True))


__all__ = ["EXACT_UP_TO", "LanceSearch", "ann_parameters", "refresh_index"]
