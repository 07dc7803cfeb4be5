"""The store behind an index on a Milvus server: a collection, written and read by any number of processes at once."""

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from .conditions import Condition, In, milvus_string, to_milvus
from .video_store import FOUND, cosines, embeddings_of, row_schema, synthetic_queries


if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_COLLECTION = "videos"
TOKEN_VARIABLE = "MILVUS_TOKEN"
# Of Milvus Lite, on one core and at width 512: at this size exact search takes 87 ms a query and HNSW 16 ms.
EXACT_UP_TO = 20_000

_METADATA_KEY, _ANN_KEY = "pig", "pig.ann"  # properties of the collection
_VECTOR = "embedding"
_HNSW = {"M": 16, "efConstruction": 200}
_EF = 256  # candidates that a search keeps
_AT, _QUERIES = 10, 100  # recall is measured at so many answers to so many queries

_CONNECT_TIMEOUT = 5.0  # seconds
_CONNECT_ATTEMPTS = 2  # a server to which many connect at once may be late
_CALL_TIMEOUT = 60.0
_GIVE_UP_AFTER = 120.0  # a server that is started again is back by then
_INDEX_TIMEOUT = 24 * 3600.0  # of making an ANN index, and of loading a collection

_WRITE_BYTES = 8 * 2**20  # a request; the server takes 64 MB
_READ_BYTES = 32 * 2**20
_MAX_ROWS = 16_384  # that Milvus gives at a time
_NAMES = 1000  # paths or keys in one expression
_TEXT_LENGTH = 65_535  # bytes; the most that Milvus takes

_NOT_LOADED, _NO_INDEX, _RATE_LIMIT = 101, 700, 8  # Milvus' error codes


