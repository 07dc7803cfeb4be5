"""List remote files, and read their size, time and ranges, through fsspec."""

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from . import errors
from .addresses import WEB, redact
from .errors import NoRangesError, RemoteError, attempt


if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


BLOCK_BYTES = 256 * 1024  # per request of a `RemoteFile`
MAX_BLOCKS = 64  # blocks that a `RemoteFile` keeps in memory
_PAGES = ("text/html", "application/xhtml+xml")
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "Last-Modified")
_TAGS = ("ETag", "etag", "blob_id", "xet_hash", "generation", "md5Hash")


class RemoteState(NamedTuple):
    """What changes when a remote file is written.

    Attributes:
        size (`int`): size in bytes.
        modified (`int`): time of the last change, in ns since 1970 and to the second. If the server states none, a
            negative number made from the ETag, so that a change is detected; 0 without an ETag.
    """

    size: int
    modified: int


@lru_cache
def filesystem(protocol: str) -> "AbstractFileSystem":
    """Return the file system of a protocol. It finds credentials where the tools of its store find them.

    Raises:
        ImportError: its package is not installed.
    """
    import fsspec

    # `use_listings_cache`: a long process, such as the app, would otherwise see old sizes.
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=errors.TIMEOUT, sock_read=errors.TIMEOUT)
        # `trust_env`: proxies of the environment, and passwords of ~/.netrc. A compressed answer has no ranges.
        headers = {"Accept-Encoding": "identity"}
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True, "headers": headers}
    elif protocol == "s3":
        timeouts = {"connect_timeout": errors.TIMEOUT, "read_timeout": errors.TIMEOUT}
        options["config_kwargs"] = timeouts | {"retries": {"max_attempts": 1}}
    elif protocol == "gs":
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each failed request with its traceback
    elif protocol == "az":
        options |= {"connection_timeout": errors.TIMEOUT, "read_timeout": errors.TIMEOUT}
    return fsspec.filesystem(protocol, **options)


def read_info(address: str) -> dict[str, Any]:
    """Return what the store says of a file or folder, in the words of fsspec; at least `name` and `type`.

    Raises:
        RemoteError: there is no such file, it cannot be read, or the address leads to a web page.
    """

    def read() -> dict[str, Any]:
        protocol = address.partition("://")[0]
        store = filesystem(protocol)
        store.invalidate_cache(address)
        options: dict[str, Any] = {"refresh": True} if protocol in ("hf", "s3") else {}
        if protocol == "hf" and store.resolve_path(address).path:  # of a file, only the long answer has an identifier
            options["expand_info"] = True
        return store.info(address, **options)

    info = attempt(address, read)
    if info.get("mimetype") in _PAGES:
        raise RemoteError(
            address, "the address leads to a web page, not to a video: give the address of the file itself"
        )
    return info


def read_state(address: str) -> RemoteState:
    """Return size and time of a remote file.

    Raises:
        RemoteError: as for [`read_info`]; or the address is that of a folder, or the server does not state the size.
    """
    return state_of(address, read_info(address))


def state_of(address: str, info: Mapping[str, Any]) -> RemoteState:
    """Return the state in an answer of [`read_info`] or [`find_files`].

    Raises:
        RemoteError: as for [`read_state`].
    """
    if info["type"] != "file":
        raise RemoteError(address, "the address of a folder: give that of a file")
    if info.get("size") is None:
        raise RemoteError(address, "the server does not state the size of the file: download it, and give its path")
    time = next(filter(None, map(info.get, _TIMES)), None)
    if time is not None and (seconds := _seconds(time)) is not None:
        return RemoteState(info["size"], seconds * 10**9)
    tag = next(filter(None, map(info.get, _TAGS)), None)
    digest = hashlib.blake2b(str(tag).encode(), digest_size=7).digest()
    return RemoteState(info["size"], -1 - int.from_bytes(digest, "big") if tag else 0)


def find_files(address: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield address and info of all files in a folder of a store and its subfolders, in order.

    Raises:
        RemoteError: the folder cannot be listed.
    """
    protocol = address.partition("://")[0]

    def find() -> dict[str, dict[str, Any]]:
        store = filesystem(protocol)
        store.invalidate_cache()
        return store.find(address, detail=True)

    for name, info in sorted(attempt(address, find).items()):
        yield f"{protocol}://{name}", info


class RemoteFile(io.RawIOBase):
    """Read a remote file by ranges; at most `BLOCK_BYTES * MAX_BLOCKS` bytes of it are in memory.

    Args:
        address (`str`): address of the file.
        state (`RemoteState`): its state.
        block_bytes (`int`): bytes per request.

    Attributes:
        name (`str`): the address, for messages.

    Raises:
        NoRangesError: the server sends whole files only.
        RemoteError: opening or reading fails, three times if the reason may pass.
    """

    def __init__(self, address: str, state: RemoteState, block_bytes: int = BLOCK_BYTES):
        from fsspec.caching import BlockCache

        self.name, self.size = address, state.size
        self._position = 0
        self._block_bytes = block_bytes
        self._file = attempt(address, self._open)
        self._cache = BlockCache(block_bytes, self.fetch, state.size, MAX_BLOCKS)
        if address.startswith("http") and state.size > block_bytes:
            self._read(state.size - 1, state.size)  # of http servers alone, some send whole files only

    def _open(self) -> Any:
        store = filesystem(self.name.partition("://")[0])
        # A block size of 0 would make files that cannot seek. The size saves a request.
        options = {"block_size": self._block_bytes, "cache_type": "none", "size": self.size}
        file = store.open(self.name, "rb", **options)
        if not file.seekable():
            raise NoRangesError(self.name)
        return file

    def fetch(self, start: int, end: int) -> bytes:
        """Read the bytes from `start` to `end`, which is excluded."""
        end = min(end, self.size)

        def read() -> bytes:
            try:
                self._file.seek(start)
                content = self._file.read(end - start)
            except ValueError as error:
                if "range requests" in str(error):  # of fsspec's HTTPFile
                    raise NoRangesError(self.name) from None
                raise
            if len(content) != end - start:
                reason = f"the server sent {len(content)} of {end - start} bytes; run again"
                raise RemoteError(self.name, reason, is_transient=True)
            return content

        return attempt(self.name, read)

    def _read(self, start: int, end: int) -> bytes:
        return self._cache._fetch(start, end)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{redact(self.name)}: there is no byte {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        content = self._read(self._position, min(self._position + len(view), self.size))
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _seconds(time: Any) -> int | None:
    """Return a time that a store states, in whole seconds since 1970: listings and single files differ below."""
    if isinstance(time, (int, float)):
        return int(time)
    try:
        if not isinstance(time, datetime):
            text = str(time)
            time = datetime.fromisoformat(text) if text[:1].isdigit() else parsedate_to_datetime(text)
        return int(time.timestamp())
    except ValueError:
        return None


__all__ = ["RemoteFile", "RemoteState", "filesystem", "find_files", "read_info", "read_state", "state_of"]
