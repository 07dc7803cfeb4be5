"""How a LanceDB table is searched: exactly, its vectors in memory, while that is fast; by an ANN index beyond."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from .conditions import Condition, to_sql
from .exact_search import Block, search_exactly, search_in_parts, where_in
from .video_store import FOUND, embeddings_of, synthetic_queries


if TYPE_CHECKING:
    import pyarrow as pa


# One core, width 512: exact search takes 12 ms a query at 150,000 rows (`examples/benchmark.py search --sizes 150000`)
# and grows with them; a million take 16 ms by the ANN index.
EXACT_UP_TO = 150_000

# The ANN index: cells of vectors, each vector kept as four bits a number (RaBitQ) for a first pass, of which the best
# `_REFINE_FACTOR` times k are scored again by what the table holds of them. With one bit, at a million and for queries
# as far from them as sentences are, it takes 60 times k to find 98 % of what four bits find with 5; and reading these
# takes longer than the first pass.
_ROWS_A_CELL = 4096
_NUM_BITS = 4
_REFINE_FACTOR = 5
_CANDIDATES = 100_000  # whose vectors are held at a time
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
    errors: makes a context in which LanceDB's errors become `OSError`. Faults of the computation stay what they are.
    check: raises `ValueError` where the metadata of the table's schema are those of another index.
    """

    def __init__(
        self,
        database: Any,
        table_name: str,
        errors: Callable[[], AbstractContextManager[None]],
        check: Callable[[Mapping[bytes, bytes] | None], None],
    ):
        self._database = database
        self._table_name = table_name
        self._errors = errors
        self._check = check
        self._lock = threading.Lock()
        self._snapshot: tuple[Any, dict[int, Block] | None] | None = None

    def search(
        self, newest: Any, vectors: np.ndarray, k: int, where: Condition | None
    ) -> tuple[list[np.ndarray], list["pa.Table"]]:
        """See [`VideoStore.search`]. `newest` is the same table, which follows what is written."""
        condition = None if where is None else to_sql(where)
        with self._errors():
            table, blocks = self._at(newest)
            parameters = ann_parameters(table) if blocks is None else None
            # Exactly where a condition leaves few.
            if parameters and (condition is None or table.count_rows(condition) > EXACT_UP_TO):
                return _search_index(table, vectors, k, condition, parameters)
            allowed = None if blocks is None or condition is None else _row_ids(table, condition)
        if blocks is None:
            best = search_in_parts(self._scan(table, condition), vectors, k)
        else:
            best = search_exactly(list(blocks.values()), vectors, k, allowed)
        with self._errors():
            return _with_rows(table, best, k)

    def open_newest(self) -> Any:
        """The table, which stays at the version that is the newest now."""
        return self._database.open_table(self._table_name)

    def _scan(self, table: Any, condition: str | None) -> Iterator[Block]:
        with self._errors():
            yield from _scan(table, condition)

    def _at(self, newest: Any) -> tuple[Any, dict[int, Block] | None]:
        """The table at the newest version, and its vectors by fragment, unless there are too many."""
        with self._lock:
            version, metadata, snapshot = newest.version, newest.schema.metadata, self._snapshot
            self._check(metadata)
            if snapshot is not None and snapshot[0].schema.metadata != metadata:
                snapshot = None  # it was deleted and made anew, and numbers versions and fragments as before
            if snapshot is None or snapshot[0].version != version:
                held = (snapshot and snapshot[1]) or {}
                table = self.open_newest()
                snapshot = table, _load(table, held) if table.count_rows() <= EXACT_UP_TO else None
                self._snapshot = snapshot
            return snapshot


