"""Store an index as a LanceDB table in a folder or in object storage, for any number of processes at once."""

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..extras import pip_install
from .columns import arrow_fields, columns_of
from .conditions import Condition, to_sql
from .lance_location import Location, find_location
from .lance_searcher import EXACT_UP_TO, LanceSearcher, adopt_ann_index, ann_parameters, refresh_ann_index
from .lance_text import build_text_index, without_text_index
from .records import IndexInfo, row_schema
from .video_store import IndexVersion, RankedRows, TextMatches


if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_TABLE = "videos"
_METADATA_KEY = b"pig"
_STORAGE = "float16"
# Seconds for which a write that conflicts with others is retried; after that, something else must be wrong.
_GIVE_UP_AFTER = 300.0
# Versions stay on disk for this time after they were replaced: readers may still be reading them.
_KEEP_VERSIONS = timedelta(minutes=10)


class LanceStore:
    """[`VideoStore`] in a folder or in object storage.

    Every write is one commit on top of the newest version, without a lock: after a kill, the index holds either all of
    the write or nothing of it. `key` is declared as the primary key. If two processes insert the same entries at once,
    LanceDB detects the conflict by it, and one write starts again. Do not create a scalar index on `key`: with one,
    LanceDB would insert both.
    """

    def __init__(self, uri: str, info: IndexInfo | None, storage_options: Mapping[str, str] | None = None):
        _import_lancedb()
        self._location = find_location(uri, storage_options)
        self.uri = self._location.uri
        self._one_line_errors = partial(_one_line_errors, self._location)
        with self._one_line_errors("opened"):
            has_index = self._location.has_table(_TABLE)
        if not has_index:
            if info is None:
                raise FileNotFoundError(f"There is no index {uri}: create it with `pig index`.")
            self._location.check_new()
        with self._one_line_errors("opened" if has_index else "created"):
            created = None if info is None else self._create_table(info)
            self.is_new = created == 1
            self._table = self._location.connect(self._location.check_interval).open_table(_TABLE)
            errors = partial(self._one_line_errors, "searched")
            self._searcher = LanceSearcher(self._location, _TABLE, errors, self._check_model)
            if created is not None and created > 1:
                self._bring_back(created - 1)
            metadata = self._table.schema.metadata
        held = _read_info(metadata, f"The index {uri}")
        if held is None:
            raise ValueError(f"{uri} holds a LanceDB table that is not an index: give another path.")
        self.info = held

    def _create_table(self, info: IndexInfo) -> int | None:
        """Create the table; return its version, or `None` if another process has created it."""
        schema = row_schema(info.embedding_dim, _STORAGE, info.num_context_tokens)
        key = schema.field("key").with_metadata({"lance-schema:unenforced-primary-key": "true"})
        schema = schema.set(schema.get_field_index("key"), key)
        record = json.dumps(replace(info, storage=_STORAGE).to_record())
        database = self._location.connect()
        try:
            create = partial(database.create_table, _TABLE, schema=schema.with_metadata({_METADATA_KEY: record}))
            return self._retry_conflicts(create).version
        except ValueError as error:
            if "already exists" not in str(error):
                raise
            return None
        except RuntimeError as error:
            self._location.clean_up(_TABLE, error)
            raise

    def _bring_back(self, version: int) -> None:
        """Bring back what the creation of this table has replaced.

        LanceDB first looks whether there is a table, and later writes the new one on top of whatever is there then:
        another process may have created the table and filled it in between.
        """
        replaced = self._searcher.open_newest()
        replaced.checkout(version)
        ours, theirs = (_read_info(table.schema.metadata, "The index") for table in (self._table, replaced))
        if ours is None or theirs is None or _model_of(ours) != _model_of(theirs):
            self._retry_conflicts(replaced.restore)
            self._table.checkout_latest()
        else:  # others may write meanwhile, and a restored version would replace their rows
            self.add_columns(columns_of(replaced.schema))
            merge, rows = self._table.merge_insert("key").when_not_matched_insert_all(), replaced.to_arrow()
            self._retry_conflicts(lambda: merge.execute(rows))

    @property
    def search_method(self) -> dict[str, Any]:
        with self._one_line_errors("read"):
            is_exact = self._table.count_rows() <= EXACT_UP_TO
            return {"method": "exact"} if is_exact else ann_parameters(self._table.schema) or {"method": "exact"}

    @property
    def columns(self) -> dict[str, str]:
        with self._one_line_errors("read"):
            return columns_of(self._table.schema)

    @property
    def data_version(self) -> Any:
        with self._one_line_errors("read"):
            return self._location.identity(self._table), self._table.version

    def add_columns(self, columns: Mapping[str, str]) -> None:
        import pyarrow as pa

        def missing() -> dict[str, str]:
            known = columns_of(self._table.schema)
            return {name: kind for name, kind in columns.items() if name not in known}

        def add() -> None:
            while new := missing():
                try:
                    self._table.add_columns(pa.schema(arrow_fields(new)))
                except (OSError, RuntimeError, ValueError):
                    self._table.checkout_latest()
                    if missing() == new:  # otherwise another process has added some of them meanwhile
                        raise

        with self._one_line_errors("written"):
            self._retry_conflicts(add)

    def update(self, rows: "pa.Table") -> None:
        with self._one_line_errors("written"):
            merge = self._table.merge_insert("key").when_matched_update_all()
            self._retry_conflicts(lambda: merge.execute(rows))
        self._compact_if_due()

    def count(self) -> int:
        with self._one_line_errors("read"):
            return self._table.count_rows()

    def upsert(self, rows: "pa.Table") -> None:
        paths = rows["path"].unique().to_pylist()
        with self._one_line_errors("written"):
            self._table.checkout_latest()  # other processes may have written entries of these files
            self._check_model(self._table.schema.metadata)
            merge = self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
            if self._has_other_rows(paths, rows["key"]):  # makes LanceDB join whole rows, which takes 20 times longer
                merge = merge.when_not_matched_by_source_delete(_has_path(paths))
            self._retry_conflicts(lambda: merge.execute(rows))
        self._compact_if_due()

    def _check_model(self, metadata: Mapping[bytes, bytes] | None) -> None:
        """Raise `ValueError` if the folder now holds an index of another model."""
        info = _read_info(metadata, "The index that is now there")
        if info is None or _model_of(info) != _model_of(self.info):
            raise ValueError("the folder now holds an index of another model. Open the index again, with that model")

    def _has_other_rows(self, paths: Sequence[str], keys: "pa.ChunkedArray") -> bool:
        """Return whether the table holds rows of these paths with other keys."""
        import pyarrow.compute as pc

        held = self._table.search().select(["key"]).where(_has_path(paths)).to_arrow()["key"]
        return not pc.all(pc.is_in(held, keys), min_count=0).as_py()

    def _compact_if_due(self) -> None:
        """Merge small files if there are many: each write leaves a file and a list of all files, which slow reads.

        Compaction takes time that grows with the index, so larger indexes are compacted less often.
        """
        try:
            num_small_files = self._table.stats()["fragment_stats"]["num_small_fragments"]
            # The random factor keeps processes from starting all at once.
            if num_small_files > random.uniform(1, 1.5) * min(64 + self._table.count_rows() // 1000, 1000):
                self._compact()
        except (OSError, RuntimeError) as error:  # the rows are written, and the next write tries again
            level = logging.DEBUG if _is_conflict(error, self._location) else logging.WARNING
            message = "was written, but its small files could not be merged"
            logger.log(level, f"The index {self.uri} {message}: {self._location.reason(error)}")

    def _compact(self) -> None:
        age = _KEEP_VERSIONS
        if self._table.tags.list():  # LanceDB refuses to delete old versions if a named one is among them
            oldest = min(version.time for version in self._read_versions() if version.names)
            age = max(age, datetime.now(UTC) - oldest + timedelta(seconds=1))
        self._table.optimize(cleanup_older_than=age)

    def _read_versions(self) -> list[IndexVersion]:
        tags = self._table.tags.list()
        return [
            IndexVersion(
                found["version"],
                found["timestamp"].astimezone(),
                int(found["metadata"]["total_rows"]),
                sorted(name for name, tag in tags.items() if tag["version"] == found["version"]),
            )
            for found in self._table.list_versions()
        ]

    def delete(self, paths: Sequence[str]) -> int:
        with self._one_line_errors("written"):
            return self._retry_conflicts(lambda: self._table.delete(_has_path(paths))).num_deleted_rows

    def rows(self, paths: Sequence[str]) -> "pa.Table":
        with self._one_line_errors("read"):
            return self._table.search().where(_has_path(paths)).to_arrow()

    def scan(
        self, columns: Sequence[str], batch_size: int, where: Condition | None = None
    ) -> Iterator["pa.RecordBatch"]:
        with self._one_line_errors("read"):
            query = self._table.search() if where is None else self._table.search().where(to_sql(where))
            yield from query.select(list(columns)).to_batches(batch_size)

    def warm(self) -> None:
        self._searcher.warm(self._table)

    def draw_embeddings(self, count: int) -> np.ndarray:
        return self._searcher.draw_embeddings(self._table, count)

    def search(
        self,
        query_embeddings: np.ndarray,
        k: int,
        where: Condition | None,
        with_context: bool = False,
    ) -> list[RankedRows]:
        return self._searcher.search(self._table, query_embeddings, k, where, with_context)

    def search_text(
        self,
        text: str,
        columns: Sequence[str],
        query_embedding: np.ndarray,
        k: int,
        where: Condition | None,
    ) -> TextMatches:
        with self._one_line_errors("read"):
            missing = without_text_index(self._table, columns)
        for column in missing:
            with self._one_line_errors(f"given the full-text index of {column} that its first search by words writes"):
                self._retry_conflicts(partial(build_text_index, self._table, column))
        return self._searcher.search_text(self._table, text, columns, query_embedding, k, where)

    def optimize(self, ann_index: bool = True) -> None:
        with self._one_line_errors("written"):
            self._table.checkout_latest()
            self._retry_conflicts(self._compact)
            if ann_index:
                self._retry_conflicts(lambda: adopt_ann_index(self._table, self._searcher.open_newest))
                self._retry_conflicts(lambda: refresh_ann_index(self._table, self._searcher.open_newest))

    def versions(self) -> list[IndexVersion]:
        with self._one_line_errors("read"):
            return self._read_versions()

    def keep_version(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"{name!r} cannot be the name of a version: expected a letter, then letters, digits, . _ -"
            )
        if name in self._names():
            raise ValueError(f"The index {self.uri} has a version {name!r}: choose another name, or release that one.")
        with self._one_line_errors("written"):
            self._table.checkout_latest()
            self._table.tags.create(name, self._table.version)

    def release_version(self, name: str) -> None:
        self._refuse_unknown(name)
        with self._one_line_errors("written"):
            self._table.tags.delete(name)

    def restore(self, version: int | str) -> None:
        if isinstance(version, str):
            self._refuse_unknown(version)
        elif version not in [found.number for found in self.versions()]:
            raise ValueError(f"The index {self.uri} has no version {version}: `pig versions` prints them.")

        def restore() -> None:
            table = self._searcher.open_newest()  # checking out a version of `_table` would show it to other threads
            table.checkout(version)
            table.restore()

        with self._one_line_errors("restored"):
            self._retry_conflicts(restore)
            self._table.checkout_latest()

    def _names(self) -> list[str]:
        with self._one_line_errors("read"):
            return list(self._table.tags.list())

    def _refuse_unknown(self, name: str) -> None:
        if name not in (names := self._names()):
            held = f"its named versions are {', '.join(names)}" if names else "none of its versions has a name"
            raise ValueError(f"The index {self.uri} has no version {name!r}: {held}.")

    def drop(self) -> None:
        if self.is_new and self.count() == 0:  # another process may have opened and filled it
            with self._one_line_errors("removed"):
                self._location.remove(_TABLE)

    def _retry_conflicts(self, write: Callable[[], Result]) -> Result:
        """Repeat a write that conflicts with other writes. LanceDB's own retries are too few for many writers."""
        pause, give_up = 0.05, time.monotonic() + _GIVE_UP_AFTER
        while True:
            try:
                return write()
            except (OSError, RuntimeError) as error:
                if not _is_conflict(error, self._location) or time.monotonic() > give_up:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 5.0)


