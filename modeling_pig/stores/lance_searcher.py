"""Search a LanceDB table: exactly in memory while that is fast enough, with an ANN index for larger tables."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .columns import columns_of
from .conditions import Condition, to_sql
from .exact_search import Block, RankedIds, is_among, search_blockwise, search_exactly
from .lance_location import Location
from .lance_text import find_text
from .levels import search_in_levels
from .records import CONTEXT_COLUMN, read_embeddings
from .vectors import cosine_scores, synthetic_queries
from .video_store import RESULT_COLUMNS, RankedRows, TextMatches, rank_rows


if TYPE_CHECKING:
    import pyarrow as pa

# On one core with 512 dimensions, exact search of 150,000 rows takes 8 ms per query (`examples/benchmark.py search
# --sizes 150000`), and the time grows with the rows. The ANN index takes 9 ms for a million rows.
EXACT_UP_TO = 150_000

# The ANN index groups embeddings in partitions and keeps each in four bits per dimension (RaBitQ) for a first pass.
# The best `_REFINE_FACTOR` * k rows of that pass are scored again with the embeddings in the table. With a million
# rows, a factor of 3 finds 99.9 % of the results that a factor of 5 finds, and reads fewer embeddings, each of which
# takes 0.03 ms. With one bit per dimension a factor of 60 finds 98 %.
_ROWS_PER_PARTITION = 4096
_NUM_BITS = 4
_REFINE_FACTOR = 3
_REBUILD_FACTOR = 2  # rebuild the ANN index when the table has so many times the rows that it was built for
# The share of partitions that a search probes is measured: the first of these shares that reaches the recall.
# Sentences are harder to search for than the synthetic queries: 0.99 for these is about 0.985 for sentences.
_NUM_QUERIES, _RECALL_AT = 300, 10
_PARTITION_SHARES = (0.03, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
_MIN_RECALL = 0.99

_COLUMN = "embedding"
_METADATA_KEY = "pig:ann"  # of the column
_ANN_INDEX = f"{_COLUMN}_idx"


class _HeldRows(NamedTuple):
    """All rows of a table in memory, in ascending order of their ids.

    Args:
        blocks (`dict[int, Block]`): embeddings by fragment.
        ids (`np.ndarray`): row ids (N,).
        results (`pa.Table`): `RESULT_COLUMNS` and the owner's columns of the N rows.
    """

    blocks: dict[int, Block]
    ids: np.ndarray
    results: "pa.Table"


class _Snapshot(NamedTuple):
    """A version of the table, the state of its files before it was opened, and its rows if they fit in memory.

    Args:
        files (`tuple`, *optional*): see [`Location.state`].
        table (`lancedb.Table`): the table at that version.
        schema (`pa.Schema`): its schema, which LanceDB takes 1 ms to return.
        held (`_HeldRows`, *optional*): its rows.
    """

    files: tuple | None
    table: Any
    schema: "pa.Schema"
    held: _HeldRows | None


class LanceSearcher:
    """Search the newest version of a table from any number of threads.

    Args:
        location (`Location`): where the table lies.
        table_name (`str`): name of the table.
        errors (`Callable`): returns a context that converts LanceDB's errors to `OSError`. Errors of the computation
            are raised outside of it.
        check (`Callable`): raises `ValueError` if the metadata of the table's schema belong to another index.
    """

    def __init__(
        self,
        location: Location,
        table_name: str,
        errors: Callable[[], AbstractContextManager[None]],
        check: Callable[[Mapping[bytes, bytes] | None], None],
    ):
        self._location = location
        self._database = location.connect()
        self._table_name = table_name
        self._errors = errors
        self._check = check
        self._lock = threading.Lock()
        self._snapshot: _Snapshot | None = None

    def warm(self, newest: Any) -> None:
        """Read all embeddings, or the ANN index, as [`VideoStore.warm`] does."""
        with self._errors():
            snapshot = self._take_snapshot(newest)
            if snapshot.held is None and ann_parameters(snapshot.schema):
                snapshot.table.prewarm_index(_ANN_INDEX)

    def search(
        self, newest: Any, query_embeddings: np.ndarray, k: int, where: Condition | None, with_context: bool
    ) -> list[RankedRows]:
        """Search as [`VideoStore.search`] does. `newest` is the same table, always at its newest version."""
        condition = None if where is None else to_sql(where)
        with self._errors():
            _, table, schema, held = self._take_snapshot(newest)
            parameters = ann_parameters(schema) if held is None else None
            # If few rows meet the condition, they are searched exactly.
            if parameters and (condition is None or table.count_rows(condition) > EXACT_UP_TO):
                columns = _result_columns(schema, with_context)
                search = partial(_search_ann, table, condition=condition, parameters=parameters, columns=columns)
                return search_in_levels(search, query_embeddings, k)
            allowed = None if held is None or condition is None else _row_ids(table, condition)
        if held is None:
            results = search_blockwise(self._scan(table, condition), query_embeddings, k)
        else:
            results = search_exactly(list(held.blocks.values()), query_embeddings, k, allowed)
            if not with_context:  # LanceDB takes 3 ms to read the results
                return _rank_rows(held.ids, held.results, results, k)
        with self._errors():
            return _read_rows(table, results, k, _result_columns(schema, with_context))

    def search_text(
        self,
        newest: Any,
        text: str,
        text_columns: Sequence[str],
        query_embedding: np.ndarray,
        k: int,
        where: Condition | None,
    ) -> TextMatches:
        """Search as [`VideoStore.search_text`] does. `newest` is the same table, always at its newest version."""
        condition = None if where is None else to_sql(where)
        with self._errors():
            _, table, schema, _ = self._take_snapshot(newest)
            columns = [_COLUMN, *_result_columns(schema)]
            found = find_text(table, text, text_columns, k, condition, columns)
        relevance = found["_score"].to_numpy()
        order = rank_rows(relevance, found)
        scores = cosine_scores(read_embeddings(found), query_embedding)
        return TextMatches(relevance[order], RankedRows(scores[order], found.take(order).select(columns[1:])))

    def draw_embeddings(self, newest: Any, count: int) -> np.ndarray:
        """Draw embeddings as [`VideoStore.draw_embeddings`] does, from memory if the rows are held there."""
        with self._errors():
            _, table, schema, held = self._take_snapshot(newest)
            if held is None:
                return _draw_embeddings(table, count)
        rng = np.random.default_rng(0)
        drawn = rng.choice(len(held.ids), min(count, len(held.ids)), replace=False)
        blocks, ends = list(held.blocks.values()), np.cumsum([len(block.ids) for block in held.blocks.values()])
        of_block = np.searchsorted(ends, drawn, side="right")
        rows = [blocks[b].embeddings[row - ends[b]] for b, row in zip(of_block.tolist(), drawn.tolist(), strict=True)]
        return np.array(rows, np.float16).reshape(len(rows), schema.field(_COLUMN).type.list_size)

    def open_newest(self) -> Any:
        """Open the table at the version that is the newest now; it stays at that version."""
        return self._database.open_table(self._table_name)

    def _scan(self, table: Any, condition: str | None) -> Iterator[Block]:
        with self._errors():
            yield from _scan(table, condition)

    def _take_snapshot(self, newest: Any) -> _Snapshot:
        with self._lock:
            files, snapshot = self._location.state(self._table_name), self._snapshot
            if snapshot is not None and files is not None and snapshot.files == files:
                return snapshot  # LanceDB takes 1 ms to return the newest version and its metadata
            version, metadata = newest.version, newest.schema.metadata
            self._check(metadata)
            if snapshot is not None and snapshot.schema.metadata != metadata:
                snapshot = None  # a table that was deleted and rebuilt reuses numbers of versions and fragments
            if snapshot is None or snapshot.table.version != version:
                table, known = self.open_newest(), snapshot and snapshot.held
                held = _load_rows(table, known) if table.count_rows() <= EXACT_UP_TO else None
                snapshot = _Snapshot(files, table, table.schema, held)
            self._snapshot = snapshot._replace(files=files)
            return self._snapshot


def _load_rows(table: Any, known: _HeldRows | None) -> _HeldRows:
    """Return all rows of the table; only fragments that are not in `known` are read.

    By default LanceDB has no stable row ids: the id of a row is its address, the number of its fragment and its
    offset in that fragment. A changed row gets a new id, and a table never reuses ids.
    """
    import pyarrow as pa

    columns = _result_columns(table.schema)
    if known is not None and known.results.column_names != columns:
        known = None  # the owner has added a column
    ids, embedding_dim = _row_ids(table), table.schema.field(_COLUMN).type.list_size
    fragments, starts, counts = np.unique(ids >> 32, return_index=True, return_counts=True)
    blocks, missing = {}, {}
    results, result_ids = [], []
    for fragment, start, count in zip(fragments.tolist(), starts, counts, strict=True):
        fragment_ids, block = ids[start : start + count], known and known.blocks.get(fragment)
        if block is None or not is_among(fragment_ids, block.ids).all():  # rows come back if a version is restored
            missing[fragment] = Block(fragment_ids, np.empty((len(fragment_ids), embedding_dim), np.float16))
        elif len(block.ids) == len(fragment_ids):
            blocks[fragment] = block
        else:  # rows were deleted
            blocks[fragment] = Block(fragment_ids, block.embeddings[is_among(block.ids, fragment_ids)])
    if known is not None:
        stay = is_among(known.ids, ids) & ~np.isin(known.ids >> 32, list(missing))
        results.append(known.results.filter(stay))
        result_ids.append(known.ids[stay])
    if missing:
        # Nearly all new fragments have the highest numbers. Compaction reserves its numbers before it commits, and
        # others may commit higher numbers meanwhile.
        query = table.search().where(f"_rowid >= {min(missing) << 32}")
        for batch in query.select([_COLUMN, *columns]).with_row_id(True).to_batches(8192):
            is_new = np.isin(batch["_rowid"].to_numpy() >> 32, list(missing))
            if not is_new.all():
                batch = batch.filter(pa.array(is_new))
            row_ids, embeddings = batch["_rowid"].to_numpy(), read_embeddings(batch)
            results.append(pa.Table.from_batches([batch.drop_columns([_COLUMN])]).select(columns))
            result_ids.append(row_ids)
            for fragment in missing.keys() & np.unique(row_ids >> 32).tolist():
                block, rows = missing[fragment], np.flatnonzero(row_ids >> 32 == fragment)
                block.embeddings[np.searchsorted(block.ids, row_ids[rows])] = embeddings[rows]
    if not results:
        return _HeldRows(blocks, ids, table.schema.empty_table().select(columns))
    rows, row_ids = pa.concat_tables(results).combine_chunks(), np.concatenate(result_ids)
    if (row_ids[1:] < row_ids[:-1]).any():
        rows = rows.take(np.argsort(row_ids))
    return _HeldRows(blocks | missing, ids, rows)


def _result_columns(schema: "pa.Schema", with_context: bool = False) -> list[str]:
    return [*RESULT_COLUMNS, *columns_of(schema), *([CONTEXT_COLUMN] if with_context else [])]


def _row_ids(table: Any, condition: str | None = None) -> np.ndarray:
    """Return the ascending ids of all rows, or of those that meet a condition."""
    query = table.search().select(["duration"]).with_row_id(True)  # without a column, LanceDB would read all columns
    ids = (query if condition is None else query.where(condition)).to_arrow()["_rowid"].to_numpy()
    return np.sort(ids)


def _read_rows(table: Any, results: list[RankedIds], k: int, columns: Sequence[str]) -> list[RankedRows]:
    """Read the rows of ranked ids: at most k per query, those with equal scores in order of path and start."""
    ids = np.unique(np.concatenate([result.ids for result in results]))
    rows = _read(table.take_row_ids(ids.tolist()).select(list(columns)).with_row_id(), len(ids))
    rows = rows.take(np.argsort(rows["_rowid"].to_numpy())).drop_columns("_rowid")
    return _rank_rows(ids, rows, results, k)


def _rank_rows(ids: np.ndarray, rows: "pa.Table", results: list[RankedIds], k: int) -> list[RankedRows]:
    """Return the rows of ranked ids as [`_read_rows`] does, from rows (N,) that hold them, in order of `ids` (N,)."""
    positions = np.searchsorted(ids, np.concatenate([result.ids for result in results]))
    scores = np.concatenate([result.scores for result in results])
    counts = [len(result.ids) for result in results]
    queries = np.repeat(range(len(counts)), counts)
    order = np.arange(len(scores))
    if not ((scores[1:] < scores[:-1]) | (queries[1:] > queries[:-1])).all():  # not ranked yet, or equal scores
        order = rank_rows(scores, rows.select(["path", "start"]).take(positions), queries)
    # Of each query, the first k rows in this order.
    starts, kept = np.cumsum([0, *counts[:-1]]), np.minimum(counts, k)
    chosen = order[np.concatenate([np.arange(a, a + count) for a, count in zip(starts, kept, strict=True)])]
    found, scores, ranked, first = rows.take(positions[chosen]), scores[chosen], [], 0
    for count in kept.tolist():
        ranked.append(RankedRows(scores[first : first + count], found.slice(first, count)))
        first += count
    return ranked


def _search_ann(
    table: Any,
    query_embeddings: np.ndarray,
    k: int,
    *,
    condition: str | None,
    parameters: dict[str, Any],
    columns: Sequence[str],
) -> list[RankedRows]:
    """Search with the ANN index. LanceDB scores rows that are not in the index yet by their stored embeddings."""
    results = []
    for query in query_embeddings:
        # LanceDB's own `refine_factor` reads whole rows one by one, which takes 10 ms per query at a million rows.
        found = _find_candidates(table, query, k, condition, parameters)
        results += search_blockwise([Block(found["_rowid"].to_numpy(), read_embeddings(found))], query[None], k)
    return _read_rows(table, results, k, columns)


def _num_candidates(k: int, parameters: dict[str, Any]) -> int:
    # At least as many as recall was measured with: a small k must not make the first result worse.
    return parameters["refine_factor"] * max(k, _RECALL_AT)


def _find_candidates(
    table: Any, query: np.ndarray, k: int, condition: str | None, parameters: dict[str, Any]
) -> "pa.Table":
    """Return `_rowid` and embedding of the rows that the ANN index finds, from which the k best are chosen."""
    limit, num_probes = _num_candidates(k, parameters), parameters["nprobes"]

    def find(max_probes: int) -> "pa.Table":  # 0: as many as it takes to reach the limit
        search = table.search(query, vector_column_name=_COLUMN).distance_type("cosine").limit(limit)
        search = search.minimum_nprobes(num_probes).maximum_nprobes(max_probes)
        search = search.select(["_distance", _COLUMN]).with_row_id(True)
        if condition is not None:
            search = search.where(condition, prefilter=True)
        return _read(search, limit)

    if condition is None and len(found := find(num_probes)) == limit:
        return found
    return find(0)


def _read(query: Any, count: int) -> "pa.Table":
    """Run a query that has at most `count` results: once they are read, do not wait to hear that no more follow."""
    import pyarrow as pa

    batches: list[pa.RecordBatch] = []
    reader = query.to_batches()
    for batch in reader:
        batches.append(batch)
        if sum(map(len, batches)) == count:
            break
    return pa.Table.from_batches(batches, reader.schema)


def _read_embeddings_of(table: Any, ids: np.ndarray) -> np.ndarray:
    """Return the embeddings (N, D) of ascending row ids (N,)."""
    rows = table.take_row_ids(ids.tolist()).select([_COLUMN]).with_row_id().to_arrow()
    return read_embeddings(rows)[np.argsort(rows["_rowid"].to_numpy())]


def ann_parameters(schema: "pa.Schema") -> dict[str, Any] | None:
    """Return the parameters and the measured recall of a table's ANN index, or `None` if it has none."""
    parameters = (schema.field(_COLUMN).metadata or {}).get(_METADATA_KEY.encode())
    return json.loads(parameters) if parameters else None


