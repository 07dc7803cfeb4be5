"""Define what an index stores: one [`IndexInfo`], and per [`VideoEntry`] one row of an Arrow table."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling_pig import __version__

from .columns import arrow_fields, columns_of


if TYPE_CHECKING:
    import pyarrow as pa


FORMAT = 2  # format 1 stored whole files only, without size and time
FORMAT_WITH_CONTEXT = 3  # the same with context tokens
FORMAT_OF_ENCODERS = 4  # the same with `kind` and `dtype`, of models that are not PIG or not in float32
FORMAT_OF_SHOTS = 5  # the same with `shots`


@dataclass(frozen=True)
class IndexInfo:
    """Model and storage of an index. One index holds embeddings of one model only.

    Args:
        model (`str`): name of the model on the Hub, or its folder.
        model_fingerprint (`str`): hash of the model's weights.
        embedding_dim (`int`): dimensions of an embedding, D.
        num_frames (`int`, *optional*): frames per clip that the model reads.
        model_revision (`str`, *optional*): commit of the model on the Hub. For the record only: models are loaded by
            name and compared by fingerprint.
        num_context_tokens (`int`, *optional*): context tokens per entry, S, that the index stores to re-rank by; by
            default none.
        kind (`str`): how the model embeds videos, such as "pig" or "mean of frames".
        dtype (`str`): precision of the model that created the index. Models of other precisions may add to it.
        shots (`tuple[float, float]`, *optional*): shortest and longest shot in seconds, if videos are split into
            shots; by default into segments of one length.
        storage (`str`): type of the stored embeddings, "float16" or "float32". The index sets this argument and those
            that follow.
        created (`str`): UTC time of creation, ISO 8601.
        version (`str`): version of this package that created the index.
        format (`int`): version of the stored format.
    """

    model: str
    model_fingerprint: str
    embedding_dim: int
    num_frames: int | None = None
    model_revision: str | None = None
    num_context_tokens: int | None = None
    kind: str = "pig"
    dtype: str = "float32"
    shots: tuple[float, float] | None = None
    storage: str = ""
    created: str = ""
    version: str = __version__
    format: int = FORMAT

    @property
    def required_format(self) -> int:
        """The earliest format that holds these fields."""
        if self.shots is not None:
            return FORMAT_OF_SHOTS
        if (self.kind, self.dtype) != ("pig", "float32"):
            return FORMAT_OF_ENCODERS
        return FORMAT if self.num_context_tokens is None else FORMAT_WITH_CONTEXT

    def to_record(self) -> dict[str, Any]:
        """Return the record that stores and Parquet files hold as JSON. `embedding_dim` is stored as `width`."""
        record = asdict(self)
        if self.num_context_tokens is None:  # earlier versions read such an index too
            del record["num_context_tokens"]
        if self.format < FORMAT_OF_ENCODERS:
            del record["kind"], record["dtype"]
        if self.shots is None:
            del record["shots"]
        return {"width" if name == "embedding_dim" else name: value for name, value in record.items()}

    @classmethod
    def from_record(cls, record: dict[str, Any], source: str) -> "IndexInfo":
        """Read a record that [`to_record`] returned.

        Args:
            record (`dict[str, Any]`): stored record.
            source (`str`): name of the index or file for error messages, such as "The index videos.lance".

        Raises:
            ValueError: the record has a format before `FORMAT` or after `FORMAT_OF_SHOTS`.
        """
        stored = record.get("format", 1)
        if stored < FORMAT:
            raise ValueError(
                f"{source} was written by an older modeling-pig ({record.get('version')}) in a format that this "
                "version cannot read. Rebuild the index under a new path: pig index FOLDER --model "
                f"{record.get('model', 'MODEL')} --index NEW"
            )
        if stored > FORMAT_OF_SHOTS:
            raise ValueError(
                f"{source} was written by a newer modeling-pig ({record.get('version')}; this is {__version__}). "
                "Install the version that wrote it, or a newer one."
            )
        if record.get("shots") is not None:
            record = {**record, "shots": tuple(record["shots"])}
        return cls(**{"embedding_dim" if name == "width" else name: value for name, value in record.items()})


@dataclass(frozen=True)
class VideoEntry:
    """Source of one stored embedding: a whole video file, or one segment of it.

    Args:
        path (`str`): absolute path of the file, or its address, such as `s3://bucket/a.mp4`.
        start, end (`float`, *optional*): segment, in seconds after the start of the file; `None` for a whole file.
        duration (`float`, *optional*): duration of the file in seconds.
        size (`int`, *optional*): size of the file in bytes.
        modified (`int`, *optional*): time of the file's last change, in ns since 1970; negative for a remote file
            without a time, see [`RemoteState`].
        content_hash (`str`, *optional*): SHA-256 of the file in hexadecimal, or [`make_content_id`].
        metadata (`Mapping[str, Any]`, *optional*): values of the owner's columns, see [`VideoIndex.add_columns`].
            `None` in a write: the index keeps the values that it holds for the entry.
    """

    path: str
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    size: int | None = None
    modified: int | None = None
    content_hash: str | None = None
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def key(self) -> str:
        """Unique key in an index: the path, for a segment with a media fragment (`/videos/a.mp4#t=30,60`)."""
        if self.start is None and self.end is None:
            return self.path
        return f"{self.path}#t={_format_seconds(self.start)},{_format_seconds(self.end)}"


def _format_seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}"


CONTEXT_COLUMN = "context"
ENTRY_COLUMNS = [entry_field.name for entry_field in fields(VideoEntry) if entry_field.name != "metadata"]
_BUILT_IN = {*ENTRY_COLUMNS, "key", "name", "embedding", CONTEXT_COLUMN}


def row_schema(
    embedding_dim: int,
    storage: str,
    num_context_tokens: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> "pa.Schema":
    """Return the columns of a row: key, path, name, start, end, duration, size, modified, content_hash, embedding.

    Args:
        embedding_dim (`int`): dimensions of an embedding, D.
        storage (`str`): "float16" for embeddings in half precision; otherwise they are float32.
        num_context_tokens (`int`, *optional*): adds the column context, with S tokens of D numbers in half precision.
        columns (`Mapping[str, str]`, *optional*): the owner's columns, name -> type.
    """
    import pyarrow as pa

    embedding = pa.list_(pa.float16() if storage == "float16" else pa.float32(), embedding_dim)
    context = []
    if num_context_tokens is not None:
        tokens = pa.list_(pa.float16(), num_context_tokens * embedding_dim)
        context.append(pa.field(CONTEXT_COLUMN, tokens, nullable=False))
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("duration", pa.float64()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),
            pa.field("content_hash", pa.string()),
            pa.field("embedding", embedding, nullable=False),
            *context,
            *arrow_fields(columns or {}),
        ]
    )


def make_rows(
    entries: Sequence[VideoEntry],
    embeddings: np.ndarray,
    schema: "pa.Schema",
    context_embeds: np.ndarray | None = None,
) -> "pa.Table":
    """Build the rows of N entries with their embeddings (N, D), and context tokens (N, S, D) if the schema has them.

    Raises:
        ValueError: an entry occurs twice, or a path is not valid Unicode.
    """
    import pyarrow as pa

    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        repeated = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(f"The entry {repeated!r} occurs twice: give each entry once.")
    columns: dict[str, Any] = {name: [getattr(entry, name) for entry in entries] for name in ENTRY_COLUMNS}
    columns |= {"key": keys, "name": [os.path.basename(entry.path) for entry in entries]}
    columns["embedding"] = _make_lists(embeddings, schema.field("embedding").type)
    for name in columns_of(schema):
        columns[name] = [(entry.metadata or {}).get(name) for entry in entries]
    if context_embeds is not None:
        columns[CONTEXT_COLUMN] = _make_lists(context_embeds, schema.field(CONTEXT_COLUMN).type)
    try:
        return pa.table(columns, schema=schema)
    except UnicodeEncodeError as error:
        raise ValueError(f"The path {error.object!r} is not valid Unicode: rename the file.") from error


def make_update(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> "pa.Table":
    """Build rows that replace the owner's columns (name -> type) of stored rows, by `key`."""
    import pyarrow as pa

    schema = pa.schema([pa.field("key", pa.string(), nullable=False), *arrow_fields(columns)])
    return pa.table({name: [record[name] for record in records] for name in schema.names}, schema=schema)


