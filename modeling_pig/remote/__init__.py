"""Read videos in object storage, on the Hugging Face Hub and on web servers.

Every package may import this one. Importing it imports neither torch nor fsspec.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeVar

from .addresses import check_address, is_remote, redact


T = TypeVar("T")


@contextmanager
def open_source(path: str | os.PathLike, state: tuple[int, ...] | None = None, *, whole: bool = True) -> Iterator[Any]:
    """Open a video for [`decode_video`], wherever it is.

    Args:
        path (`str` or `os.PathLike`): file or folder of frames on this machine, or address of a remote file.
        state (`tuple`, *optional*): result of [`file_state`], if you have just read it.
        whole (`bool`): whether most of the file will be read, as by the decoder, which reads the times of all frames.
            A remote file is then copied into the cache first, see [`VideoCache`]. Otherwise, and if the copy has no
            room there, ranges of it are read. A server that sends no ranges always needs the copy.

    Yields:
        `str` or `BinaryIO`: the path of a local video, or a seekable file whose `name` is the address.

    Raises:
        VideoDecodingError: the remote file cannot be read, also while it is open.
        ValueError: the size of the cache in the environment is not a number.
    """
    path = os.fspath(path)
    if not is_remote(path):
        yield path
        return
    from ..video_file_pig import VideoDecodingError
    from .cache import default_cache
    from .errors import NoRangesError, RemoteError
    from .filesystem import RemoteFile, RemoteState, read_state

    try:
        known = read_state(path) if state is None else RemoteState(*state[:2])
        file = None
        if not whole:
            with suppress(NoRangesError):
                file = RemoteFile(path, known)
        with file or default_cache().open(path, known) as source:
            yield source
    except RemoteError as error:
        raise VideoDecodingError(redact(path), error.strerror) from None


def read_with(function: Callable[[str | BinaryIO], T], path: str, state: tuple[int, ...] | None = None) -> T:
    """Return the result of a function that reads parts of a local or remote file, such as [`make_content_id`]."""
    with open_source(path, state, whole=False) as source:
        return function(source)


def file_state(path: str) -> tuple[int, ...]:
    """Return the numbers that change when a file is written: size, time of the last change in ns, and others.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    if is_remote(path):
        from .filesystem import read_state

        return read_state(path)
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def is_gone(path: str) -> bool:
    """Return whether a local file does not exist, or a server says so of a remote one: not if it does not answer."""
    if not is_remote(path):
        return not os.path.lexists(path)
    from .addresses import WEB
    from .errors import RemoteError
    from .filesystem import read_info

    protocol, _, name = path.partition("://")
    try:
        read_info(path)
        return False
    except RemoteError as error:
        if not error.is_missing or protocol in WEB or protocol == "hf":
            return error.is_missing
    try:  # some stores say of a file in a bucket that they lack, or hide, that the file is missing
        read_info(f"{protocol}://{name.partition('/')[0]}")
        return True
    except RemoteError:
        return False


__all__ = ["check_address", "file_state", "is_gone", "is_remote", "open_source", "read_with", "redact"]
