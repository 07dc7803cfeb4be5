"""Store an index on a Milvus server: a collection, written and read by any number of processes at once."""

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ..extras import pip_install
from .columns import columns_of
from .conditions import Condition, In, milvus_string, to_milvus
from .levels import FIRST_LEVEL, search_in_levels
from .records import IndexInfo, read_embeddings, row_schema
from .vectors import cosine_scores, synthetic_queries
from .video_store import RESULT_COLUMNS, IndexVersion, RankedRows, TextMatches, rank_rows


if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_COLLECTION = "videos"
TOKEN_VARIABLE = "MILVUS_TOKEN"
# Milvus Lite, one core, 512 dimensions: with so many rows, exact search takes 87 ms per query and HNSW 16 ms.
EXACT_UP_TO = 20_000

# Properties of the collection. Each column of the owner has its own: writers that add columns at once keep them all.
_METADATA_KEY, _ANN_KEY, _COLUMN_PREFIX = "pig", "pig.ann", "pig.column."
_EARLIER_COLUMNS_KEY = "pig.columns"  # all columns of the owner in JSON
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMN = "embedding"
_HNSW = {"M": 16, "efConstruction": 200}
_EF = 256  # candidates per search
_RECALL_AT, _NUM_QUERIES = 10, 100  # recall is measured for so many results and queries

_CONNECT_TIMEOUT = 5.0  # seconds, as are the other timeouts
_CONNECT_ATTEMPTS = 2  # a server may be late if many processes connect at once
_REQUEST_TIMEOUT = 60.0
_GIVE_UP_AFTER = 120.0  # long enough for a restart of the server
_INDEX_TIMEOUT = 24 * 3600.0  # for building an ANN index and for loading a collection

_WRITE_BYTES = 8 * 2**20  # per request; the server accepts 64 MB
_READ_BYTES = 32 * 2**20
_MAX_ROWS = 16_384  # Milvus' limit of rows per request
_MAX_VALUES = 1000  # paths or keys per expression
_TEXT_LENGTH = 65_535  # bytes, Milvus' limit

_NOT_LOADED, _NO_INDEX, _RATE_LIMIT = 101, 700, 8  # Milvus' error codes


