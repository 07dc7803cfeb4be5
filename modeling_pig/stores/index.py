"""Store and search video embeddings with [`VideoIndex`]; the database behind an index follows from its URI.

A URI with the scheme `http`, `https` or `tcp` (`http://host:19530/COLLECTION`; by default the collection is `videos`)
is a collection on a Milvus server, see `milvus_store.MilvusStore`. A URI with the scheme `s3`, `gs` or `az`
(`s3://BUCKET/NAME.lance`) is in object storage, and any other URI is a folder, see `lance_store.LanceStore`.
"""

import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling_pig import __version__

from ..files import is_content_id
from ..remote import is_remote
from .columns import ID, TEXT, TEXTS, check_columns, convert, infer_type
from .conditions import Condition, In, parse_where
from .lance_location import is_object_storage
from .records import (
    CONTEXT_COLUMN,
    ENTRY_COLUMNS,
    FORMAT,
    FORMAT_OF_ENCODERS,
    FORMAT_OF_SHOTS,
    FORMAT_WITH_CONTEXT,
    IndexInfo,
    VideoEntry,
    make_rows,
    make_update,
    read_context,
    read_embeddings,
    read_entries,
    row_schema,
)
from .results import ContextResults, EmbeddedEntry, EntryBatch, FileState, SearchResult, TextResults, make_results
from .video_store import IndexVersion, VideoStore


if TYPE_CHECKING:
    import pyarrow as pa
    import torch


_FILES_PER_UPDATE = 1000  # whose rows are selected by their paths at a time
_ROWS_PER_UPDATE = 10_000  # whose metadata are written at a time


