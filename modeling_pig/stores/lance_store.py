"""The store behind an index that is a folder: a LanceDB table, written and read by any number of processes at once."""

import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .conditions import Condition
from .lance_search import EXACT_UP_TO, LanceSearch, ann_parameters, refresh_index
from .video_store import row_schema


if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_TABLE = "videos"
_METADATA_KEY = b"pig"
_STORAGE = "float16"
_OF_THE_MODEL = ("format", "model_fingerprint", "width", "num_frames")  # what embeddings that meet must have in common
# A write that is overtaken by others starts anew; after so many seconds of it, something else must be wrong.
_GIVE_UP_AFTER = 300.0
# Readers may still be reading a version that was the newest so long ago.
_KEEP_VERSIONS = timedelta(minutes=10)


class LanceStore:
    """A [`VideoStore`](store.py) in a folder.

    Every write is one commit, on top of the newest version: no lock, and after a kill the index is as it was before or
    after the write. `key` is declared as the primary key, by which LanceDB sees that two processes insert the same
    entries at once, and lets one start anew. That holds as long as no scalar index on `key` is made: with one, both
    would be inserted.
    """

    def __init__(self, uri: str, metadata: dict[str, Any] | None):
        lancedb = _import_lancedb()
        self.uri = uri
        folder = Path(uri)
        holds_index = (folder / f"{_TABLE}.lance").is_dir()
        self._made_folder = not folder.exists()
        if not holds_index and metadata is None:
            raise FileNotFoundError(f"There is no index {uri}: make one with `pig index`.")
        if not holds_index and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
            raise ValueError(f"{uri} is there already and is no index: choose another place.")
        with self._errors_in_one_line("opened" if holds_index else "made"):
            # No interval: every read sees what other processes have written by then.
            database = lancedb.connect(uri, read_consistency_interval=timedelta(0))
            self.is_new = metadata is not None and _create(database, metadata)
            self._table = database.open_table(_TABLE)
            errors = partial(_errors_in_one_line, uri, "searched")
            self._searcher = LanceSearch(lancedb.connect(uri), _TABLE, errors, self._refuse_another)
            metadata_here = (self._table.schema.metadata or {}).get(_METADATA_KEY)
        if metadata_here is None:
            raise ValueError(f"{uri} holds a LanceDB table of something else: choose another place.")
        self.metadata = json.loads(metadata_here)

    @property
    def search_method(self) -> dict[str, Any]:
        with self._errors_in_one_line("read"):
            exact = self._table.count_rows() <= EXACT_UP_TO
            return {"method": "exact"} if exact else ann_parameters(self._table) or {"method": "exact"}

    def count(self) -> int:
        with self._errors_in_one_line("read"):
            return self._table.count_rows()

    def upsert(self, rows: "pa.Table") -> None:
        paths = rows["path"].unique().to_pylist()
        with self._errors_in_one_line("written"):
            self._refuse_another(self._table.schema.metadata)
            merge = self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
            if self._holds_others(paths, rows["key"]):  # makes LanceDB join whole rows, which takes some 20 x longer
                merge = merge.when_not_matched_by_source_delete(_one_of(paths))
            self._until_not_overtaken(lambda: merge.execute(rows))
        self._compact_in_time()

    def _refuse_another(self, metadata_here: Mapping[bytes, bytes] | None) -> None:
        """Raises `ValueError` where an index of another model has been put into this folder meanwhile."""
        now = json.loads((metadata_here or {}).get(_METADATA_KEY, b"{}"))
        if any(now.get(name) != self.metadata.get(name) for name in _OF_THE_MODEL):
            raise ValueError("another model's index has taken its place. Open it again, with that model")

    def _holds_others(self, paths: Sequence[str], keys: "pa.ChunkedArray") -> bool:
        """Whether entries of these files are there that are none of these."""
        import pyarrow.compute as pc

        held = self._table.search().select(["key"]).where(_one_of(paths)).to_arrow()["key"]
        return not pc.all(pc.is_in(held, keys), min_count=0).as_py()

    def _compact_in_time(self) -> None:
        """Each write leaves a small file and a list of all files: merges them before they make everything slow.
        Rewriting takes time that grows with the index: the larger that is, the rarer."""
        try:
            small_files = self._table.stats()["fragment_stats"]["num_small_fragments"]
            # Drawn at random, so that many processes do not all start at once.
            if small_files > random.uniform(1, 1.5) * min(64 + self._table.count_rows() // 1000, 1000):
                self._compact()
        except (OSError, RuntimeError) as error:  # what came before is written, and the next write tries again
            level = logging.DEBUG if _is_conflict(error, self.uri) else logging.WARNING
            logger.log(level, f"The index {self.uri} was written, its small files not merged: {_reason(error)}")

    def _compact(self) -> None:
        self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def delete(self, paths: Sequence[str]) -> int:
        with self._errors_in_one_line("written"):
            return self._until_not_overtaken(lambda: self._table.delete(_one_of(paths))).num_deleted_rows

    def rows(self, paths: Sequence[str]) -> "pa.Table":
        with self._errors_in_one_line("read"):
            return self._table.search().where(_one_of(paths)).to_arrow()

    def scan(self, columns: Sequence[str], batch_size: int) -> Iterator["pa.RecordBatch"]:
        with self._errors_in_one_line("read"):
            yield from self._table.search().select(list(columns)).to_batches(batch_size)

    def search(
        self, vectors: np.ndarray, k: int, where: Condition | None
    ) -> tuple[list[np.ndarray], list["pa.Table"]]:
        return self._searcher.search(self._table, vectors, k, where)

    def optimize(self) -> None:
        with self._errors_in_one_line("written"):
            self._until_not_overtaken(self._compact)
            self._until_not_overtaken(lambda: refresh_index(self._table, self._searcher.open_newest))

    def drop(self) -> None:
        if self.is_new and self.count() == 0:  # others may have found it and filled it
            shutil.rmtree(Path(self.uri) / f"{_TABLE}.lance")
            if self._made_folder:
                os.rmdir(self.uri)

    def _until_not_overtaken(self, write: Callable[[], Result]) -> Result:
        """LanceDB tries a write that others overtook a few times itself, too few where there are many others."""
        pause, give_up = 0.05, time.monotonic() + _GIVE_UP_AFTER
        while True:
            try:
                return write()
            except (OSError, RuntimeError) as error:
                if not _is_conflict(error, self.uri) or time.monotonic() > give_up:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 5.0)

    def _errors_in_one_line(self, verb: str) -> AbstractContextManager[None]:
        return _errors_in_one_line(self.uri, verb)