def refresh_ann_index(table: Any, open_newest: Callable[[], Any]) -> None:
    """Build the table's ANN index if there are enough rows; rebuild it if the table has outgrown it.

    Its parameters and measured recall are stored in the metadata of the column `embedding`.

    Args:
        table (`lancedb.Table`): table to index.
        open_newest (`Callable`): opens the table at a fixed version: others may write while recall is measured.
    """
    count, known = table.count_rows(), ann_parameters(table.schema)
    is_current = known is not None and known.get("num_bits") == _NUM_BITS and count < _REBUILD_FACTOR * known["rows"]
    if count <= EXACT_UP_TO or is_current:
        return  # LanceDB's `optimize` has added new rows to their partitions
    from lancedb.index import IvfRq

    num_partitions = count // _ROWS_PER_PARTITION
    # 10 iterations over 64 rows per partition instead of LanceDB's 50 over 256: for 100,000 rows in 316 partitions,
    # 16 s instead of 57 s.
    config = IvfRq("cosine", num_partitions, num_bits=_NUM_BITS, max_iterations=10, sample_rate=64)
    table.create_index(_COLUMN, config=config, name=_ANN_INDEX)
    shape = {"rows": count, "num_partitions": num_partitions, "num_bits": _NUM_BITS}
    parameters = {"method": "IVF_RQ", **shape, **_measure_recall(open_newest(), num_partitions)}
    table.update_field_metadata({"path": _COLUMN, "metadata": {_METADATA_KEY: json.dumps(parameters)}})