class MilvusStore:
    """[`VideoStore`] on a Milvus server, `http://host:19530/COLLECTION`.

    Milvus has no transactions. To replace a file, its new rows are written, which overwrites the rows with the same
    keys, and then its remaining old rows are removed; each step can be repeated. A request is sent again for two
    minutes if its connection is lost or it is not answered in time.

    The environment variable `MILVUS_TOKEN` holds the login (`USER:PASSWORD`, or an API key).
    """

    def __init__(self, uri: str, info: IndexInfo | None):
        if info is not None and info.num_context_tokens is not None:
            raise ValueError(f"{uri} is a Milvus server, which cannot store context tokens: use an index in a folder.")
        self._pymilvus = _import_pymilvus()
        self.uri = uri
        self._server, self._collection = _parse_uri(uri)
        self._client = self._connect()
        with self._one_line_errors("opened"):
            exists = self._client.has_collection(self._collection, timeout=_REQUEST_TIMEOUT)
            if not exists and info is None:
                raise FileNotFoundError(f"There is no index {uri}: create it with `pig index`.")
            self.is_new = info is not None and not exists and self._create_collection(info)
            description = self._request("describe_collection")
            # If the name is an alias, it may point to a collection of another model later: use the collection's name.
            self._collection, properties = description["collection_name"], description["properties"]
        if _METADATA_KEY not in properties:
            raise ValueError(f"{uri} is a Milvus collection that is not an index: choose another name.")
        self.info = IndexInfo.from_record(json.loads(properties[_METADATA_KEY]), f"The index {uri}")
        self._dtype = np.float16 if self.info.storage == "float16" else np.float32
        self._is_dynamic = bool(description.get("enable_dynamic_field"))
        self._columns = _read_columns(properties)
        with self._one_line_errors("opened"):
            self._make_searchable()

    @property
    def search_method(self) -> dict[str, Any]:
        with self._one_line_errors("read"):
            index_type = self._index_type()
            if index_type == "FLAT":
                return {"method": "exact"}
            measured = json.loads(self._request("describe_collection")["properties"].get(_ANN_KEY, "{}"))
        return {"method": index_type, **measured}

    @property
    def columns(self) -> dict[str, str]:
        with self._one_line_errors("read"):
            properties = self._request("describe_collection")["properties"]
        self._columns = _read_columns(properties)
        return dict(self._columns)

    @property
    def data_version(self) -> None:
        return None

    def add_columns(self, columns: Mapping[str, str]) -> None:
        if not self._is_dynamic:
            raise ValueError(
                f"The index {self.uri} was made by an earlier modeling-pig, without columns of the owner: build a new "
                "one, or export and import it."
            )
        properties = {_COLUMN_PREFIX + name: kind for name, kind in columns.items()}
        with self._one_line_errors("written"):
            self._request("alter_collection_properties", properties=properties)
        self._columns = self._columns | dict(columns)

    def update(self, rows: "pa.Table") -> None:
        values = {row["key"]: row for row in rows.to_pylist()}
        with self._one_line_errors("written"):
            held = list(self._select("key", list(values), self._schema.names))
            if held:
                table = self._to_table([{**row, **values[row["key"]]} for row in held], self._schema.names)
                for batch in _split_rows(table):
                    self._request("upsert", data=_to_records(batch))

    @property
    def _schema(self) -> "pa.Schema":
        return row_schema(self.info.embedding_dim, self.info.storage, columns=self._columns)

    def count(self) -> int:
        with self._one_line_errors("read"):
            return self._count()

    def upsert(self, rows: "pa.Table") -> None:
        new_keys = set(rows["key"].to_pylist())
        with self._one_line_errors("written"):
            for batch in _split_rows(rows):
                held = self._select("path", batch["path"].unique().to_pylist(), ["key"])
                old_keys = {row["key"] for row in held} - new_keys
                self._request("upsert", data=_to_records(batch))
                self._delete(sorted(old_keys))

    def delete(self, paths: Sequence[str]) -> int:
        with self._one_line_errors("written"):
            keys = [row["key"] for row in self._select("path", paths, ["key"])]
            self._delete(keys)
        return len(keys)

    def rows(self, paths: Sequence[str]) -> "pa.Table":
        with self._one_line_errors("read"):
            names = self._schema.names
            return self._to_table(list(self._select("path", paths, names)), names)

    def scan(
        self, columns: Sequence[str], batch_size: int, where: Condition | None = None
    ) -> Iterator["pa.RecordBatch"]:
        with self._one_line_errors("read"):
            for rows in self._pages(None if where is None else to_milvus(where), columns, batch_size):
                yield from self._to_table(rows, columns).to_batches()

    def warm(self) -> None:
        pass  # a server holds its collections in memory

    def draw_embeddings(self, count: int) -> np.ndarray:
        with self._one_line_errors("read"):
            return self._draw(count)

    def search(
        self,
        query_embeddings: np.ndarray,
        k: int,
        where: Condition | None,
        with_context: bool = False,
    ) -> list[RankedRows]:
        if k > _MAX_ROWS:
            raise ValueError(f"k is {k}: expected at most {_MAX_ROWS}, the limit of Milvus.")
        expression = "" if where is None else to_milvus(where)
        with self._one_line_errors("searched"):
            search = partial(self._search, expression=expression)
            if k <= FIRST_LEVEL or self._index_type() != "FLAT":
                return search_in_levels(search, query_embeddings, k)
            return search(query_embeddings, k)

    def search_text(
        self,
        text: str,
        columns: Sequence[str],
        query_embedding: np.ndarray,
        k: int,
        where: Condition | None,
    ) -> TextMatches:
        # Milvus' full-text search needs fields that were declared for it when the collection was created; the owner's
        # columns are dynamic fields.
        raise ValueError(
            f"The index {self.uri} is on a Milvus server, where words of columns are not searched: move it to a "
            "folder, with pig export and pig import."
        )

    def optimize(self, ann_index: bool = True) -> None:
        with self._one_line_errors("written"):
            self._request("flush")
            if ann_index and self._count() > EXACT_UP_TO and self._index_type() == "FLAT":
                self._build_ann_index()

    def versions(self) -> list[IndexVersion]:
        raise ValueError(
            f"{self.uri} is a Milvus collection, which has no versions: `pig export` writes a copy, `pig import` "
            "reads it."
        )

    def keep_version(self, name: str) -> None:
        self.versions()

    def release_version(self, name: str) -> None:
        self.versions()

    def restore(self, version: int | str) -> None:
        self.versions()

    def drop(self) -> None:
        if self.is_new and self.count() == 0:  # another process may have opened and filled it
            with self._one_line_errors("written"):
                self._request("drop_collection")

    # Requests

    def _connect(self) -> Any:
        for attempt in range(_CONNECT_ATTEMPTS):
            try:
                # Dedicated: a lost connection of another index on this server does not affect this index.
                return self._pymilvus.MilvusClient(
                    self._server, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=_CONNECT_TIMEOUT, dedicated=True
                )
            except Exception as error:
                if attempt + 1 == _CONNECT_ATTEMPTS:
                    seconds = _CONNECT_ATTEMPTS * _CONNECT_TIMEOUT
                    raise OSError(
                        f"The index {self.uri} cannot be opened: no Milvus server answers at {self._server} within "
                        f"{seconds:.0f} s ({_first_line(error)}). Start the server or correct the address; if the "
                        f"server needs a login, set {TOKEN_VARIABLE}"
                    ) from error

    def _request(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        """Send a request about the collection; repeat it after a transient error. Every request can be repeated."""
        timeout = timeout or _REQUEST_TIMEOUT
        pause, give_up = 0.1, time.monotonic() + _GIVE_UP_AFTER
        while True:
            try:
                return getattr(self._client, method)(self._collection, timeout=timeout, **arguments)
            except Exception as error:
                if not _is_transient(error) or time.monotonic() > give_up:
                    raise
                not_loaded = _error_code(error) == _NOT_LOADED
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
            if not_loaded:  # after a restart of Milvus Lite, or while another process builds the ANN index
                self._make_searchable()

    def _index_type(self) -> str:
        """Return the type of the index on the embeddings; "none" while another process replaces it."""
        return (self._request("describe_index", index_name=_COLUMN) or {}).get("index_type", "none")

    def _count(self) -> int:
        return self._request("query", output_fields=["count(*)"])[0]["count(*)"]

    def _select(self, field: str, values: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield `columns` of the rows whose `field` is one of `values`."""
        for start in range(0, len(values), _MAX_VALUES):
            condition = to_milvus(In(field, tuple(values[start : start + _MAX_VALUES])))
            for rows in self._pages(condition, columns, _MAX_ROWS):
                yield from rows

    def _pages(self, condition: str | None, columns: Sequence[str], size: int) -> Iterator[list[dict[str, Any]]]:
        """Yield `columns` of all rows that meet a condition, in order of key.

        pymilvus' query iterator does the same, but fails for keys with quotes or line breaks.
        """
        size = min(size, _MAX_ROWS)
        if _COLUMN in columns:
            size = min(size, max(_READ_BYTES // self._row_bytes(), 1))
        last_key = ""
        while True:
            expression = f"key > {milvus_string(last_key)}"
            rows = self._request(
                "query",
                filter=expression if condition is None else f"{expression} and ({condition})",
                output_fields=list({"key": None} | dict.fromkeys(columns)),
                limit=size,
                iterator="True",  # in order of key
                reduce_stop_for_best="True",  # a page may be shorter than the limit, but omits no row
            )
            if not rows:
                return
            last_key = max(row["key"] for row in rows)
            yield list(rows)

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _MAX_VALUES):
            self._request("delete", filter=to_milvus(In("key", tuple(keys[start : start + _MAX_VALUES]))))

    def _row_bytes(self) -> int:
        return 4 * self.info.embedding_dim + 1000  # path and name are rarely longer

    def _to_table(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> "pa.Table":
        import pyarrow as pa

        whole = self._schema
        schema = pa.schema([whole.field(name) for name in columns])
        arrays = {name: [row.get(name) for row in rows] for name in columns if name != _COLUMN}
        if _COLUMN in columns:
            values = np.concatenate([np.empty(0, self._dtype), *(_to_array(row[_COLUMN]) for row in rows)])
            values = pa.array(values.astype(self._dtype))
            arrays[_COLUMN] = pa.FixedSizeListArray.from_arrays(values, self.info.embedding_dim)
        return pa.table(arrays, schema=schema)

    # Creation and search

    def _create_collection(self, info: IndexInfo) -> bool:
        """Create the collection; return `False` if it exists, as another process may create it at the same time."""
        pymilvus = self._pymilvus
        for storage in ("float16", "float32"):  # Milvus Lite has no float16
            try:
                self._client.create_collection(
                    self._collection,
                    schema=_collection_schema(pymilvus, info.embedding_dim, storage),
                    properties={_METADATA_KEY: json.dumps(replace(info, storage=storage).to_record())},
                    consistency_level="Strong",  # reads see all earlier writes
                    timeout=_REQUEST_TIMEOUT,
                )
                return True
            except pymilvus.MilvusException as error:
                if self._client.has_collection(self._collection, timeout=_REQUEST_TIMEOUT):
                    return False
                if storage == "float32" or _is_transient(error):
                    raise
        raise AssertionError

    def _make_searchable(self) -> None:
        """Create the index on the embeddings if there is none, and load the collection."""
        if _COLUMN not in self._request("list_indexes"):
            index: dict[str, Any] = {"index_type": "FLAT"}
            if int(self._request("get_collection_stats")["row_count"]) > EXACT_UP_TO:
                index = {"index_type": "HNSW", "params": _HNSW}
            indexes = self._client.prepare_index_params()
            # COSINE and not IP, because lengths may differ slightly from 1.
            indexes.add_index(_COLUMN, index_name=_COLUMN, metric_type="COSINE", **index)
            if "path" not in self._request("list_indexes"):
                indexes.add_index("path", index_name="path", index_type="INVERTED")
            try:
                self._request("create_index", index_params=indexes, timeout=_INDEX_TIMEOUT)
            except self._pymilvus.MilvusException:
                if _COLUMN not in self._request("list_indexes"):  # otherwise another process has created it
                    raise
        self._request("load_collection", timeout=_INDEX_TIMEOUT)

    def _build_ann_index(self) -> None:
        """Replace exact search by HNSW. Milvus holds one index per column: searches wait until it is built."""
        queries = synthetic_queries(self._draw(2 * _NUM_QUERIES))
        exact = self._find_keys(queries)
        for remaining in range(5)[::-1]:
            self._request("release_collection")
            try:
                self._request("drop_index", index_name=_COLUMN)
                break
            except self._pymilvus.MilvusException:  # a search of another process has loaded the collection again
                if not remaining:
                    raise
        self._make_searchable()
        found = self._find_keys(queries)
        shares = [len(set(keys) & set(best)) / len(best) for keys, best in zip(found, exact, strict=True)]
        recall = round(float(np.mean(shares)), 4)
        measured = {**_HNSW, "ef": _EF, f"recall@{_RECALL_AT}": recall, "queries": len(queries)}
        self._request("alter_collection_properties", properties={_ANN_KEY: json.dumps(measured)})

    def _draw(self, count: int) -> np.ndarray:
        rng, total = np.random.default_rng(0), self._count()
        drawn = set(rng.choice(total, min(count, total), replace=False).tolist())
        rows = itertools.chain.from_iterable(self._pages(None, ["key"], _MAX_ROWS))
        keys = [row["key"] for position, row in enumerate(rows) if position in drawn]
        embeddings = [_to_array(row[_COLUMN]) for row in self._select("key", keys, [_COLUMN])]
        return rng.permutation(np.array(embeddings, self._dtype).reshape(-1, self.info.embedding_dim))

    def _find_keys(self, query_embeddings: np.ndarray) -> list[list[str]]:
        return [result.rows["key"].to_pylist() for result in self._search(query_embeddings, _RECALL_AT, "")]

    def _search(self, query_embeddings: np.ndarray, k: int, expression: str) -> list[RankedRows]:
        # More than k rows: rows may have the same score as the last result, or seem to by rounding.
        limit = min(k + 20, _MAX_ROWS)
        batch_size = max(_READ_BYTES // (limit * self._row_bytes()), 1)
        results = []
        for start in range(0, len(query_embeddings), batch_size):
            batch = query_embeddings[start : start + batch_size]
            for query, hits in zip(batch, self._find_hits(batch, limit, expression), strict=True):
                results.append(self._rank_hits(query, hits, k, limit, expression))
        return results

    def _rank_hits(
        self, query: np.ndarray, hits: list[dict[str, Any]], k: int, limit: int, expression: str
    ) -> RankedRows:
        """Return the k best hits, scored by their stored embeddings."""
        rounding = 1e-3 if self._dtype == np.float16 else 1e-5  # of the query that the server receives
        while True:
            rows = self._to_table(hits, ["key", *RESULT_COLUMNS, *self._columns, _COLUMN])
            scores = cosine_scores(read_embeddings(rows), query)
            order = rank_rows(scores, rows)
            is_complete = len(hits) < limit or scores[order[-1]] < scores[order[k - 1]] - rounding
            if is_complete or limit == _MAX_ROWS:
                order = order[:k]
                return RankedRows(scores[order], rows.take(order).drop_columns([_COLUMN]))
            limit = min(8 * limit, _MAX_ROWS)
            (hits,) = self._find_hits(query[None], limit, expression)

    def _find_hits(self, query_embeddings: np.ndarray, limit: int, expression: str) -> list[list[dict[str, Any]]]:
        """Return the rows that the server finds for each query."""
        found = self._request(
            "search",
            data=list(query_embeddings.astype(self._dtype)),
            anns_field=_COLUMN,
            filter=expression,
            limit=limit,
            output_fields=["key", *RESULT_COLUMNS, *self._columns, _COLUMN],
            search_params={"metric_type": "COSINE", "params": {"ef": max(_EF, limit)}},
        )
        return [[hit["entity"] for hit in hits] for hits in found]

    @contextmanager
    def _one_line_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not _is_milvus_error(error):
                raise
            message = f"The index {self.uri} cannot be {verb}: {_first_line(error)}"
            if _is_transient(error):
                message += f". Retried for {_GIVE_UP_AFTER:.0f} s: check the server, then run the same command again"
            raise OSError(message) from error


def _read_columns(properties: Mapping[str, str]) -> dict[str, str]:
    columns = json.loads(properties.get(_EARLIER_COLUMNS_KEY, "{}"))
    own = {name: kind for name, kind in sorted(properties.items()) if name.startswith(_COLUMN_PREFIX)}
    return columns | {name.removeprefix(_COLUMN_PREFIX): kind for name, kind in own.items()}


def _parse_uri(uri: str) -> tuple[str, str]:
    """Split a URI into the server's address and the name of the collection."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:  # URIs are printed, and the shell's history keeps them
        raise ValueError(
            f"The Milvus URI contains a login: remove it, and set {TOKEN_VARIABLE}=USER:PASSWORD in the environment."
        )
    name = parts.path.strip("/") or DEFAULT_COLLECTION
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name) or parts.query or parts.fragment or not parts.hostname:
        raise ValueError(
            f"{uri} is not a valid Milvus URI: expected http://HOST:19530/COLLECTION, with letters, digits and _ in "
            "COLLECTION."
        )
    return f"{parts.scheme}://{parts.netloc}", name


def _collection_schema(pymilvus: Any, embedding_dim: int, storage: str) -> Any:
    import pyarrow as pa

    types = {pa.string(): "VARCHAR", pa.float64(): "DOUBLE", pa.int64(): "INT64"}
    schema = pymilvus.MilvusClient.create_schema(enable_dynamic_field=True)  # for the owner's columns
    for field in row_schema(embedding_dim, storage):
        if field.name == _COLUMN:
            vector_type = "FLOAT16_VECTOR" if storage == "float16" else "FLOAT_VECTOR"
            schema.add_field(_COLUMN, pymilvus.DataType[vector_type], dim=embedding_dim)
        else:
            options = {"max_length": _TEXT_LENGTH} if field.type == pa.string() else {}
            data_type, is_key = pymilvus.DataType[types[field.type]], field.name == "key"
            schema.add_field(field.name, data_type, is_primary=is_key, nullable=field.nullable, **options)
    return schema


def _split_rows(rows: "pa.Table") -> Iterator["pa.Table"]:
    """Split rows into batches of at most `_WRITE_BYTES`; a file is only split if it is larger than one batch."""
    rows = rows.sort_by("path")
    paths = rows["path"].to_pylist()
    embedding_type = rows.schema.field(_COLUMN).type
    embedding_bytes = embedding_type.list_size * embedding_type.value_type.bit_width // 8
    own = rows.select(list(columns_of(rows.schema))).to_pylist()
    start = size = first_of_file = 0
    for number, path in enumerate(paths):
        if number and path != paths[number - 1]:
            first_of_file = number
        row_bytes = embedding_bytes + 4 * len(path.encode()) + 100 + len(str(own[number]).encode())
        if size and size + row_bytes > _WRITE_BYTES:
            end = first_of_file if first_of_file > start else number
            yield rows.slice(start, end - start)
            size = size * (number - end) // (number - start)
            start = end
        size += row_bytes
    if start < len(paths):
        yield rows.slice(start)


def _to_records(rows: "pa.Table") -> list[dict[str, Any]]:
    records = rows.drop_columns([_COLUMN]).to_pylist()
    own = columns_of(rows.schema)  # a value that is left out would stay as it is
    for record, embedding in zip(records, read_embeddings(rows), strict=True):
        for name in own:
            if isinstance(record[name], datetime):
                record[name] = _to_microseconds(record[name])
        record[_COLUMN] = embedding
    return records


def _to_microseconds(value: datetime) -> int:
    return (value - _EPOCH) // timedelta(microseconds=1)


def _to_array(value: Any) -> np.ndarray:
    """Convert an embedding from pymilvus to an array (D,): numbers, or the bytes of float16 numbers."""
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        value = value[0]
    return np.frombuffer(value, np.float16) if isinstance(value, bytes) else np.asarray(value, np.float32)


def _is_milvus_error(error: Exception) -> bool:
    import grpc
    import pymilvus

    return isinstance(error, (pymilvus.MilvusException, grpc.RpcError))


def _error_code(error: Exception) -> Any:
    import grpc

    return error.code() if isinstance(error, grpc.RpcError) else getattr(error, "code", None)


def _is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later: the connection was lost, or the server is busy."""
    import grpc
    from pymilvus.client.types import Status

    code = grpc.StatusCode
    transient = {code.UNAVAILABLE, code.DEADLINE_EXCEEDED, code.CANCELLED, code.UNKNOWN, code.INTERNAL, code.ABORTED}
    transient |= {Status.CONNECT_FAILED, _RATE_LIMIT, _NOT_LOADED, _NO_INDEX}
    return _error_code(error) in transient or getattr(error, "retriable", False) or "closed channel" in str(error)


def _first_line(error: Exception) -> str:
    import grpc

    text = error.details() if isinstance(error, grpc.RpcError) else getattr(error, "message", str(error))
    return (str(text).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _import_pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError as error:
        raise ImportError(f"An index on a Milvus server needs pymilvus: {pip_install('milvus')}") from error
    # pymilvus logs every error with its traceback, also errors that are retried or raised here.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return pymilvus


__all__ = ["MilvusStore"]
