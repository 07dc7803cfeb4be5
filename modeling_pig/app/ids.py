"""Name entries of an index in requests: ids that reveal no path and that every process makes alike."""

import hashlib
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..encoding.video_segment import VideoSegment
from ..stores.index import IndexInfo
from .errors import USER_ERRORS, ApiError, http_error


if TYPE_CHECKING:
    from .service import SearchService


MAX_KNOWN = 50_000  # segments whose id is at hand; others are looked up in the table of all ids
# How long a lookup in the index stays valid: a player requests a video many times, and each lookup scans paths.
TRUSTED_FOR = 10.0  # seconds


def make_id_key(info: IndexInfo, secret: str | None = None) -> bytes:
    """Return the key of the ids of an index, 32 bytes.

    With `secret`, servers that share it agree on all ids. By default the key follows from the model and the creation
    time of the index: replicas that serve the same index, or copies of its folder, agree without being configured, and
    a rebuilt index gets new ids. No response shows that time, but it is not a strong secret: who knows the path of one
    video could find the time by trying, and then check guesses of other paths. A public server, which hides the
    folders, had better set a secret.
    """
    material = f"{info.model_fingerprint} {info.created}" if secret is None else secret
    return hashlib.blake2b(material.encode(), digest_size=32, person=b"pig ids").digest()


class EntryIds:
    """Make the ids of entries and files, and find the entry of an id.

    An id that this process has not made, such as one of a replica, is found in a table of the ids of all entries,
    which is made once per version of the index. So unknown ids cost no more than that, however many a client sends.

    Args:
        service (`SearchService`): service with the indexes.
        secret (`str`, *optional*): see [`make_id_key`].
    """

    def __init__(self, service: "SearchService", secret: str | None = None):
        self._service = service
        self._secret = secret
        # id -> segment and time of its last lookup in the index; the latest lookup is last
        self._known: OrderedDict[str, tuple[VideoSegment, float]] = OrderedDict()
        self._lock = threading.Lock()  # guards `_known`
        self._building = threading.Lock()  # held by the thread that makes the table
        self._table: _Table | None = None
        self._table_of: Any = None  # key and versions of the indexes of `_table`
        self._key_of: tuple[IndexInfo, bytes] | None = None

    def _key(self) -> bytes:
        """Return the key of the index as it is now; forget the ids of an index that was replaced."""
        info = self._service.searcher.indexes[0].info
        known = self._key_of
        if known is None or known[0] is not info:
            known = self._key_of = info, make_id_key(info, self._secret)
            with self._lock:
                self._known.clear()
        return known[1]

    def make(self, segment: VideoSegment, remember: bool = True) -> str:
        """Return the id of a segment, or of a whole file, 32 hexadecimal digits."""
        segment_id = _digest(self._key(), segment).hex()
        if remember:
            self.remember(segment_id, segment)
        return segment_id

    def remember(self, segment_id: str, segment: VideoSegment) -> None:
        """Remember a segment that the index holds now."""
        with self._lock:
            self._known[segment_id] = segment, time.monotonic()
            self._known.move_to_end(segment_id)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def find(self, segment_id: str) -> VideoSegment | None:
        """Return the segment of an id, or `None` if no index holds it.

        Raises:
            OSError: an index cannot be read.
        """
        key = self._key()
        with self._lock:
            known = self._known.get(segment_id)
        if known is not None:
            segment, seen = known
            if time.monotonic() - seen <= TRUSTED_FOR:
                return segment
            if not self._service.holds(segment.path):
                return None
        else:
            found = self._look_up(key, segment_id)
            if found is None:
                return None
            segment = found
        self.remember(segment_id, segment)
        return segment

    def segment(self, segment_id: str) -> VideoSegment:
        """Return the segment of an id of a request.

        Raises:
            HTTPException: no index holds such a segment now (404), or an index cannot be read (500).
        """
        try:
            segment = self.find(segment_id)
        except USER_ERRORS as error:
            raise http_error(error) from error
        if segment is None:
            raise ApiError(404, "The index holds no video with this id: search again.", "unknown_id")
        return segment

    def forget(self, path: str) -> None:
        """Forget the ids of a file that was deleted from the index."""
        with self._lock:
            for segment_id in [name for name, (segment, _) in self._known.items() if segment.path == path]:
                del self._known[segment_id]

    def _look_up(self, key: bytes, segment_id: str) -> VideoSegment | None:
        with self._building:
            current = key, self._service.versions()
            if self._table is None or current != self._table_of:
                self._table, self._table_of = _Table(key, self._service), current
            return self._table.find(segment_id)


class _Table:
    """Ids of all entries and files of the indexes, sorted: 8 bytes each, beside the entries as Arrow columns."""

    def __init__(self, key: bytes, service: "SearchService"):
        import pyarrow as pa
        import pyarrow.compute as pc

        self._key = key
        columns = ["path", "start", "end"]
        schema = pa.schema([("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())])
        parts = [schema.empty_table()]
        for index in service.searcher.indexes:
            for batch in index.scan(columns):
                entries = pa.Table.from_batches([batch.select(columns)]).cast(schema)
                parts.append(entries)
                files = entries.filter(pc.is_valid(entries["start"]))["path"].unique()
                nothing = pa.nulls(len(files), pa.float64())
                parts.append(pa.table([files, nothing, nothing], schema=schema))
        self._entries: pa.Table = pa.concat_tables(parts).combine_chunks()
        rows = zip(*(self._entries[name].to_pylist() for name in columns), strict=True)
        digests = b"".join(_digest(key, VideoSegment(*row)) for row in rows)
        first_halves = np.frombuffer(digests, ">u8")[::2].astype(np.uint64)  # 64 of the 128 bits
        self._order = np.argsort(first_halves)
        self._sorted = first_halves[self._order]

    def find(self, segment_id: str) -> VideoSegment | None:
        wanted = np.uint64(int(segment_id[:16], 16))
        for position in range(np.searchsorted(self._sorted, wanted), len(self._sorted)):
            if self._sorted[position] != wanted:
                break
            row = int(self._order[position])
            segment = VideoSegment(*(column[row].as_py() for column in self._entries.columns))
            if _digest(self._key, segment).hex() == segment_id:
                return segment
        return None


def _digest(key: bytes, segment: VideoSegment) -> bytes:
    message = f"{segment.path}\0{segment.start!r}\0{segment.end!r}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(message, key=key, digest_size=16).digest()


__all__ = ["EntryIds", "make_id_key"]