@contextmanager
def _errors_in_one_line(uri: str, verb: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise OSError(f"The index {uri} cannot be {verb}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0]
    reason = re.sub(r",? ?\S+\.rs:\d+:\d+", "", reason)  # places in LanceDB's source
    return "the disk is full. What was written before is kept" if "os error 28" in reason else reason


def _one_of(paths: Sequence[str]) -> Any:
    from lancedb.expr import col, lit

    return col("path").isin([lit(path) for path in paths])


def _create(database: Any, metadata: dict[str, Any]) -> bool:
    """Makes the table unless it is there, as another process may do at the same time."""
    schema = row_schema(metadata["width"], _STORAGE)
    key = schema.field("key").with_metadata({"lance-schema:unenforced-primary-key": "true"})
    schema = schema.set(schema.get_field_index("key"), key)
    try:
        database.create_table(
            _TABLE, schema=schema.with_metadata({_METADATA_KEY: json.dumps({**metadata, "storage": _STORAGE})})
        )
    except ValueError as error:
        if "already exists" not in str(error):
            raise
        return False
    return True


def _is_conflict(error: Exception, uri: str) -> bool:
    """LanceDB has no type for it, only words; those of paths, which may hold spaces, tell nothing."""
    message = str(error).replace(os.path.abspath(uri), "/")
    message = re.sub(r"\S*[/\\]\S*", "", message)
    return re.search("conflict|concurrent", message, re.IGNORECASE) is not None


def _import_lancedb():
    os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are about its own workings
    try:
        import lancedb
    except ImportError as error:
        raise ImportError('The index needs LanceDB: pip install "modeling-pig[search]"') from error
    return lancedb


__all__ = ["LanceStore"]
