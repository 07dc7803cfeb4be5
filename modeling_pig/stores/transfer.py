"""An index as one Parquet file: for other tools, and to move from one store to another."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import replace_file
from .index import IndexInfo, VideoEntry, VideoIndex, entries_of, make_rows, read_info, upsert_whole_files
from .video_store import embeddings_of, row_schema


if TYPE_CHECKING:
    import pyarrow.parquet as pq


_METADATA_KEY = b"pig"
_BATCH_SIZE = 10_000  # rows in memory, as a row group, and a write


def export_index(index: VideoIndex, path: str | os.PathLike) -> int:
    """Writes everything that an index holds into a Parquet file, see [`write_export`]. Memory: a batch of rows.

    Returns:
        `int`: the number of rows.

    Raises:
        OSError: the index cannot be read, or the file not written.
    """
    return write_export(path, index.info, index.batches(_BATCH_SIZE))


def write_export(
    path: str | os.PathLike, info: IndexInfo, batches: Iterable[tuple[Sequence[VideoEntry], np.ndarray]]
) -> int:
    """Writes entries with their embeddings (N, D) into a Parquet file, a batch a row group: a row an entry, with the
    columns of [`VideoEntry`], `key`, `name` and `embedding` (D) in float32, which every tool reads; `info` as JSON in
    the file's metadata, under `pig`. A file that is there is replaced once the new one is complete.

    Returns:
        `int`: the number of rows.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow.parquet as pq

    schema = row_schema(info.width, "float32").with_metadata({_METADATA_KEY: json.dumps(asdict(info))})
    count = 0
    with replace_file(path) as partial:
        with _errors_of_writing(path):
            writer = pq.ParquetWriter(partial, schema)
        try:
            for entries, vectors in batches:  # an index that cannot be read says so itself
                rows = make_rows(entries, vectors, schema)
                with _errors_of_writing(path):
                    writer.write_table(rows)
                count += len(rows)
        finally:
            with _errors_of_writing(path):
                writer.close()
    return count


@contextmanager
def _errors_of_writing(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {str(error).strip().splitlines()[0]}") from error


def import_index(path: str | os.PathLike, uri: str | os.PathLike) -> VideoIndex:
    """Writes what [`export_index`] wrote into an index, made if it is not there; what that holds of other files stays.
    May be repeated after an interruption. Memory: a batch of rows, the names of the files, and the rows of files whose
    rows stand apart, from the first to the last.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no export of an index, or one of another model than the index.
        OSError: the file cannot be read, or the index not written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: give one that `pig index --export` wrote.")
    try:
        with pq.ParquetFile(path) as file:
            index = VideoIndex(uri, _info_of(file, path))
            try:
                _import(file, index)
            except BaseException:
                with suppress(OSError):
                    index.drop_if_new()
                raise
        index.optimize()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error
    return index


def _info_of(file: "pq.ParquetFile", path: str | os.PathLike) -> IndexInfo:
    metadata = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
    if metadata is None:
        raise ValueError(f"{path} is no export of an index (no metadata `pig`): give one that `pig index` wrote.")
    info = read_info(json.loads(metadata), f"The export {path}")
    names = row_schema(info.width, "float32").names
    if missing := set(names) - set(file.schema_arrow.names):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}: export the index again.")
    return info


def _import(file: "pq.ParquetFile", index: VideoIndex) -> None:
    counts: Counter[str] = Counter()
    for rows in file.iter_batches(_BATCH_SIZE, columns=["path"]):
        counts.update(rows["path"].to_pylist())
    upsert_whole_files(index, _rows_of(file), counts, _BATCH_SIZE)


def _rows_of(file: "pq.ParquetFile") -> Iterator[tuple[VideoEntry, np.ndarray]]:
    for rows in file.iter_batches(_BATCH_SIZE):
        yield from zip(entries_of(rows), embeddings_of(rows), strict=True)


__all__ = ["export_index", "import_index", "write_export"]
