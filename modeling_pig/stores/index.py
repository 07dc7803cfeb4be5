"""The index of video embeddings: checks what goes in and out, and leaves the keeping to the store that its URI names.

A URI with a scheme (`http://host:19530/COLLECTION`, also `https`, `tcp`; the collection is `videos` by default) is a
Milvus server, reached by `milvus_store.MilvusStore`; anything else is a folder, kept by `lance_store.LanceStore`. Both
are [`VideoStore`]s, made as `Store(uri, metadata or None)`: with `metadata` (a dict) the store is made where there is
none, without it `FileNotFoundError` is raised; `store.is_new` tells which.
"""

import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modeling_pig import __version__

from .conditions import Condition, parse_where
from .video_store import VideoStore, embeddings_of, row_schema


if TYPE_CHECKING:
    import pyarrow as pa
    import torch


FORMAT = 2  # of what is stored; 1 held whole files only, without size and time


@dataclass(frozen=True)
class IndexInfo:
    """What an index was made with: embeddings of different models must not meet in one.

    model (`str`): the model's name on the Hub, or its folder.
    model_fingerprint (`str`): of its weights, see [`model_fingerprint`].
    width (`int`): numbers an embedding, D.
    num_frames (`int`, *optional*): frames that an embedding was made from.
    model_revision (`str`, *optional*): commit on the Hub, where the model came from there. For the record: models are
        loaded by name, and held to the fingerprint.
    storage (`str`): numbers as they are kept, "float16" or "float32". Filled in by the index, as are the rest.
    created (`str`): time in UTC, ISO 8601.
    version (`str`): of this package.
    format (`int`): of what is stored.
    """

    model: str
    model_fingerprint: str
    width: int
    num_frames: int | None = None
    model_revision: str | None = None
    storage: str = ""
    created: str = ""
    version: str = __version__
    format: int = FORMAT


@dataclass(frozen=True)
class VideoEntry:
    """What one stored vector stands for: a whole file, or one window of it.

    path (`str`): of the file, absolute.
    start, end (`float`, *optional*): seconds after the first frame; `None` for the whole file.
    duration (`float`, *optional*): of the file, in seconds.
    size, modified (`int`, *optional*): of the file: bytes, and the time of its last change in ns since 1970.
    content_hash (`str`, *optional*): SHA-256 of the file, in hexadecimal.
    """

    path: str
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    size: int | None = None
    modified: int | None = None
    content_hash: str | None = None

    @property
    def key(self) -> str:
        """Unique in an index: the path, with a media fragment for a window, `/videos/a.mp4#t=30,60`."""
        if self.start is None and self.end is None:
            return self.path
        return f"{self.path}#t={_seconds(self.start)},{_seconds(self.end)}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}"


class FileState(NamedTuple):
    """What an index knows of a file: enough to tell whether it has changed. `segments` counts its entries."""

    size: int | None
    modified: int | None
    content_hash: str | None
    segments: int


@dataclass(frozen=True)
class SearchResult:
    """One answer: `rank` from 1, `score` the cosine of query and video, `duration` of the file in seconds where known,
    `start` and `end` of the window that was found, in seconds; `None` for a whole file."""

    rank: int
    score: float
    path: str
    duration: float | None
    start: float | None = None
    end: float | None = None


_ENTRY_COLUMNS = [field.name for field in fields(VideoEntry)]