class MilvusStore:
    """A [`VideoStore`](store.py) on a Milvus server, `http://host:19530/COLLECTION`.

    Milvus knows no transactions. A file is replaced by writing its rows, whose keys tell what they overwrite, and then
    removing those of its rows that are left over; every step can be repeated. A request whose connection is lost, or
    that is not answered in time, is sent again for two minutes.

    The token is taken from the environment variable `MILVUS_TOKEN` (`USER:PASSWORD`, or an API key).
    """

    def __init__(self, uri: str, metadata: dict[str, Any] | None):
        self._pymilvus = _import_pymilvus()
        self.uri = uri
        self._server, self._collection = _parse(uri)
        self._client = self._connect()
        with self._errors_in_one_line("opened"):
            is_there = self._client.has_collection(self._collection, timeout=_CALL_TIMEOUT)
            if not is_there and metadata is None:
                raise FileNotFoundError(f"There is no index {uri}: make one with `pig index`.")
            self.is_new = not is_there and self._create(metadata or {})
            described = self._ask("describe_collection")
            # Where the name is an alias, it may come to stand for a collection of another model while this is open.
            self._collection, properties = described["collection_name"], described["properties"]
        if _METADATA_KEY not in properties:
            raise ValueError(f"{uri} is a Milvus collection of something else: choose another name.")
        self.metadata = json.loads(properties[_METADATA_KEY])
        self._schema = row_schema(self.metadata["width"], self.metadata.get("storage", "float32"))
        with self._errors_in_one_line("opened"):
            self._make_searchable()

    @property
    def search_method(self) -> dict[str, Any]:
        with self._errors_in_one_line("read"):
            kind = self._index_type()
            if kind == "FLAT":
                return {"method": "exact"}
            measured = json.loads(self._properties().get(_ANN_KEY, "{}"))
        return {"method": kind, **measured}

    def count(self) -> int:
        with self._errors_in_one_line("read"):
            return self._count()

    def upsert(self, rows: "pa.Table") -> None:
        written = set(rows["key"].to_pylist())
        with self._errors_in_one_line("written"):
            for piece in _pieces(rows):
                held = self._select("path", piece["path"].unique().to_pylist(), ["key"])
                left_over = {row["key"] for row in held} - written
                self._ask("upsert", data=_records(piece))
                self._delete(sorted(left_over))

    def delete(self, paths: Sequence[str]) -> int:
        with self._errors_in_one_line("written"):
            keys = [row["key"] for row in self._select("path", paths, ["key"])]
            self._delete(keys)
        return len(keys)

    def rows(self, paths: Sequence[str]) -> "pa.Table":
        with self._errors_in_one_line("read"):
            return self._table(list(self._select("path", paths, self._schema.names)), self._schema.names)

    def scan(self, columns: Sequence[str], batch_size: int) -> Iterator["pa.RecordBatch"]:
        with self._errors_in_one_line("read"):
            for rows in self._pages(None, columns, batch_size):
                yield from self._table(rows, columns).to_batches()

    def search(
        self, vectors: np.ndarray, k: int, where: Condition | None
    ) -> tuple[list[np.ndarray], list["pa.Table"]]:
        if k > _MAX_ROWS:
            raise ValueError(f"k is {k}; Milvus gives {_MAX_ROWS} answers at most.")
        expression = "" if where is None else to_milvus(where)
        with self._errors_in_one_line("searched"):
            return self._search(vectors, k, expression)

    def optimize(self) -> None:
        with self._errors_in_one_line("written"):
            self._ask("flush")
            if self._count() > EXACT_UP_TO and self._index_type() == "FLAT":
                self._make_ann_index()

    def drop(self) -> None:
        if self.is_new and self.count() == 0:  # others may have found it and filled it
            with self._errors_in_one_line("written"):
                self._ask("drop_collection")

    # Requests

    def _connect(self) -> Any:
        for attempt in range(_CONNECT_ATTEMPTS):
            try:
                # Not shared with other indexes on this server: lost connections are then this one's own affair.
                return self._pymilvus.MilvusClient(
                    self._server, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=_CONNECT_TIMEOUT, dedicated=True
                )
            except Exception as error:
                if attempt + 1 == _CONNECT_ATTEMPTS:
                    seconds = _CONNECT_ATTEMPTS * _CONNECT_TIMEOUT
                    raise OSError(
                        f"The index {self.uri} cannot be opened: no Milvus server answers at {self._server} within "
                        f"{seconds:.0f} s ({_reason(error)}). Start it, or correct the address; if it wants a login, "
                        f"set {TOKEN_VARIABLE}"
                    ) from error

    def _ask(self, method: str, timeout: float | None = None, **arguments: Any) -> Any:
        """Sends a request about the collection, again where it is not answered. All requests can be repeated."""
        timeout = timeout or _CALL_TIMEOUT
        pause, give_up = 0.1, time.monotonic() + _GIVE_UP_AFTER
        while True:
            try:
                return getattr(self._client, method)(self._collection, timeout=timeout, **arguments)
            except Exception as error:
                if not _may_pass(error) or time.monotonic() > give_up:
                    raise
                not_loaded = _code(error) == _NOT_LOADED
            time.sleep(pause)
            pause = min(2 * pause, 5.0)
            if not_loaded:  # as after a restart of Milvus Lite, or while another process makes the ANN index
                self._make_searchable()

    def _properties(self) -> dict[str, str]:
        return self._ask("describe_collection")["properties"]

    def _index_type(self) -> str:
        """Of the vectors; "none" while another process makes one in the place of another."""
        return (self._ask("describe_index", index_name=_VECTOR) or {}).get("index_type", "none")

    def _count(self) -> int:
        return self._ask("query", output_fields=["count(*)"])[0]["count(*)"]

    def _select(self, field: str, values: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """These columns of the rows that have one of these values."""
        for start in range(0, len(values), _NAMES):
            for rows in self._pages(to_milvus(In(field, tuple(values[start : start + _NAMES]))), columns, _MAX_ROWS):
                yield from rows

    def _pages(self, condition: str | None, columns: Sequence[str], size: int) -> Iterator[list[dict[str, Any]]]:
        """These columns of all rows that meet a condition, in order of key.

        That is what pymilvus' query iterator does, but for keys that hold quotes or line breaks.
        """
        size = min(size, _MAX_ROWS)
        if _VECTOR in columns:
            size = min(size, max(_READ_BYTES // self._row_bytes(), 1))
        last = ""
        while True:
            expression = f"key > {milvus_string(last)}"
            rows = self._ask(
                "query",
                filter=expression if condition is None else f"{expression} and ({condition})",
                output_fields=list({"key": None} | dict.fromkeys(columns)),
                limit=size,
                iterator="True",  # in order of key
                reduce_stop_for_best="True",  # a page may be shorter than the limit, and leaves nothing out
            )
            if not rows:
                return
            last = max(row["key"] for row in rows)
            yield list(rows)

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _NAMES):
            self._ask("delete", filter=to_milvus(In("key", tuple(keys[start : start + _NAMES]))))

    def _row_bytes(self) -> int:
        return 4 * self.metadata["width"] + 1000  # paths and names are seldom longer

    def _table(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> "pa.Table":
        import pyarrow as pa

        schema = pa.schema([self._schema.field(name) for name in columns])
        arrays = {name: [row.get(name) for row in rows] for name in columns if name != _VECTOR}
        if _VECTOR in columns:
            vector_type = schema.field(_VECTOR).type
            kind = vector_type.value_type.to_pandas_dtype()
            numbers = np.concatenate([np.empty(0, kind), *(_numbers(row[_VECTOR]) for row in rows)])
            arrays[_VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.astype(kind)), vector_type.list_size)
        return pa.table(arrays, schema=schema)

    # Making and searching

    def _create(self, metadata: dict[str, Any]) -> bool:
        """Makes the collection unless it is there, as another process may do at the same time."""
        pymilvus, properties = self._pymilvus, {}
        for storage in ("float16", "float32"):  # Milvus Lite keeps no halves
            properties[_METADATA_KEY] = json.dumps({**metadata, "storage": storage})
            schema = _collection_schema(pymilvus, metadata["width"], storage)
            try:
                self._client.create_collection(
                    self._collection,
                    schema=schema,
                    properties=properties,
                    consistency_level="Strong",  # what is written can be read at once
                    timeout=_CALL_TIMEOUT,
                )
                return True
            except pymilvus.MilvusException as error:
                if self._client.has_collection(self._collection, timeout=_CALL_TIMEOUT):
                    return False
                if storage == "float32" or _may_pass(error):
                    raise
        raise AssertionError

    def _make_searchable(self) -> None:
        """Makes the index for searching, if there is none, and loads the collection."""
        if _VECTOR not in self._ask("list_indexes"):
            kind: dict[str, Any] = {"index_type": "FLAT"}
            if int(self._ask("get_collection_stats")["row_count"]) > EXACT_UP_TO:
                kind = {"index_type": "HNSW", "params": _HNSW}
            indexes = self._client.prepare_index_params()
            # The cosine, as lengths may differ from 1 a little.
            indexes.add_index(_VECTOR, index_name=_VECTOR, metric_type="COSINE", **kind)
            if "path" not in self._ask("list_indexes"):
                indexes.add_index("path", index_name="path", index_type="INVERTED")
            try:
                self._ask("create_index", index_params=indexes, timeout=_INDEX_TIMEOUT)
            except self._pymilvus.MilvusException:
                if _VECTOR not in self._ask("list_indexes"):  # by another process
                    raise
        self._ask("load_collection", timeout=_INDEX_TIMEOUT)

    def _make_ann_index(self) -> None:
        """HNSW in the place of exact search. Milvus knows one index at a time: whoever searches meanwhile waits."""
        queries = synthetic_queries(self._draw_vectors(2 * _QUERIES))
        exact = self._keys_of_best(queries)
        for remaining in range(5)[::-1]:
            self._ask("release_collection")
            try:
                self._ask("drop_index", index_name=_VECTOR)
                break
            except self._pymilvus.MilvusException:  # someone who searches has loaded it again
                if not remaining:
                    raise
        self._make_searchable()
        found = self._keys_of_best(queries)
        hits = [len(set(some) & set(others)) / len(others) for some, others in zip(found, exact, strict=True)]
        measured = {**_HNSW, "ef": _EF, f"recall@{_AT}": round(float(np.mean(hits)), 4), "queries": len(queries)}
        self._ask("alter_collection_properties", properties={_ANN_KEY: json.dumps(measured)})

    def _draw_vectors(self, count: int) -> np.ndarray:
        """Vectors (at most `count`, D) of rows drawn at random, in random order."""
        rng, total = np.random.default_rng(0), self._count()
        places = set(rng.choice(total, min(count, total), replace=False).tolist())
        rows = itertools.chain.from_iterable(self._pages(None, ["key"], _MAX_ROWS))
        keys = [row["key"] for place, row in enumerate(rows) if place in places]
        vectors = [_numbers(row[_VECTOR]) for row in self._select("key", keys, [_VECTOR])]
        return rng.permutation(np.stack(vectors))

    def _keys_of_best(self, queries: np.ndarray) -> list[list[str]]:
        return [rows["key"].to_pylist() for rows in self._search(queries, _AT, "")[1]]

    def _search(self, vectors: np.ndarray, k: int, expression: str) -> tuple[list[np.ndarray], list["pa.Table"]]:
        # Beyond k, for others that score the same as the last, or seem to by rounding.
        limit = min(k + 20, _MAX_ROWS)
        at_once = max(_READ_BYTES // (limit * self._row_bytes()), 1)
        scores, rows = [], []
        for start in range(0, len(vectors), at_once):
            part = vectors[start : start + at_once]
            for vector, hits in zip(part, self._hits(part, limit, expression), strict=True):
                own_scores, own_rows = self._ranked(vector, hits, k, limit, expression)
                scores.append(own_scores)
                rows.append(own_rows)
        return scores, rows

    def _ranked(
        self, vector: np.ndarray, hits: list[dict[str, Any]], k: int, limit: int, expression: str
    ) -> tuple[np.ndarray, "pa.Table"]:
        """Scores and rows of the k best hits, from their stored vectors."""
        rounding = 1e-3 if self.metadata["storage"] == "float16" else 1e-5  # of the query, as the server sees it
        while True:
            rows = self._table(hits, [*FOUND, _VECTOR])
            scores = cosines(embeddings_of(rows), vector)
            order = np.lexsort((rows["key"].to_numpy(), -scores))
            last_is_certain = len(hits) < limit or scores[order[-1]] < scores[order[k - 1]] - rounding
            if last_is_certain or limit == _MAX_ROWS:
                order = order[:k]
                return scores[order], rows.take(order).drop_columns([_VECTOR])
            limit = min(8 * limit, _MAX_ROWS)
            (hits,) = self._hits(vector[None], limit, expression)

    def _hits(self, vectors: np.ndarray, limit: int, expression: str) -> list[list[dict[str, Any]]]:
        """What the server finds for each vector."""
        kind = np.float16 if self.metadata["storage"] == "float16" else np.float32
        found = self._ask(
            "search",
            data=list(vectors.astype(kind)),
            anns_field=_VECTOR,
            filter=expression,
            limit=limit,
            output_fields=[*FOUND, _VECTOR],
            search_params={"metric_type": "COSINE", "params": {"ef": max(_EF, limit)}},
        )
        return [[hit["entity"] for hit in hits] for hits in found]

    @contextmanager
    def _errors_in_one_line(self, verb: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not _is_of_milvus(error):
                raise
            what = f"The index {self.uri} cannot be {verb}: {_reason(error)}"
            if _may_pass(error):
                what += f". Tried for {_GIVE_UP_AFTER:.0f} s; see to the server, and run the same again"
            raise OSError(what) from error


def _parse(uri: str) -> tuple[str, str]:
    """The server's address, and the collection."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:  # what is in a URI is printed and kept in the shell's history
        raise ValueError(f"A Milvus URI holds no password: set {TOKEN_VARIABLE}=USER:PASSWORD in the environment.")
    name = parts.path.strip("/") or DEFAULT_COLLECTION
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name) or parts.query or parts.fragment or not parts.hostname:
        raise ValueError(
            f"{uri} names no Milvus collection: expected http://HOST:19530/COLLECTION, with a collection of letters, "
            "digits and _."
        )
    return f"{parts.scheme}://{parts.netloc}", name


def _collection_schema(pymilvus: Any, width: int, storage: str) -> Any:
    import pyarrow as pa

    types = {pa.string(): "VARCHAR", pa.float64(): "DOUBLE", pa.int64(): "INT64"}
    schema = pymilvus.MilvusClient.create_schema(enable_dynamic_field=False)
    for field in row_schema(width, storage):
        if field.name == _VECTOR:
            kind = "FLOAT16_VECTOR" if storage == "float16" else "FLOAT_VECTOR"
            schema.add_field(_VECTOR, pymilvus.DataType[kind], dim=width)
        else:
            options = {"max_length": _TEXT_LENGTH} if field.type == pa.string() else {}
            kind, is_key = pymilvus.DataType[types[field.type]], field.name == "key"
            schema.add_field(field.name, kind, is_primary=is_key, nullable=field.nullable, **options)
    return schema


def _pieces(rows: "pa.Table") -> Iterator["pa.Table"]:
    """Rows in parts of some megabytes, those of a file together unless they are more than that."""
    rows = rows.sort_by("path")
    paths = rows["path"].to_pylist()
    vector = rows.schema.field(_VECTOR).type
    vector_bytes = vector.list_size * vector.value_type.bit_width // 8
    start = size = first_of_file = 0
    for number, path in enumerate(paths):
        if number and path != paths[number - 1]:
            first_of_file = number
        row_bytes = vector_bytes + 4 * len(path.encode()) + 100
        if size and size + row_bytes > _WRITE_BYTES:
            end = first_of_file if first_of_file > start else number
            yield rows.slice(start, end - start)
            size = size * (number - end) // (number - start)
            start = end
        size += row_bytes
    if start < len(paths):
        yield rows.slice(start)


def _records(rows: "pa.Table") -> list[dict[str, Any]]:
    records = rows.drop_columns([_VECTOR]).to_pylist()
    for record, vector in zip(records, embeddings_of(rows), strict=True):
        record[_VECTOR] = vector
    return records


def _numbers(value: Any) -> np.ndarray:
    """A stored vector (D,), as pymilvus hands it out: numbers, or the bytes of halves."""
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        value = value[0]
    return np.frombuffer(value, np.float16) if isinstance(value, bytes) else np.asarray(value, np.float32)


def _is_of_milvus(error: Exception) -> bool:
    import grpc
    import pymilvus

    return isinstance(error, (pymilvus.MilvusException, grpc.RpcError))


def _code(error: Exception) -> Any:
    import grpc

    return error.code() if isinstance(error, grpc.RpcError) else getattr(error, "code", None)


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: the connection was lost, or the server is busy."""
    import grpc
    from pymilvus.client.types import Status

    code = grpc.StatusCode
    passing = {code.UNAVAILABLE, code.DEADLINE_EXCEEDED, code.CANCELLED, code.UNKNOWN, code.INTERNAL, code.ABORTED}
    passing |= {Status.CONNECT_FAILED, _RATE_LIMIT, _NOT_LOADED, _NO_INDEX}
    return _code(error) in passing or getattr(error, "retriable", False) or "closed channel" in str(error)


def _reason(error: Exception) -> str:
    import grpc

    text = error.details() if isinstance(error, grpc.RpcError) else getattr(error, "message", str(error))
    return (str(text).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _import_pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError as error:
        raise ImportError('An index on a Milvus server needs pymilvus: pip install "modeling-pig[milvus]"') from error
    # It prints every error with its traceback, those included that are raised here, or tried again.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    return pymilvus


__all__ = ["MilvusStore"]