class VideoIndex:
    """Index of video embeddings, searched by cosine.

    Any number of processes may write and search at the same time; none waits for another. If two processes write the
    same file, the later write wins; both must cut the file into the same segments. Threads may share an index.

    Args:
        uri (`str` or `os.PathLike`): folder, by convention named `*.lance`, object storage (`s3://`, `gs://` or
            `az://BUCKET/NAME.lance`), or Milvus server (`http://host:19530/COLLECTION`).
        info (`IndexInfo`, *optional*): the model whose embeddings will be added. With `info` the index is created if
            it does not exist; without `info` it must exist.
        storage_options (`Mapping[str, str]`, *optional*): options of LanceDB for object storage, such as
            `{"region": "eu-west-1"}`; by default from the environment. Other indexes ignore them.

    Attributes:
        info (`IndexInfo`): the info that the index was created with.
        is_new (`bool`): whether this object created the index.

    Raises:
        FileNotFoundError: the index does not exist, and `info` is not given.
        ValueError: the index is of another model or format, or the folder or file is not an index.
        OSError: the index cannot be read or written.

    Example:

    ```python
    >>> from modeling_pig import VideoIndex

    >>> index = VideoIndex("videos.lance")
    >>> for result in index.search(query_embeddings, k=5, where="duration < 60")[0]:
    ...     print(result.rank, round(result.score, 3), result.path)
    ```"""

    def __init__(
        self,
        uri: str | os.PathLike,
        info: IndexInfo | None = None,
        storage_options: Mapping[str, str] | None = None,
    ):
        self.uri = os.fspath(uri)
        new_info = None
        if info is not None:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            new_info = replace(info, created=now, version=__version__, format=info.required_format)
        self._store = _open_store(self.uri, new_info, storage_options)
        self.is_new = self._store.is_new
        self.info = self._store.info
        if info is not None:
            self.refuse_other_model(info)

    def refuse_other_model(self, info: IndexInfo) -> None:
        """Raise `ValueError` unless `info` describes the model that made this index."""
        known = self.info
        same_frames = None in (info.num_frames, known.num_frames) or info.num_frames == known.num_frames
        same_weights = (info.model_fingerprint, info.kind) == (known.model_fingerprint, known.kind)
        if not (same_weights and same_frames and info.embedding_dim == known.embedding_dim):
            raise ValueError(
                f"The index {self.uri} was made by the model {_describe_model(known)}, not by "
                f"{_describe_model(info)}: use that model, or another index."
            )
        if info.num_context_tokens not in (None, known.num_context_tokens):
            stored = known.num_context_tokens or "no"
            raise ValueError(
                f"The index {self.uri} was created with {stored} context tokens per entry, not with "
                f"{info.num_context_tokens}: use another index."
            )

    @property
    def search_method(self) -> dict[str, Any]:
        """Current search method: `{"method": "exact"}`, or name, parameters and measured recall of the ANN index."""
        return self._store.search_method

    @property
    def columns(self) -> dict[str, str]:
        """The owner's columns and `id`, name -> type: "text", "integer", "float", "bool", "time" or "texts"."""
        return self._store.columns

    def add_columns(self, columns: Mapping[str, str]) -> None:
        """Add columns of one's own, without values: [`set_metadata`] and [`upsert`] write them.

        Args:
            columns (`Mapping[str, str]`): name -> type, see [`columns`]. A column that exists with this type stays.

        Raises:
            ValueError: a name is not valid or reserved, a type is unknown, or a column exists with another type.
            OSError: the index cannot be written.
        """
        check_columns(columns)
        if new := self._missing(columns):
            self._store.add_columns(new)
            self._missing(columns)  # another process may have added one of them with another type

    def _missing(self, columns: Mapping[str, str]) -> dict[str, str]:
        """Return the columns that the index lacks; raise `ValueError` if it has one of them with another type."""
        known = self.columns
        for name, kind in columns.items():
            if known.get(name, kind) != kind:
                raise ValueError(f"The index {self.uri} has the column {name} of type {known[name]}, not {kind}.")
        return {name: kind for name, kind in columns.items() if name not in known}

    def adds_ids(self) -> bool:
        """Add the column `id` if the index can have it; return whether it has it.

        Two kinds of indexes of earlier versions cannot: those whose owner has a column `id` of another type, and
        collections on Milvus without columns of the owner.
        """
        try:
            self.add_columns({ID: TEXT})
        except ValueError:
            return False
        return True

    def set_metadata(self, metadata: Mapping[str, Mapping[str, Any]]) -> None:
        """Set values of the owner's columns, without encoding videos again.

        Args:
            metadata (`Mapping[str, Mapping[str, Any]]`): path in the index -> values by column. A new column is added
                with the type of its values. Columns that are not named keep their values; `None` removes a value.

        Raises:
            ValueError: the index does not hold a path; a column or a value is not valid. Nothing is written.
            OSError: the index cannot be written.
        """
        new, converted = self._convert_metadata(metadata)
        named = {name for values in metadata.values() for name in values}
        known = {name: kind for name, kind in self.columns.items() if name in named}
        rows = self.rows_of(list(metadata), ["key", "path", *known])
        if missing := sorted(metadata.keys() - set(rows["path"].to_pylist())):
            raise ValueError(f"The index {self.uri} does not hold {missing[0]!r}: index the file first.")
        self.add_columns(new)
        for start in range(0, len(rows), _ROWS_PER_UPDATE):
            part = rows.slice(start, _ROWS_PER_UPDATE).to_pylist()
            records = [{**dict.fromkeys(new), **row, **converted[row["path"]]} for row in part]
            self._store.update(make_update(records, known | new))

    def set_entry_metadata(self, metadata: Mapping[str, Mapping[str, Any]]) -> None:
        """Set values of the owner's columns of single entries, such as the words that are spoken in a segment.

        Args:
            metadata (`Mapping[str, Mapping[str, Any]]`): key of an entry, see [`VideoEntry`] -> values of the same
                columns for all entries, which the index has. Keys that the index does not hold are ignored.

        Raises:
            ValueError: a column or a value is not valid.
            OSError: the index cannot be written.
        """
        names = {name: None for values in metadata.values() for name in values}
        new, converted = self._convert_metadata(metadata)
        if new or any(values.keys() != names.keys() for values in metadata.values()):
            raise ValueError(f"Expected values of the same columns of {self.uri} for all entries: {', '.join(names)}.")
        if metadata:
            own = {name: kind for name, kind in self.columns.items() if name in names}
            self._store.update(make_update([{"key": key, **values} for key, values in converted.items()], own))

    def _convert_metadata(
        self, metadata: Mapping[str, Mapping[str, Any]]
    ) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
        """Return the new columns, name -> type, and the values in the types of their columns."""
        known = self.columns
        values: dict[str, list[Any]] = {}
        for of_file in metadata.values():
            for name, value in of_file.items():
                if name not in known:
                    values.setdefault(name, []).append(value)
        new = {name: TEXT if name == ID else infer_type(found) for name, found in values.items()}
        check_columns(new)
        kinds = known | new
        converted = {
            path: {name: convert(value, kinds[name], f"{path}: {name}") for name, value in of_file.items()}
            for path, of_file in metadata.items()
        }
        return new, converted

    def rows_of(self, paths: Sequence[str], columns: Sequence[str]) -> "pa.Table":
        """Return columns of the entries of files, in any order; the columns include `path`.

        Raises:
            OSError: the index cannot be read.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if not paths:
            batches = []
        elif len(paths) <= _FILES_PER_UPDATE:
            batches = list(self._store.scan(columns, 10_000, In("path", tuple(paths))))
        else:  # one pass over the index instead of one per thousand files
            held = pa.array(paths)
            batches = [b.filter(pc.is_in(b["path"], held)) for b in self._store.scan(columns, 10_000)]
        return pa.Table.from_batches(batches) if batches else pa.table({name: [] for name in columns})

    def draw_embeddings(self, count: int) -> np.ndarray:
        """Return the embeddings of entries drawn at random, the same for the same content of an index in a folder.

        Args:
            count (`int`): number of entries at most.

        Returns:
            `np.ndarray` of shape `(N, D)`: as stored, in float16 or float32, in random order.

        Raises:
            OSError: the index cannot be read.
        """
        return self._store.draw_embeddings(count)

    def scan(
        self, columns: Sequence[str], where: str | Condition | None = None, size: int = 10_000
    ) -> "Iterator[pa.RecordBatch]":
        """Yield columns of all entries, in batches of about `size` rows, in any order. Reads no other columns.

        Args:
            columns (`Sequence[str]`): the fields of [`VideoEntry`], `key`, `name` and the owner's columns.
            where (`str` or `Condition`, *optional*): only entries that meet this condition, see [`search`].
            size (`int`): rows per batch.

        Raises:
            ValueError: `where` is not a valid condition.
            OSError: the index cannot be read.
        """
        return self._store.scan(columns, size, self.parse_where(where))

    @property
    def data_version(self) -> Any:
        """Value that changes with every write of any process; `None` if the store cannot tell (Milvus)."""
        return self._store.data_version

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._store.count()

    def upsert(
        self,
        entries: Sequence[VideoEntry],
        embeddings: "torch.Tensor | np.ndarray",
        context_embeds: "torch.Tensor | np.ndarray | None" = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        content_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Add entries and remove all other entries of the same files.

        In LanceDB, the whole call is one atomic write; on Milvus, files are written one by one. All entries of one
        file must be in one call.

        Args:
            entries (`Sequence[VideoEntry]`): N different entries.
            embeddings (`torch.Tensor` or `np.ndarray` of shape `(N, D)`): normalised embeddings.
            context_embeds (`torch.Tensor` or `np.ndarray` of shape `(N, S, D)`, *optional*): context tokens, if the
                index stores them (`info.num_context_tokens`). They are stored in float16.
            metadata (`Sequence[Mapping[str, Any]]`, *optional*): values of the owner's columns of each entry; a new
                column is added with the type of its values. By default those of the entries; the index keeps the
                values that it holds for a file whose entries have none.
            content_ids (`Mapping[str, str]`, *optional*): path -> [`make_content_id`], the `id` of a file to which
                its owner gave none.

        Raises:
            ValueError: embeddings or context tokens have another shape or are not finite; embeddings are not
                normalised; context tokens are missing, or not stored; an entry occurs twice; a path is not valid
                Unicode; a column or a value of the metadata is not valid.
            OSError: the index cannot be written; it is unchanged.
        """
        values = self._check_shape(embeddings, len(entries))
        # Also refuses NaN and infinity, whose norms compare as false.
        if not np.all(np.abs(np.linalg.norm(values, axis=1) - 1) < 1e-3):
            raise ValueError("Embeddings must be finite and normalised (length 1): use torch.nn.functional.normalize.")
        context = self._check_context(context_embeds, len(entries))
        if metadata is not None:
            if len(metadata) != len(entries):
                raise ValueError(f"Expected metadata of {len(entries)} entries, found {len(metadata)}.")
            entries = [replace(entry, metadata=of_entry) for entry, of_entry in zip(entries, metadata, strict=True)]
        if entries:
            entries = self._with_metadata(entries, content_ids or {})
            schema = row_schema(self.info.embedding_dim, self.info.storage, self.info.num_context_tokens, self.columns)
            self._store.upsert(make_rows(entries, values, schema, context))

    def _with_metadata(self, entries: Sequence[VideoEntry], content_ids: Mapping[str, str]) -> Sequence[VideoEntry]:
        """Convert the metadata of entries, and fill in what the index holds for entries that have none.

        An entry that is new, because its file has other segments now, takes the values that the segments share.
        """
        content_ids = content_ids if content_ids and self.adds_ids() else {}
        given: Mapping[str, Mapping[str, Any]] = {entry.key: entry.metadata for entry in entries if entry.metadata}
        if given:
            new, given = self._convert_metadata(given)
            self.add_columns(new)
        if not (own := self.columns):
            return entries
        held: dict[str, Mapping[str, Any]] = {}  # by key
        shared: dict[str, dict[str, Any]] = {}  # values of all entries of a file, by path
        silent = list(dict.fromkeys(entry.path for entry in entries if entry.metadata is None))
        for row in self.rows_of(silent, ["key", "path", *own]).to_pylist():
            key, path = row.pop("key"), row.pop("path")
            held[key], known = row, shared.get(path, row)
            shared[path] = {name: value if known[name] == value else None for name, value in row.items()}

        def values_of(entry: VideoEntry) -> Mapping[str, Any]:
            is_silent = entry.metadata is None
            values = held.get(entry.key, shared.get(entry.path, {})) if is_silent else given.get(entry.key, {})
            made = content_ids.get(entry.path)
            if made is not None and (not values.get(ID) or is_content_id(values[ID])):
                values = {**values, ID: made}
            return values

        return [replace(entry, metadata=values_of(entry)) for entry in entries]

    def _check_context(self, context_embeds: "torch.Tensor | np.ndarray | None", count: int) -> np.ndarray | None:
        num_tokens = self.info.num_context_tokens
        if (context_embeds is None) != (num_tokens is None):
            raise ValueError(
                f"The index {self.uri} stores {num_tokens or 'no'} context tokens per entry: give context_embeds with "
                "the embeddings exactly if there are some."
            )
        if context_embeds is None:
            return None
        with np.errstate(over="ignore"):  # infinity is refused below
            tokens = np.asarray(context_embeds).astype(np.float16)
        expected = (count, num_tokens, self.info.embedding_dim)
        if tokens.shape != expected or not np.isfinite(tokens).all():
            raise ValueError(f"Expected finite context tokens of shape {expected}, found shape {tokens.shape}.")
        return tokens

    def _check_shape(self, embeddings: "torch.Tensor | np.ndarray", count: int | None = None) -> np.ndarray:
        values = np.asarray(embeddings, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != self.info.embedding_dim or count not in (None, len(values)):
            expected = "Q" if count is None else count
            raise ValueError(
                f"Expected embeddings of shape ({expected}, {self.info.embedding_dim}), found {values.shape}."
            )
        return values

    def delete(self, paths: Sequence[str]) -> int:
        """Remove all entries of the files at `paths`. Files that are not in the index are ignored.

        Args:
            paths (`Sequence[str]`): paths as in the index. The index holds absolute paths; a relative path that it
                does not hold is refused.

        Returns:
            `int`: number of removed entries.

        Raises:
            ValueError: a relative path is not in the index.
            OSError: the index cannot be written.
        """
        if relative := [path for path in paths if not (os.path.isabs(path) or is_remote(path))]:
            held = {entry.path for entry in self.entries(relative).entries}
            if unknown := [path for path in relative if path not in held]:
                raise ValueError(
                    f"The index {self.uri} does not hold {unknown[0]!r}, a relative path: give absolute paths, such "
                    f"as {os.path.abspath(unknown[0])!r}."
                )
        return self._store.delete(paths) if paths else 0

    def warm(self) -> None:
        """Read into memory what searches read, so that the first searches are as fast as later ones.

        Raises:
            OSError: the index cannot be read.
        """
        self._store.warm()

    def search(
        self,
        query_embeddings: "torch.Tensor | np.ndarray",
        k: int = 10,
        where: str | Condition | None = None,
    ) -> list[list[SearchResult]]:
        """Find the k entries nearest to each query embedding, best first.

        Entries with equal scores are in order of path and start. With an ANN index this holds among the entries that
        it finds. The results for a smaller `k` are the first of those for a larger one.

        Args:
            query_embeddings (`torch.Tensor` or `np.ndarray` of shape `(Q, D)`): query embeddings of any length but 0.
            k (`int`): results per query, at least 1. If there are fewer entries, all of them are results.
            where (`str` or `Condition`, *optional*): condition that all results meet, such as `"duration < 60 and path
                like '%holiday%'"`; see [`parse_where`].

        Returns:
            `list[list[SearchResult]]`: one list of results per query.

        Raises:
            ValueError: `k` is less than 1; the query embeddings have another shape, are not finite or are zero;
                `where` is not a valid condition.
            OSError: the index cannot be read.
        """
        if (k := operator.index(k)) < 1:
            raise ValueError(f"k is {k}: expected 1 or more.")
        queries = self._check_queries(query_embeddings)
        condition = self.parse_where(where)
        if not len(queries):
            return []
        return make_results(self._store.search(queries, k, condition))

    def parse_where(self, where: str | Condition | None) -> Condition | None:
        """Parse a condition on the entries of this index, with the owner's columns, see [`parse_where`].

        Raises:
            ValueError: the condition is not valid.
        """
        return parse_where(where, self.columns) if isinstance(where, str) else where

    def _check_queries(self, query_embeddings: "torch.Tensor | np.ndarray") -> np.ndarray:
        """Return query embeddings with length 1, float32."""
        values = self._check_shape(query_embeddings)
        lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
        if not np.all((lengths > 0) & np.isfinite(lengths)):
            raise ValueError("Query embeddings must be finite and not zero.")
        return (values / lengths).astype(np.float32)

    def search_with_context(
        self, query_embedding: np.ndarray, k: int, where: Condition | None = None
    ) -> ContextResults:
        """Find the k entries nearest to a query embedding, (D,), with their context tokens; see [`search`].

        Raises:
            ValueError: the query embedding has another shape, is not finite or is zero; the index stores no context
                tokens.
            OSError: the index cannot be read.
        """
        if self.info.num_context_tokens is None:
            raise ValueError(
                f"The index {self.uri} stores no context tokens to re-rank by: build an index with them: "
                f"pig index FOLDER --model {self.info.model} --index NEW --rerank-tokens"
            )
        (ranked,) = self._store.search(self._check_queries(query_embedding[None]), k, where, with_context=True)
        context = read_context(ranked.rows, self.info.embedding_dim)
        assert context is not None
        without_context = ranked._replace(rows=ranked.rows.drop_columns([CONTEXT_COLUMN]))
        return ContextResults(make_results([without_context])[0], context)

    def text_columns(self, names: Sequence[str] | None = None) -> list[str]:
        """Return the owner's columns of text and of lists of texts without `id`, or those in `names`.

        Raises:
            ValueError: there is no such column, or a name is not one of them.
        """
        known = [name for name, kind in self.columns.items() if kind in (TEXT, TEXTS) and name != ID]
        if not known:
            raise ValueError(f"The index {self.uri} has no column of text: add one with pig index --metadata FILE.")
        if unknown := [name for name in names or () if name not in known]:
            raise ValueError(
                f"The index {self.uri} has no column {unknown[0]!r} of text: expected {', '.join(known)}."
            )
        return known if names is None else list(dict.fromkeys(names))

    def search_text(
        self,
        text: str,
        query_embedding: np.ndarray,
        columns: Sequence[str] | None = None,
        k: int = 10,
        where: Condition | None = None,
    ) -> TextResults:
        """Find the entries whose columns of text hold words of a text, by LanceDB's full-text index.

        The first search of a column builds its index. Rows that are written later are found at once.

        Args:
            text (`str`): words, in any order; one of them is enough for a result. Case and accents do not count, nor
                do English function words such as "the".
            query_embedding (`np.ndarray` of shape `(D,)`): embedding of the query, of any length but 0; the scores of
                the results are its cosines.
            columns (`Sequence[str]`, *optional*): columns of type "text" or "texts"; by default all of them.
            k (`int`): number of results at most, at least 1.
            where (`Condition`, *optional*): condition that all results meet.

        Raises:
            ValueError: a column is not one of text, the query embedding is not valid, or the index is on Milvus.
            OSError: the index cannot be read, or the full-text index cannot be built.
        """
        (query,) = self._check_queries(query_embedding[None])
        relevance, ranked = self._store.search_text(text, self.text_columns(columns), query, k, where)
        return TextResults(make_results([ranked])[0], relevance.tolist())

    def get(self, path: str) -> list[EmbeddedEntry]:
        """Return all entries of a file in order of start; an empty list if the file is not in the index."""
        batch = self.entries([path])
        found = batch._replace(embeddings=batch.embeddings.astype(np.float32)).embedded()
        return sorted(found, key=lambda embedded: embedded.entry.start or 0.0)

    def files(self, where: str | Condition | None = None) -> dict[str, FileState]:
        """Return the state of each file in the index, by path. Reads no embeddings.

        Args:
            where (`str` or `Condition`, *optional*): only entries that meet this condition, see [`search`].

        Raises:
            ValueError: `where` is not a valid condition.
            OSError: the index cannot be read.
        """
        names = ["path", "size", "modified", "content_hash"]
        names += [ID] if ID in self.columns else []
        condition = self.parse_where(where)
        states: dict[str, FileState] = {}
        for batch in self._store.scan(names, 100_000, condition):
            for path, size, modified, content_hash, *id_ in zip(*(batch[n].to_pylist() for n in names), strict=True):
                known = states.get(path)
                if known is None:
                    states[path] = FileState(size, modified, content_hash, 1, *id_)
                elif known[:3] == (size, modified, content_hash):
                    states[path] = known._replace(num_entries=known.num_entries + 1)
                else:  # writing the file was interrupted: it counts as changed
                    states[path] = FileState(None, None, None, known.num_entries + 1)
        return states

    def entries(self, paths: Sequence[str]) -> EntryBatch:
        """Return all entries of the files at `paths`, in any order."""
        return self._read_batch(self._store.rows(paths))

    def batches(self, size: int = 10_000) -> Iterator[EntryBatch]:
        """Yield all entries of the index in batches of at most `size` entries."""
        columns = [*ENTRY_COLUMNS, "embedding", *self.columns]
        if self.info.num_context_tokens is not None:
            columns.append(CONTEXT_COLUMN)
        for rows in self._store.scan(columns, size):
            yield self._read_batch(rows)

    def _read_batch(self, rows: "pa.Table | pa.RecordBatch") -> EntryBatch:
        return EntryBatch(read_entries(rows), read_embeddings(rows), read_context(rows, self.info.embedding_dim))

    def optimize(self, ann_index: bool = True) -> dict[str, Any]:
        """Merge the small files that many writes leave; build the ANN index if there are enough entries.

        Other processes may write at the same time. An ANN index that lance-ray has built is measured and used in place
        of one that is built here.

        Args:
            ann_index (`bool`): build the ANN index.

        Returns:
            `dict[str, Any]`: the new `search_method`.

        Raises:
            OSError: the index cannot be written.
        """
        self._store.optimize(ann_index)
        return self.search_method

    def versions(self) -> list[IndexVersion]:
        """Return the versions of the index that can be restored, oldest first.

        Every write makes a version. A version is kept for ten minutes after the next one, and longer if it has a name
        or an older one has.

        Raises:
            ValueError: the index is on Milvus, which has no versions.
            OSError: the index cannot be read.
        """
        return self._store.versions()

    def keep_version(self, name: str) -> None:
        """Give the newest version a name, and keep it and all later ones until [`release_version`].

        Args:
            name (`str`): a letter, then letters, digits, `.`, `_` and `-`.

        Raises:
            ValueError: the name is not valid, or another version has it; the index is on Milvus.
            OSError: the index cannot be written.
        """
        self._store.keep_version(name)

    def release_version(self, name: str) -> None:
        """Remove a name that [`keep_version`] gave. The version is deleted by a later write.

        Raises:
            ValueError: no version has the name; the index is on Milvus.
            OSError: the index cannot be written.
        """
        self._store.release_version(name)

    def restore(self, version: int | str) -> None:
        """Make an earlier version the newest one; the versions in between stay until they are deleted.

        Args:
            version (`int` or `str`): number or name of the version.

        Raises:
            ValueError: there is no such version; the index is on Milvus.
            OSError: the index cannot be written.
        """
        self._store.restore(version)

    def drop_if_new(self) -> None:
        """Delete the index if this object created it and it is empty."""
        if self.is_new:
            self._store.drop()


def _open_store(uri: str, info: IndexInfo | None, storage_options: Mapping[str, str] | None) -> VideoStore:
    if re.match(r"(https?|tcp)://", uri):
        from .milvus_store import MilvusStore

        return MilvusStore(uri, info)
    if not uri or ("://" in uri and not is_object_storage(uri)):
        raise ValueError(
            f"{uri!r} names no index: give a folder, object storage (s3://, gs:// or az://BUCKET/NAME.lance), or a "
            "Milvus server (http://host:19530/COLLECTION)."
        )
    from .lance_store import LanceStore

    return LanceStore(uri, info, storage_options)


def upsert_whole_files(
    index: VideoIndex, embedded: Iterable[EmbeddedEntry], counts: Mapping[str, int], batch_size: int
) -> None:
    """Write entries that come in any order, all entries of a file in one write.

    Args:
        index (`VideoIndex`): index to write.
        embedded (`Iterable[EmbeddedEntry]`): entries with their embeddings and context tokens.
        counts (`Mapping[str, int]`): number of entries of each file, by path. A file is written once all its entries
            have come; a file with fewer entries is not written.
        batch_size (`int`): entries per write; more if the last file has several.
    """
    incomplete: dict[str, list[EmbeddedEntry]] = {}
    complete: list[EmbeddedEntry] = []

    def write() -> None:
        entries, embeddings, contexts = zip(*complete, strict=True)
        index.upsert(entries, np.stack(embeddings), None if contexts[0] is None else np.stack(contexts))
        complete.clear()

    for entry, embedding, context in embedded:
        of_file = incomplete.setdefault(entry.path, [])
        # A view would keep its whole batch in memory.
        of_file.append(EmbeddedEntry(entry, embedding.copy(), None if context is None else context.copy()))
        if len(of_file) == counts[entry.path]:
            complete += incomplete.pop(entry.path)
        if len(complete) >= batch_size:
            write()
    if complete:
        write()


def _describe_model(info: IndexInfo) -> str:
    frames = "" if info.num_frames is None else f", {info.num_frames} frames per video"
    kind = "" if info.kind == "pig" else f", {info.kind}"
    return f"{info.model} ({info.embedding_dim} dimensions{frames}, weights {info.model_fingerprint}{kind})"


__all__ = [
    "FORMAT",
    "FORMAT_OF_ENCODERS",
    "FORMAT_OF_SHOTS",
    "FORMAT_WITH_CONTEXT",
    "IndexInfo",
    "IndexVersion",
    "VideoEntry",
    "VideoIndex",
]