def _load(table: Any, held: dict[int, Block]) -> dict[int, Block]:
    """The table's vectors by fragment, of which those are read that are not held yet.

    Without stable row ids, which LanceDB does not make by itself, a row's id is its address, the number of its
    fragment and its place in there: a row that changes gets a new one, and none is given twice in a table's life.
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
    rows = table.take_row_ids(ids.tolist()).select(FOUND).with_row_id().to_arrow()
    rows = rows.take(np.argsort(rows["_rowid"].to_numpy())).drop_columns("_rowid")
    keys = rows["key"].to_numpy()
    scores, found = [], []
    for own_ids, own_scores in best:
        places = np.searchsorted(ids, own_ids)
        order = np.lexsort((keys[places], -own_scores))[:k]
        scores.append(own_scores[order])
        found.append(rows.take(places[order]))
    return scores, found


def _search_index(
    table: Any, vectors: np.ndarray, k: int, condition: str | None, parameters: dict[str, Any]
) -> tuple[list[np.ndarray], list["pa.Table"]]:
    """By the ANN index, which scores rows that it does not know yet by their own vectors."""
    best = []
    at_once = max(_CANDIDATES // _num_candidates(k, parameters), 1)
    for start in range(0, len(vectors), at_once):
        part = vectors[start : start + at_once]
        candidates = [_candidates(table, vector, k, condition, parameters) for vector in part]
        ids = np.unique(np.concatenate(candidates))
        # LanceDB would do this itself (`refine_factor`), and read whole rows one by one: 10 ms a query at a million.
        embeddings = _vectors_of(table, ids)
        for own_ids, vector in zip(candidates, part, strict=True):
            block = Block(own_ids, embeddings[np.searchsorted(ids, own_ids)])
            best += search_exactly([block], vector[None], k)
    return _with_rows(table, best, k)


def _num_candidates(k: int, parameters: dict[str, Any]) -> int:
    """Of fewer answers than recall was measured at, no fewer candidates: the first of one is that of many."""
    return parameters["refine_factor"] * max(k, _AT)


def _candidates(
    table: Any, vector: np.ndarray, k: int, condition: str | None, parameters: dict[str, Any]
) -> np.ndarray:
    """Ids of the rows among which the k best are looked for."""
    wanted, cells = _num_candidates(k, parameters), parameters["nprobes"]

    def ask(most_cells: int) -> np.ndarray:  # 0: all that it takes
        query = table.search(vector, vector_column_name=_COLUMN).distance_type("cosine").limit(wanted)
        query = query.minimum_nprobes(cells).maximum_nprobes(most_cells).select(["_distance"]).with_row_id(True)
        return (query if condition is None else query.where(condition, prefilter=True)).to_arrow()["_rowid"].to_numpy()

    if condition is None and len(found := ask(cells)) == wanted:
        return found
    return ask(0)


def _vectors_of(table: Any, ids: np.ndarray) -> np.ndarray:
    """Vectors (N, D) of rows, in ascending order of their ids."""
    rows = table.take_row_ids(ids.tolist()).select([_COLUMN]).with_row_id().to_arrow()
    return embeddings_of(rows)[np.argsort(rows["_rowid"].to_numpy())]


def ann_parameters(table: Any) -> dict[str, Any] | None:
    """How the table's ANN index is searched, and what share of the true answers that finds; `None` without one."""
    parameters = (table.schema.field(_COLUMN).metadata or {}).get(_METADATA_KEY.encode())
    return json.loads(parameters) if parameters else None


def refresh_index(table: Any, open_newest: Callable[[], Any]) -> None:
    """Makes the table's ANN index if the size calls for one, or makes it anew if the table has outgrown it. How it is
    searched, and the share of the true answers that this was measured to find, are kept with the column.

    open_newest: opens the table so that it stays at that version: others may write while recall is measured.
    """
    count, known = table.count_rows(), ann_parameters(table)
    is_current = known is not None and known.get("num_bits") == _NUM_BITS and count < _RETRAIN_AT * known["rows"]
    if count <= EXACT_UP_TO or is_current:
        return  # `optimize` of LanceDB has put new rows into their cells
    from lancedb.index import IvfRq

    cells = count // _ROWS_A_CELL
    # Ten rounds over 64 rows a cell, not LanceDB's 50 over 256: 16 s, not 57, for 316 cells at 100,000 rows.
    table.create_index(_COLUMN, config=IvfRq("cosine", cells, num_bits=_NUM_BITS, max_iterations=10, sample_rate=64))
    shape = {"rows": count, "num_partitions": cells, "num_bits": _NUM_BITS}
    parameters = {"method": "IVF_RQ", **shape, **_measure(open_newest(), cells)}
    table.update_field_metadata({"path": _COLUMN, "metadata": {_METADATA_KEY: json.dumps(parameters)}})


def _measure(table: Any, cells: int) -> dict[str, Any]:
    """How many cells to look into, and what that finds: recall against exact search."""
    queries = synthetic_queries(_draw_vectors(table, 2 * _QUERIES))
    best = search_in_parts(_scan(table), queries, _AT)
    for share in _SHARES:
        parameters = {"nprobes": max(int(share * cells), 1), "refine_factor": _REFINE_FACTOR}
        # What is among the candidates is among the answers: their own vectors decide. Of several that score the same
        # as the last one, any will do.
        found = [_candidates(table, query, _AT, None, parameters) for query in queries]
        hits = [min(np.isin(ids, some).sum(), _AT) for (ids, _), some in zip(best, found, strict=True)]
        recall = round(float(np.mean(hits)) / _AT, 4)
        if recall >= _ENOUGH:
            break
    return {**parameters, f"recall@{_AT}": recall, "queries": len(queries)}


def _draw_vectors(table: Any, count: int) -> np.ndarray:
    """Vectors (at most `count`, D) of rows drawn at random, in random order."""
    ids, rng = _row_ids(table), np.random.default_rng(0)
    drawn = rng.choice(ids, min(count, len(ids)), replace=False)
    return rng.permutation(_vectors_of(table, np.sort(drawn)))


def _scan(table: Any, condition: str | None = None) -> Iterator[Block]:
    """The rows that meet a condition, by default all, some at a time."""
    query = table.search().select([_COLUMN]).with_row_id(True)
    for batch in (query if condition is None else query.where(condition)).to_batches(8192):
        yield Block(batch["_rowid"].to_numpy(), embeddings_of(batch))


__all__ = ["EXACT_UP_TO", "LanceSearch", "ann_parameters", "refresh_index"]