@contextmanager
def _one_line_errors(location: Location, verb: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise OSError(f"The index {location.uri} cannot be {verb}: {location.reason(error)}") from error


def _read_info(metadata: Mapping[bytes, bytes] | None, source: str) -> IndexInfo | None:
    record = (metadata or {}).get(_METADATA_KEY)
    return None if record is None else IndexInfo.from_record(json.loads(record), source)


def _model_of(info: IndexInfo) -> tuple[str, str, int, int | None, int | None]:
    return info.model_fingerprint, info.kind, info.embedding_dim, info.num_frames, info.num_context_tokens


def _has_path(paths: Sequence[str]) -> Any:
    from lancedb.expr import col, lit

    return col("path").isin([lit(path) for path in paths])


def _is_conflict(error: Exception, location: Location) -> bool:
    """Return whether an error is a write conflict. LanceDB has no type for it, so its message is searched."""
    return re.search("conflict|concurrent", location.without_paths(str(error)), re.IGNORECASE) is not None


def _import_lancedb() -> None:
    os.environ.setdefault("LANCEDB_LOG", "error")  # LanceDB's warnings are about its internals
    try:
        import lancedb  # noqa: F401
    except ImportError as error:
        raise ImportError(f"An index in a folder or in a bucket needs LanceDB: {pip_install('search')}") from error


__all__ = ["LanceStore"]