def _make_lists(arrays: np.ndarray, list_type: "pa.FixedSizeListType") -> "pa.FixedSizeListArray":
    import pyarrow as pa

    values = pa.array(arrays.astype(list_type.value_type.to_pandas_dtype()).ravel())
    return pa.FixedSizeListArray.from_arrays(values, list_type.list_size)


def read_entries(rows: "pa.Table | pa.RecordBatch") -> list[VideoEntry]:
    """Return the entries of rows, with their metadata if the rows have columns of the owner."""
    found = rows.select(ENTRY_COLUMNS).to_pylist()
    if not (own := own_columns(rows)):
        return [VideoEntry(**row) for row in found]
    values = rows.select(own).to_pylist()
    return [VideoEntry(**row, metadata=metadata) for row, metadata in zip(found, values, strict=True)]


def own_columns(rows: "pa.Table | pa.RecordBatch") -> list[str]:
    """Return the names of the owner's columns of rows."""
    return [name for name in rows.schema.names if name not in _BUILT_IN]


def read_embeddings(rows: "pa.Table | pa.RecordBatch") -> np.ndarray:
    """Return the embeddings (N, D) of rows, without a copy if they are one chunk."""
    return _read_lists(rows["embedding"])


def read_context(rows: "pa.Table | pa.RecordBatch", embedding_dim: int) -> np.ndarray | None:
    """Return the context tokens (N, S, D) of rows; `None` if the rows have none."""
    if CONTEXT_COLUMN not in rows.schema.names:
        return None
    tokens = _read_lists(rows[CONTEXT_COLUMN])
    return tokens.reshape(len(tokens), tokens.shape[1] // embedding_dim, embedding_dim)


def _read_lists(column: Any) -> np.ndarray:
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    width = column.type.list_size
    arrays = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in chunks]
    if not arrays:
        return np.empty((0, width), column.type.value_type.to_pandas_dtype())
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


__all__ = [
    "CONTEXT_COLUMN",
    "ENTRY_COLUMNS",
    "FORMAT",
    "FORMAT_OF_ENCODERS",
    "FORMAT_OF_SHOTS",
    "FORMAT_WITH_CONTEXT",
    "IndexInfo",
    "VideoEntry",
    "make_rows",
    "make_update",
    "own_columns",
    "read_context",
    "read_embeddings",
    "read_entries",
    "row_schema",
]
