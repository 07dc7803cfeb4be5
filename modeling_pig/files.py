"""Write files and folders atomically, hash files, and tell videos and hidden files by their names.

Every package may import this module. It imports `video_decoding_pig` only to hash folders of frames.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .remote.addresses import check_address, is_remote, redact


# Extensions of the formats that `decode_video` opens.
# fmt: off
VIDEO_EXTENSIONS = {
    ".264", ".265", ".3g2", ".3gp", ".3gp2", ".3gpp", ".asf", ".av1", ".avi", ".divx", ".dv", ".f4v", ".flv",
    ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mk3d", ".mkv",
    ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogg", ".ogm", ".ogv", ".qt",
    ".rm", ".rmvb", ".tod", ".tp", ".trp", ".ts", ".vob", ".webm", ".wmv", ".y4m",
}
# fmt: on

# Folders of file servers and operating systems, in lower case: thumbnails, deleted files, snapshots.
SYSTEM_FOLDERS = {
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "lost+found",
    "system volume information",
    "~snapshot",
}

_CONTENT_ID_PREFIX = "content-"
_NUM_SAMPLES, _SAMPLE_BYTES = 16, 65_536

PARTIAL_SUFFIX = ".part"  # suffix of unfinished files and folders; their names start with a dot


@contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it to `path` on success, remove it on any error.

    Other processes see either the previous file or the complete new file. If `path` is a link, its target is replaced.

    Args:
        path (`str` or `os.PathLike`): file to write or replace.

    Raises:
        OSError: `path` cannot be written, or exists and is not a regular file, see [`resolve_replaceable`].

    Example:

    ```python
    >>> with replace_file("figures.json") as partial:
    ...     partial.write_text(json.dumps(figures))
    ```
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

    An existing folder is first moved aside, and removed when the new folder is in place. If the process is killed
    between the two moves, [`restore_folder`] moves the previous folder back.

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
        if path.exists():
            shutil.rmtree(previous, ignore_errors=True)
            path.replace(previous)
        partial.replace(path)
        shutil.rmtree(previous, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        restore_folder(path)
        raise


def restore_folder(path: str | os.PathLike) -> None:
    """Move the previous folder back to `path` if an interrupted [`replace_folder`] left no folder at `path`."""
    path = Path(path)
    previous = _previous_path(path)
    if previous.exists() and not path.exists():
        previous.replace(path)


def write_text(path: str | os.PathLike, text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8 with [`replace_file`].

    Args:
        path (`str` or `os.PathLike`): file to write or replace.
        text (`str`): content of the file.
        errors (`str`): handling of characters that UTF-8 cannot encode, as in `str.encode`.

    Raises:
        OSError: the file cannot be written.
    """
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def resolve_replaceable(path: str | os.PathLike) -> Path:
    """Return the file that [`replace_file`] replaces or creates for `path`: links are resolved.

    Raises:
        OSError: `path` is a folder, pipe or device. Replacing `/dev/null` with a file would break the machine.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} cannot be written: it is not a regular file. Give the path of a file.")
    return Path(os.path.realpath(path))


def is_hidden(name: str) -> bool:
    """Return whether a name, without its folder, is that of a hidden file or folder, or in `SYSTEM_FOLDERS`."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def candidate_paths(path: str) -> list[str]:
    """Return the paths under which an index may hold a file: a link by its own absolute path or by its target's.

    Raises:
        ValueError: the address of a remote file holds credentials, which no index does.
    """
    if is_remote(path):
        try:
            return [check_address(path)]
        except ValueError as error:
            raise ValueError(f"{redact(path)}: {error}.") from None
    folder, name = os.path.split(os.path.abspath(path))
    candidates = [os.path.join(os.path.realpath(folder), name), os.path.realpath(path), os.path.abspath(path)]
    return list(dict.fromkeys(candidates))


def hash_file(source: str | os.PathLike | BinaryIO) -> str:
    """Return the SHA-256 of a file in hexadecimal; for a folder of frames, the SHA-256 of its `sha256sum` listing.

    Args:
        source (`str`, `os.PathLike` or `BinaryIO`): path, or a seekable binary file.

    Raises:
        OSError: the file cannot be read, or the folder holds no numbered frames.
        VideoDecodingError: the folder cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        source.seek(0)
        return hashlib.file_digest(source, "sha256").hexdigest()  # type: ignore[arg-type]
    path = os.fspath(source)
    if os.path.isdir(path):
        from .video_decoding_pig import list_frames  # imports transformers

        if names := list_frames(path):
            lines = [f"{hash_file(os.path.join(path, name))}  {name}\n" for name in names]
            return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()
    with open(path, "rb") as file:
        return hash_file(file)


def make_content_id(source: str | os.PathLike | BinaryIO) -> str:
    """Return an identifier made from the content of a video file: "content-" and 32 hexadecimal digits.

    It hashes the size and 16 samples of 64 KiB at equal distances, so that a large file is not read completely; of a
    folder of frames, the sizes and the samples of about 16 frames. Equal files have equal identifiers. Unlike with
    [`hash_file`], different files may have equal ones too, if someone made them so.

    Args:
        source (`str`, `os.PathLike` or `BinaryIO`): path, or a seekable binary file.

    Raises:
        OSError: the file cannot be read.
        VideoDecodingError: the folder cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        size = source.seek(0, os.SEEK_END)
        digest = hashlib.sha256(repr([size]).encode())
        _add_samples(digest, source, size)
        return _CONTENT_ID_PREFIX + digest.hexdigest()[:32]
    files = [os.fspath(source)]
    if os.path.isdir(source):
        from .video_decoding_pig import list_frames  # imports transformers

        files = [os.path.join(source, name) for name in list_frames(os.fspath(source))]
    digest = hashlib.sha256(repr([os.path.getsize(file) for file in files]).encode())
    for file in files[:: max(len(files) // _NUM_SAMPLES, 1)]:
        with open(file, "rb") as opened:
            _add_samples(digest, opened, os.path.getsize(file))
    return _CONTENT_ID_PREFIX + digest.hexdigest()[:32]


def _add_samples(digest: Any, file: BinaryIO, size: int) -> None:
    last = max(size - _SAMPLE_BYTES, 0)
    for number in range(_NUM_SAMPLES if last else 1):
        file.seek(last * number // (_NUM_SAMPLES - 1))
        digest.update(file.read(_SAMPLE_BYTES))


def is_content_id(text: str | None) -> bool:
    """Return whether a text is an identifier that [`make_content_id`] made."""
    return text is not None and text.startswith(_CONTENT_ID_PREFIX)


def _partial_path(path: Path) -> Path:
    # The random name keeps two processes that write the same file apart.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


def _previous_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


__all__ = [
    "PARTIAL_SUFFIX",
    "SYSTEM_FOLDERS",
    "VIDEO_EXTENSIONS",
    "candidate_paths",
    "hash_file",
    "is_content_id",
    "is_hidden",
    "make_content_id",
    "replace_file",
    "replace_folder",
    "resolve_replaceable",
    "restore_folder",
    "write_text",
]
