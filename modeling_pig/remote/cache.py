"""Keep copies of remote files in a bounded folder of this machine."""

import errno
import fcntl
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ..files import PARTIAL_SUFFIX
from .errors import NoRangesError, RemoteError, attempt
from .filesystem import RemoteFile, RemoteState, filesystem, read_state


CACHE_VARIABLE = "PIG_VIDEO_CACHE_GB"
DEFAULT_GB = 8.0
DOWNLOADED_BYTES = 8 * 1024 * 1024  # per request
_LOCK = ".lock"


class VideoCache:
    """Folder with copies of remote files, of at most `max_bytes` in all. Processes and threads may share it.

    The copies used least recently make room for new ones; a copy that is in use stays. Each copy is for one state of
    its file. A killed process leaves an unfinished copy, which the next download removes.

    Args:
        folder (`Path`): folder that holds nothing else.
        max_bytes (`int`): size of all copies together.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes

    @contextmanager
    def open(self, address: str, state: RemoteState) -> Iterator[BinaryIO]:
        """Open the copy of a file, and download it before if there is none.

        Yields:
            `BinaryIO`: the copy; its `name` is the address. If it does not fit into the cache beside the copies in
            use, or the cache cannot be written, a [`RemoteFile`].

        Raises:
            RemoteError: the file cannot be read, or only as a whole, for which the cache has no room.
        """
        path = self.folder / hashlib.sha256(repr((address, *state)).encode()).hexdigest()[:32]
        copy = _open_locked(path) or self._download(address, state, path)
        if copy is not None:
            with copy:
                copy.seek(0)
                copy.raw.name = address  # type: ignore[union-attr]  # for messages of the decoder
                yield copy
            return
        try:
            file = RemoteFile(address, state)
        except NoRangesError:
            reason = (
                f"the server sends whole files only, and the cache has no room for {state.size / 1e9:.3g} GB: set "
                f"{CACHE_VARIABLE} to more than {self.max_bytes / 1e9:.3g}, or download the file"
            )
            raise RemoteError(address, reason) from None
        with file:
            yield file  # type: ignore[misc]

    def _download(self, address: str, state: RemoteState, path: Path) -> io.BufferedRandom | None:
        """Download a file to `path`, and return it open and locked; `None` if the cache cannot hold it."""
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
        try:
            file = self._reserve(partial, state.size)
        except OSError:  # no permission, or a disk without locks: the cache is a convenience
            return None
        if file is None:
            return None
        try:
            copy_remote(address, state, file)
            if read_state(address) != state:  # a mixture of two states would be found as a copy of the first
                raise RemoteError(address, "changed while it was read; run again")
            os.replace(partial, path)
            fcntl.flock(file, fcntl.LOCK_SH)
        except BaseException as error:  # also KeyboardInterrupt
            file.close()
            with suppress(OSError):
                partial.unlink()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return None
            raise
        return file

    def _reserve(self, partial: Path, size: int) -> io.BufferedRandom | None:
        """Create a file of `size` bytes, locked; `None` if there is no room for it.

        The file has its full size at once, but takes no space yet: so parallel downloads count it.
        """
        if size > self.max_bytes:
            return None
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.folder / _LOCK, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            copies: list[tuple[int, int, str]] = []  # time of the last use, size and path
            for entry in os.scandir(self.folder):
                with suppress(FileNotFoundError):  # a download just ended
                    copies.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
            room = self.max_bytes - sum(num_bytes for _, num_bytes, _ in copies)
            for _, num_bytes, path in sorted(copies):
                if (room < size or path.endswith(PARTIAL_SUFFIX)) and _remove_unused(path):
                    room += num_bytes
            if room < size or shutil.disk_usage(self.folder).free < size:
                return None
            file = open(partial, "w+b")  # noqa: SIM115 - returned open
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(partial, size)
            return file


def copy_remote(address: str, state: RemoteState, file: io.BufferedRandom) -> None:
    """Write the content of a remote file into a local file of the same size, by ranges if the server sends them.

    Raises:
        RemoteError: the file cannot be read, or has another size than `state`.
        OSError: the local file cannot be written.
    """
    try:
        with RemoteFile(address, state) as remote:
            for start in range(0, state.size, DOWNLOADED_BYTES):
                file.write(remote.fetch(start, min(start + DOWNLOADED_BYTES, state.size)))
    except NoRangesError:
        attempt(address, lambda: _copy_whole(address, state, file))
    file.flush()


def _copy_whole(address: str, state: RemoteState, file: io.BufferedRandom) -> None:
    file.seek(0)
    filesystem(address.partition("://")[0]).get_file(address, file)
    if file.tell() != state.size:
        reason = f"the server sent {file.tell()} of {state.size} bytes; run again"
        raise RemoteError(address, reason, is_transient=True)


def default_cache() -> VideoCache:
    """Return the cache of this user: its folder is among the assets of the Hugging Face cache, see `HF_HOME`.

    Raises:
        ValueError: the environment variable `PIG_VIDEO_CACHE_GB` is not a number of 0 or more.
    """
    from huggingface_hub import constants

    value = os.environ.get(CACHE_VARIABLE, str(DEFAULT_GB))
    try:
        max_bytes = int(float(value) * 10**9)
    except (ValueError, OverflowError):
        max_bytes = -1
    if max_bytes < 0:
        raise ValueError(f"{CACHE_VARIABLE} is {value!r}: set it to the size of the cache of remote videos, in GB.")
    return VideoCache(Path(constants.HF_ASSETS_CACHE) / "modeling_pig" / "videos", max_bytes)


def _open_locked(path: Path) -> io.BufferedReader | None:
    """Open a copy so that it is not removed, and mark it as used now; `None` if there is no such copy."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - returned open
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.utime(path)
        if os.path.samestat(os.stat(path), os.fstat(file.fileno())):  # not removed before it was locked
            return file
    except OSError:
        pass
    file.close()
    return None


def _remove_unused(path: str) -> bool:
    """Remove a file unless it is open in this or another process; return whether it was removed."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except OSError:
        return False
    return True


__all__ = ["CACHE_VARIABLE", "VideoCache", "default_cache"]
