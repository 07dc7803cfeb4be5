"""Export an index to one Parquet file and import it: for other tools, and to move an index between stores."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import replace_file
from .columns import columns_of
from .index import VideoIndex, upsert_whole_files
from .records import IndexInfo, make_rows, read_context, read_embeddings, read_entries, row_schema
from .results import EmbeddedEntry, EntryBatch


if TYPE_CHECKING:
    import pyarrow.parquet as pq


_METADATA_KEY = b"pig"
_BATCH_SIZE = 10_000  # rows in memory, per row group and per write


def export_index(index: VideoIndex, path: str | os.PathLike) -> int:
    """Export all entries of an index to a Parquet file, see [`write_export`]. Holds one batch of rows in memory.

    Args:
        index (`VideoIndex`): index to export.
        path (`str` or `os.PathLike`): file to write or replace.

    Returns:
        `int`: number of rows.

    Raises:
        OSError: the index cannot be read, or the file cannot be written.
    """
    return write_export(path, index.info, index.batches(_BATCH_SIZE), index.columns)


def write_export(
    path: str | os.PathLike,
    info: IndexInfo,
    batches: Iterable[EntryBatch],
    columns: Mapping[str, str] | None = None,
) -> int:
    """Write entries with their embeddings to a Parquet file: one row per entry, one row group per batch.

    The columns are those of [`VideoEntry`], `key`, `name` and `embedding` (D) in float32, which every tool reads,
    `context` (S * D) in float16 if the index stores context tokens, and the owner's columns. The metadata of the file
    hold `info` as JSON under the key `pig`. An existing file is replaced when the new file is complete.

    Args:
        path (`str` or `os.PathLike`): file to write or replace.
        info (`IndexInfo`): the model of the embeddings.
        batches (`Iterable[EntryBatch]`): batches of entries with their embeddings.
        columns (`Mapping[str, str]`, *optional*): the owner's columns, name -> type.

    Returns:
        `int`: number of rows.

    Raises:
        OSError: the file cannot be written.
    """
    import pyarrow.parquet as pq

    schema = row_schema(info.embedding_dim, "float32", info.num_context_tokens, columns)
    schema = schema.with_metadata({_METADATA_KEY: json.dumps(info.to_record())})
    count = 0
    with replace_file(path) as partial:
        with _write_errors(path):
            writer = pq.ParquetWriter(partial, schema)
        try:
            for batch in batches:  # outside of `_write_errors`: an unreadable index names itself
                rows = make_rows(batch.entries, batch.embeddings, schema, batch.context_embeds)
                with _write_errors(path):
                    writer.write_table(rows)
                count += len(rows)
        finally:
            with _write_errors(path):
                writer.close()
    return count


@contextmanager
def _write_errors(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {str(error).strip().splitlines()[0]}") from error


def import_index(
    path: str | os.PathLike, uri: str | os.PathLike, storage_options: Mapping[str, str] | None = None
) -> VideoIndex:
    """Import a file that [`export_index`] wrote into an index, which is created if it does not exist.

    Entries of other files in the index stay. An interrupted import can be repeated. Memory holds one batch of rows,
    the paths of all files and, for a file whose rows are spread over the Parquet file, its rows so far.

    Args:
        path (`str` or `os.PathLike`): Parquet file to read.
        uri (`str` or `os.PathLike`): URI of the index, see [`VideoIndex`].
        storage_options (`Mapping[str, str]`, *optional*): options for object storage, see [`VideoIndex`].

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an export of an index, or its model is not the model of the index.
        OSError: the file cannot be read, or the index cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: give a file that `pig export` wrote.")
    try:
        with pq.ParquetFile(path) as file:
            index = VideoIndex(uri, _read_info(file, path), storage_options)
            try:
                index.add_columns(columns_of(file.schema_arrow))
                counts: Counter[str] = Counter()
                for rows in file.iter_batches(_BATCH_SIZE, columns=["path"]):
                    counts.update(rows["path"].to_pylist())
                upsert_whole_files(index, _read_entries(file, index.info), counts, _BATCH_SIZE)
            except BaseException:
                with suppress(OSError):
                    index.drop_if_new()
                raise
        index.optimize()
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a readable Parquet file: {reason}. Export the index again.") from error
    return index


def _read_info(file: "pq.ParquetFile", path: str | os.PathLike) -> IndexInfo:
    record = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
    if record is None:
        raise ValueError(
            f"{path} is not an export of an index: its metadata lack the key `pig`. Give a file that `pig export` "
            "wrote."
        )
    info = IndexInfo.from_record(json.loads(record), f"The export {path}")
    columns = row_schema(info.embedding_dim, "float32", info.num_context_tokens).names
    if missing := set(columns) - set(file.schema_arrow.names):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}: export the index again.")
    return info


def _read_entries(file: "pq.ParquetFile", info: IndexInfo) -> Iterator[EmbeddedEntry]:
    for rows in file.iter_batches(_BATCH_SIZE):
        context_embeds = read_context(rows, info.embedding_dim)
        yield from EntryBatch(read_entries(rows), read_embeddings(rows), context_embeds).embedded()


__all__ = ["export_index", "import_index", "write_export"]
