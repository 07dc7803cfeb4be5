"""List the files of indexes in pages, and change what the index holds."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..encoding.video_segment import VideoSegment
from ..stores.conditions import Condition, In
from .service import SearchService


if TYPE_CHECKING:
    import pyarrow as pa

MAX_LISTS = 8  # lists of files, by filter, that are kept until the index changes
Order = Literal["newest", "path"]


@dataclass
class IndexedFile:
    """A file of the indexes.

    Args:
        path (`str`): absolute path.
        duration (`float`, *optional*): seconds.
        size (`int`, *optional*): bytes.
        modified (`int`, *optional*): time of the last change, in ns since 1970.
        num_entries (`int`): number of its entries that meet the filter.
        metadata (`dict[str, Any]`): the owner's columns of its first entry; values that are not known are left out.
        segments (`list[VideoSegment]`): its entries in order of start.
    """

    path: str
    duration: float | None
    size: int | None
    modified: int | None
    num_entries: int
    metadata: dict[str, Any] = field(default_factory=dict)
    segments: list[VideoSegment] = field(default_factory=list)


class Library:
    """The files of the indexes of a service, and the ways to change them.

    Args:
        service (`SearchService`): service with the indexes.
        roots (`Sequence[Path]`): folders from which videos may be added.
    """

    def __init__(self, service: SearchService, roots: Sequence[Path] = ()):
        self._service = service
        self._roots = [Path(os.path.realpath(root)) for root in roots]
        # (filter, order) -> versions of the indexes, files in order
        self._lists: OrderedDict[tuple[Any, Order], tuple[list[Any], pa.Table]] = OrderedDict()
        self._listing = threading.Lock()  # held by the thread that makes a list

    def page(
        self, where: str | Condition | None, order: Order, limit: int, offset: int
    ) -> tuple[list[IndexedFile], int]:
        """Return files of the indexes, and the number of all files that meet the condition.

        Raises:
            ValueError: `where` is invalid.
            OSError: an index cannot be read.
        """
        with self._listing:  # further requests for a list wait for it
            versions = self._service.versions()
            known = self._lists.pop((where, order), None)
            if known is None or known[0] != versions:
                known = versions, self._read(where, order)
            self._lists[where, order] = known
            if len(self._lists) > MAX_LISTS:
                self._lists.popitem(last=False)
        table = known[1]
        return self._read_entries(table.slice(offset, limit)), len(table)

    def _read(self, where: str | Condition | None, order: Order) -> "pa.Table":
        """Return path, duration, size, modified and num_entries of all files, in order."""
        import pyarrow as pa

        columns = ["path", "duration", "size", "modified"]
        batches = [batch for index in self._service.searcher.indexes for batch in index.scan(columns, where)]
        schema = pa.schema(
            [("path", pa.string()), ("duration", pa.float64()), ("size", pa.int64()), ("modified", pa.int64())]
        )
        tables = [pa.Table.from_batches([batch.select(columns)]).cast(schema) for batch in batches]
        entries = pa.concat_tables([schema.empty_table(), *tables])
        sums = [("duration", "max"), ("size", "max"), ("modified", "max"), ("path", "count")]
        files = entries.group_by("path").aggregate(sums)
        files = files.select(["path", "duration_max", "size_max", "modified_max", "path_count"])
        files = files.rename_columns(["path", "duration", "size", "modified", "num_entries"])
        keys = [("path", "ascending")] if order == "path" else [("modified", "descending"), ("path", "ascending")]
        return files.sort_by(keys)

    def _read_entries(self, table: "pa.Table") -> list[IndexedFile]:
        """Return files with their metadata and segments."""
        files = {row["path"]: IndexedFile(**row) for row in table.to_pylist()}
        if not files:
            return []
        for index in self._service.searcher.indexes:
            own = list(index.columns)
            for batch in index.scan(["path", "start", "end", *own], In("path", tuple(files))):
                for row in batch.to_pylist():
                    file = files[row["path"]]
                    segment = VideoSegment(row["path"], row["start"], row["end"])
                    if not file.segments or (segment.start or 0.0) < (file.segments[0].start or 0.0):
                        file.metadata = {name: row[name] for name in own if row[name] is not None}
                        file.segments.insert(0, segment)
                    elif segment not in file.segments:
                        file.segments.append(segment)
        for file in files.values():
            file.segments.sort(key=lambda segment: segment.start or 0.0)
        return list(files.values())

    def get(self, path: str) -> IndexedFile | None:
        """Return a file, or `None` if no index holds it.

        Raises:
            OSError: an index cannot be read.
        """
        files = self._read_entries(self._read(In("path", (path,)), "path"))
        return files[0] if files else None

    def resolve(self, path: str) -> str:
        """Return the absolute path of a video to add, without symbolic links.

        Raises:
            PermissionError: the file is not below one of the roots.
            ValueError: there is no such file, or the path is not valid.
        """
        if "\0" in path:
            raise ValueError("The path has a null character: give the path of a video.")
        resolved = Path(os.path.realpath(path))
        if not os.path.isabs(path) or not any(resolved.is_relative_to(root) for root in self._roots):
            raise PermissionError("The file is not below a folder of --video-root.")
        if not resolved.is_file():
            raise ValueError(f"There is no file {resolved.name}: give the path of a video.")
        return str(resolved)

    def add(self, path: str) -> bool:
        """Encode a video and add it to the index; return whether the index holds something new.

        Raises:
            PermissionError: the file is not below one of the roots.
            ValueError: it is no video, or cannot be decoded; or there are several indexes.
            OSError: the index cannot be written, or the model cannot be read.
        """
        return self._service.add(self.resolve(path))

    def delete(self, path: str) -> int:
        """Remove the entries of a file, and return their number; the file stays on the disk."""
        return sum(index.delete([path]) for index in self._service.searcher.indexes)

    def set_metadata(self, path: str, metadata: dict[str, Any]) -> None:
        """Set values of the owner's columns of a file.

        Raises:
            ValueError: a column or a value is not valid.
            OSError: an index cannot be written.
        """
        for index in self._service.searcher.indexes:
            if index.get(path):
                try:
                    index.set_metadata({path: metadata})
                except ValueError as error:  # folders may be hidden
                    raise ValueError(str(error).replace(path, os.path.basename(path))) from error


__all__ = ["IndexedFile", "Library", "Order"]
