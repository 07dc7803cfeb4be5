"""Write files and folders atomically, and hash files. Imports no other part of the package at the top."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


PARTIAL_SUFFIX = ".part"  # of unfinished files and folders, whose names also start with a dot


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it to `path` on success, remove it on any error.

    Other processes see the previous file or the whole new one. If `path` is a link, its target is replaced.

    Args:
        path (`str` or `os.PathLike`): file to write or replace.

    Raises:
        OSError: `path` exists and is not a regular file, see [`resolve_replaceable`], or it cannot be written.
    """
    path = resolve_replaceable(path)
    partial = _partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:  # also KeyboardInterrupt
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new, empty folder beside `path`; move it to `path` on success, remove it on any error.

    If `path` exists, it is moved aside first and removed last. A process that is killed between the two moves leaves
    only the folder aside: [`restore_folder`] moves it back.

    Args:
        path (`str` or `os.PathLike`): folder to write or replace.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    partial = _partial_path(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        previous = _previous_path(path)
        shutil.rmtree(previous, ignore_errors=True)
        if path.exists():
            path.replace(previous)
        partial.replace(path)
        shutil.rmtree(previous, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def restore_folder(path: str | os.PathLike) -> None:
    """Move the previous folder back to `path` if a killed [`replace_folder`] left no folder there."""
    path = Path(path)
    previous = _previous_path(path)
    if previous.exists() and not path.exists():
        previous.replace(path)


def write_text(path: str | os.PathLike, text: str, errors: str = "strict") -> None:
    """Write `text` as UTF-8 with [`replace_file`]. `errors` is the error handler of `str.encode`."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def resolve_replaceable(path: str | os.PathLike) -> Path:
    """Return the file that writing to `path` replaces or creates, with links resolved.

    Raises:
        OSError: `path` is a folder, pipe or device: replacing `/dev/null` with a file would break the machine.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} cannot be written: it is not a regular file. Give the path of a file.")
    return Path(os.path.realpath(path))


def hash_file(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal; of a folder of frames, that of its `sha256sum` listing.

    Raises:
        OSError: the file cannot be read.
    """
    from .video_decoding_pig import list_frames  # imports transformers

    path = os.fspath(path)
    if names := list_frames(path):
        lines = [f"{hash_file(os.path.join(path, name))}  {name}\n" for name in names]
        return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _partial_path(path: Path) -> Path:
    # A random part, so that two processes that write the same file do not share it.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


def _previous_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


__all__ = [
    "PARTIAL_SUFFIX",
    "hash_file",
    "replace_file",
    "replace_folder",
    "resolve_replaceable",
    "restore_folder",
    "write_text",
]
