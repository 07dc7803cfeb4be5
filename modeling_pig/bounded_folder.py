"""Keep the files of a cache folder within a number of bytes; the least recently used files are removed."""

import os
import threading
from pathlib import Path

from .files import PARTIAL_SUFFIX


# Files are removed down to this share of the bound, so that not every write has to scan the folder.
FILL_AFTER_EVICTION = 0.9
# Each process may fill this share of the free bytes before it scans the folder again.
MAX_PROCESSES = 64


class BoundedFolder:
    """Folder of cached files with a bound on their total size. Threads and processes may share it.

    Args:
        folder (`Path`): folder of the files.
        max_bytes (`int`): total size of the files. Processes that write at the same time can exceed it briefly by one
            file each.
        suffixes (`tuple[str, ...]`): suffixes of the files that may be removed. Incomplete files of killed processes
            are removed like them; other files are not touched.
    """

    def __init__(self, folder: Path, max_bytes: int, suffixes: tuple[str, ...]):
        self.folder = folder
        self.max_bytes = max_bytes
        self.suffixes = (*suffixes, PARTIAL_SUFFIX)
        self._room = 0.0  # bytes that may be written before the folder is scanned again
        self._lock = threading.Lock()

    def make_room(self, size: int) -> bool:
        """Remove the least recently used files until `size` bytes fit; return False if they exceed the bound.

        Raises:
            OSError: the folder cannot be read, or a file cannot be removed.
        """
        if size > self.max_bytes:
            return False
        with self._lock:
            if size > self._room:
                used = self._evict(size)
                self._room = max((self.max_bytes - used) / MAX_PROCESSES, size)
            self._room -= size
        return True

    def _evict(self, size: int) -> int:
        """Remove files if `size` more bytes exceed the bound, and return the bytes of the others."""
        found = []
        for file in os.scandir(self.folder):
            if file.name.endswith(self.suffixes):
                try:
                    status = file.stat()
                except FileNotFoundError:
                    continue
                found.append((status.st_mtime_ns, status.st_size, file.path))
        used = sum(file[1] for file in found)
        if used + size > self.max_bytes:
            for _, freed, name in sorted(found):
                if used + size <= max(FILL_AFTER_EVICTION * self.max_bytes, size):
                    break
                Path(name).unlink(missing_ok=True)
                used -= freed
        return used


__all__ = ["BoundedFolder"]