class VideoIndex:
    """Video embeddings, searched by cosine.

    Any number of processes may write and search at the same time; none waits for another. Of two that write the same
    entries, the later stays; they must cut a file into the same windows. Objects may be shared by threads.

    Args:
        uri (`str`): a folder, by custom named `*.lance`; or a Milvus server, `http://host:19530/COLLECTION`.
        info (`IndexInfo`, *optional*): the model whose embeddings will be added. Creates the index where there is
            none; without it an index must be there.

    Attributes:
        info (`IndexInfo`): what the index was made with.
        is_new (`bool`): whether this object made it.

    Raises:
        FileNotFoundError: no index there, and no `info` to make one with.
        ValueError: an index of another model or of another format, or a folder or file that is something else.
        OSError: a place that cannot be read or written.
    """

    def __init__(self, uri: str | os.PathLike, info: IndexInfo | None = None):
        self.uri = os.fspath(uri)
        metadata = None
        if info is not None:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            metadata = asdict(replace(info, created=now, version=__version__, format=FORMAT))
        self._store = _open_store(self.uri, metadata)
        self.is_new = self._store.is_new
        self.info = read_info(self._store.metadata, f"The index {self.uri}")
        self._schema = row_schema(self.info.width, self.info.storage)
        if info is not None:
            self.refuse_other_model(info)

    def refuse_other_model(self, info: IndexInfo) -> None:
        """Raises `ValueError` unless `info` is of the model that made this index."""
        same_frames = None in (info.num_frames, self.info.num_frames) or info.num_frames == self.info.num_frames
        if (info.model_fingerprint, info.width) != (self.info.model_fingerprint, self.info.width) or not same_frames:
            raise ValueError(
                f"The index {self.uri} was made by the model {_in_words(self.info)}, not by {_in_words(info)}: use "
                "that model, or another index."
            )

    @property
    def search_method(self) -> dict[str, Any]:
        """How it is searched now: `{"method": "exact", ...}`, or the approximate index with its parameters."""
        return self._store.search_method

    def __len__(self) -> int:
        return self._store.count()

    def upsert(self, entries: Sequence[VideoEntry], embeddings: "torch.Tensor | np.ndarray") -> None:
        """Adds entries, in the place of everything that the index holds of their files, all at once or not at all
        (Milvus: a file at a time). All entries of one file must be in one call.

        Args:
            entries (`Sequence[VideoEntry]`): N different ones.
            embeddings (`torch.Tensor` of shape `(N, D)`): normalised.

        Raises:
            ValueError: embeddings of another width, not finite or not normalised; an entry that is there twice; a
                path that is not valid Unicode.
            OSError: the index cannot be written; it is as it was before.
        """
        vectors = self._checked(embeddings, len(entries))
        # Also catches NaN and infinity, whose norms compare as false.
        if not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3):
            raise ValueError("Embeddings must be finite and normalised (length 1): use torch.nn.functional.normalize.")
        if entries:
            self._store.upsert(make_rows(entries, vectors, self._schema))

    def _checked(self, embeddings: "torch.Tensor | np.ndarray", count: int | None = None) -> np.ndarray:
        vectors = np.asarray(embeddings, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.info.width or count not in (None, len(vectors)):
            wanted = "queries" if count is None else count
            raise ValueError(f"Expected embeddings of shape ({wanted}, {self.info.width}); got {vectors.shape}.")
        return vectors

    def delete(self, paths: Sequence[str]) -> int:
        """Removes all entries of these files, and tells how many; files that are not there are passed over."""
        return self._store.delete(paths) if paths else 0

    def search(
        self, embeddings: "torch.Tensor | np.ndarray", k: int = 10, where: str | Condition | None = None
    ) -> list[list[SearchResult]]:
        """The k entries nearest to each embedding, best first; all of them if there are fewer. Equal scores come in
        order of key: of all entries where the search is exact, of those found where it is approximate.

        Args:
            embeddings (`torch.Tensor` of shape `(Q, D)`): of any length but zero.
            k (`int`): 1 or more.
            where (`str` or `Condition`, *optional*): search only entries for which this holds, `"duration < 60 and
                path like '%holiday%'"`: see [`parse_where`].

        Raises:
            ValueError: k under 1, embeddings of another width, not finite or zero, a `where` that is none.
        """
        if (k := operator.index(k)) < 1:
            raise ValueError(f"k is {k}; ask for 1 answer or more.")
        vectors = self._checked(embeddings)
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not np.all((lengths > 0) & np.isfinite(lengths)):
            raise ValueError("Embeddings to search for must be finite and not zero.")
        condition = parse_where(where) if isinstance(where, str) else where
        if not len(vectors):
            return []
        vectors = (vectors / lengths).astype(np.float32)
        return [
            [
                SearchResult(rank, float(score), **row)
                for rank, (score, row) in enumerate(
                    zip(scores, rows.drop_columns(["key"]).to_pylist(), strict=True), start=1
                )
            ]
            for scores, rows in zip(*self._store.search(vectors, k, condition), strict=True)
        ]

    def get(self, path: str) -> list[tuple[VideoEntry, np.ndarray]]:
        """All entries of a file with their embeddings (D,) float32, in order of start; none if it is not there."""
        rows = self._store.rows([path])
        pairs = list(zip(entries_of(rows), embeddings_of(rows).astype(np.float32), strict=True))
        return sorted(pairs, key=lambda pair: pair[0].start or 0.0)

    def files(self) -> dict[str, FileState]:
        """What is known of each file that the index holds, by path. Reads no embeddings."""
        found: dict[str, FileState] = {}
        for batch in self._store.scan(["path", "size", "modified", "content_hash"], 100_000):
            columns = (batch[name].to_pylist() for name in ("path", "size", "modified", "content_hash"))
            for path, size, modified, content_hash in zip(*columns, strict=True):
                state, known = (size, modified, content_hash), found.get(path)
                if known is not None and known[:3] != state:
                    state = (None, None, None)  # writing it was interrupted: it counts as changed
                found[path] = FileState(*state, (known.segments if known else 0) + 1)
        return found

    def entries(self, paths: Sequence[str]) -> tuple[list[VideoEntry], np.ndarray]:
        """All entries of some files, in any order, with their embeddings (N, D) as they are stored."""
        rows = self._store.rows(paths)
        return entries_of(rows), embeddings_of(rows)

    def batches(self, size: int = 10_000) -> Iterator[tuple[list[VideoEntry], np.ndarray]]:
        """Everything that the index holds: entries with their embeddings (at most `size`, D), as they are stored."""
        for batch in self._store.scan([*_ENTRY_COLUMNS, "embedding"], size):
            yield entries_of(batch), embeddings_of(batch)

    def optimize(self) -> dict[str, Any]:
        """Merges the small files that many writes leave behind, and makes the index for approximate search where the
        size calls for one. Others may write meanwhile. Returns the [`search_method`] from then on."""
        self._store.optimize()
        return self.search_method

    def drop_if_new(self) -> None:
        """Removes the index again if this object made it: for when there turned out to be nothing to put in."""
        if self.is_new:
            self._store.drop()


def _open_store(uri: str, metadata: dict[str, Any] | None) -> VideoStore:
    if re.match(r"(https?|tcp)://", uri):
        from .milvus_store import MilvusStore

        return MilvusStore(uri, metadata)
    if not uri or "://" in uri:
        raise ValueError(f"{uri!r} names no index: give a folder, or a Milvus server, http://host:19530/COLLECTION.")
    from .lance_store import LanceStore

    return LanceStore(uri, metadata)


def read_info(metadata: dict[str, Any], place: str) -> IndexInfo:
    """What is stored about an index. Raises `ValueError`, which says what to do, for another format than this one."""
    stored = metadata.get("format", 1)
    if stored < FORMAT:
        raise ValueError(
            f"{place} has the format of an older modeling-pig ({metadata.get('version')}), which cannot be read. Make "
            f"it anew in another place: pig index FOLDER --model {metadata.get('model', 'MODEL')} --index NEW"
        )
    if stored > FORMAT:
        raise ValueError(
            f"{place} was made by a newer modeling-pig ({metadata.get('version')}; this is {__version__}): "
            "pip install --upgrade modeling-pig"
        )
    return IndexInfo(**metadata)


def make_rows(entries: Sequence[VideoEntry], vectors: np.ndarray, schema: "pa.Schema") -> "pa.Table":
    """Entries with their embeddings (N, D) as rows of a store, see [`row_schema`]."""
    import pyarrow as pa

    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(f"{twice!r} is there twice: an entry goes into the index once.")
    vector_type = schema.field("embedding").type
    numbers = pa.array(vectors.astype(vector_type.value_type.to_pandas_dtype()).ravel())
    columns: dict[str, Any] = {name: [getattr(entry, name) for entry in entries] for name in _ENTRY_COLUMNS}
    columns |= {"key": keys, "name": [os.path.basename(entry.path) for entry in entries]}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(numbers, vector_type.list_size)
    try:
        return pa.table(columns, schema=schema)
    except UnicodeEncodeError as error:
        raise ValueError(f"A path is not valid Unicode ({error.object!r}): rename the file.") from error


def entries_of(rows: "pa.Table | pa.RecordBatch") -> list[VideoEntry]:
    """The entries that rows stand for."""
    return [VideoEntry(**row) for row in rows.select(_ENTRY_COLUMNS).to_pylist()]


def upsert_whole_files(
    index: VideoIndex, pairs: Iterable[tuple[VideoEntry, np.ndarray]], counts: Mapping[str, int], batch_size: int
) -> None:
    """Writes entries with their embeddings (D,) that come in any order, some `batch_size` at a time: those of a file
    together, once there are as many as `counts` says. A file of which fewer come is left as it is."""
    gathered: dict[str, list[tuple[VideoEntry, np.ndarray]]] = {}
    complete: list[tuple[VideoEntry, np.ndarray]] = []

    def write() -> None:
        entries, embeds = zip(*complete, strict=True)
        index.upsert(entries, np.stack(embeds))
        complete.clear()

    for entry, embed in pairs:
        own = gathered.setdefault(entry.path, [])
        own.append((entry, embed.copy()))  # not a view that keeps all that it was read with
        if len(own) == counts[entry.path]:
            complete += gathered.pop(entry.path)
        if len(complete) >= batch_size:
            write()
    if complete:
        write()


def _in_words(info: IndexInfo) -> str:
    frames = "" if info.num_frames is None else f", {info.num_frames} frames a video"
    return f"{info.model} ({info.width} numbers a video{frames}, weights {info.model_fingerprint})"


__all__ = ["FORMAT", "FileState", "IndexInfo", "SearchResult", "VideoEntry", "VideoIndex"]