def adopt_ann_index(table: Any, open_newest: Callable[[], Any]) -> None:
    """Measure an ANN index that another program has built, such as lance-ray, so that searches use it.

    It takes the place of the one that [`refresh_ann_index`] would build, until the table has outgrown it. It is
    expected to have a partition per `_ROWS_PER_PARTITION` rows.

    Args:
        table (`lancedb.Table`): table whose column `embedding` may have an ANN index without measured recall.
        open_newest (`Callable`): opens the table at a fixed version: others may write while recall is measured.
    """
    found = [index for index in table.list_indices() if index.columns == [_COLUMN]]
    count = table.count_rows()
    if not found or count <= EXACT_UP_TO or ann_parameters(table.schema) is not None:
        return
    num_partitions = count // _ROWS_PER_PARTITION
    shape = {"rows": count, "num_partitions": num_partitions, "num_bits": _NUM_BITS}
    method = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", found[0].index_type).upper()  # IvfRq -> IVF_RQ
    parameters = {"method": method, **shape, **_measure_recall(open_newest(), num_partitions)}
    table.update_field_metadata({"path": _COLUMN, "metadata": {_METADATA_KEY: json.dumps(parameters)}})


def _measure_recall(table: Any, num_partitions: int) -> dict[str, Any]:
    """Choose the number of partitions to probe, and return it with the recall against exact search."""
    queries = synthetic_queries(_draw_embeddings(table, 2 * _NUM_QUERIES))
    exact = search_blockwise(_scan(table), queries, _RECALL_AT)
    for share in _PARTITION_SHARES:
        parameters = {"nprobes": max(int(share * num_partitions), 1), "refine_factor": _REFINE_FACTOR}
        # A row among the candidates is among the results, because candidates are scored exactly. Of several rows with
        # the same score as the last result, any counts.
        tables = [_find_candidates(table, query, _RECALL_AT, None, parameters) for query in queries]
        found = [candidates["_rowid"].to_numpy() for candidates in tables]
        hits = [np.isin(best.ids, candidates).sum() for best, candidates in zip(exact, found, strict=True)]
        recall = round(float(np.minimum(hits, _RECALL_AT).mean()) / _RECALL_AT, 4)
        if recall >= _MIN_RECALL:
            break
    return {**parameters, f"recall@{_RECALL_AT}": recall, "queries": len(queries)}


def _draw_embeddings(table: Any, count: int) -> np.ndarray:
    """Return the embeddings (at most `count`, D) of rows drawn at random, in random order."""
    ids, rng = _row_ids(table), np.random.default_rng(0)
    drawn = rng.choice(ids, min(count, len(ids)), replace=False)
    return rng.permutation(_read_embeddings_of(table, np.sort(drawn)))


def _scan(table: Any, condition: str | None = None) -> Iterator[Block]:
    """Yield all rows that meet a condition, by default all rows of the table, in blocks."""
    query = table.search().select([_COLUMN]).with_row_id(True)
    for batch in (query if condition is None else query.where(condition)).to_batches(8192):
        yield Block(batch["_rowid"].to_numpy(), read_embeddings(batch))


__all__ = ["EXACT_UP_TO", "LanceSearcher", "adopt_ann_index", "ann_parameters", "refresh_ann_index"]
