"""Save the segments that a search found as clips in a folder, under safe names, without overwriting other files."""

import hashlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from ..remote import file_state, open_source
from ..stores.records import VideoEntry
from ..stores.results import SearchResult
from ..video_decoding_pig import VideoDecodingError
from ..video_file_pig import import_av
from .clips import Clip, clip_suffix, write_clip


_MAX_NAME = 120  # bytes of the name of a video in the name of its clip; file systems allow 255 in all
# Names that Windows reserves for devices.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass
class SavedClips:
    """Result of [`save_clips`].

    Attributes:
        clips (`list[Clip]`): clips that were written.
        kept (`list[str]`): files that an earlier run wrote from the same segments of the same videos.
        failures (`list[VideoDecodingError]`): videos that cannot be cut, with the reasons.
    """

    clips: list[Clip] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failures: list[VideoDecodingError] = field(default_factory=list)


def prepare_folder(folder: str | os.PathLike) -> None:
    """Create a folder for clips if it does not exist, and check that files can be written into it.

    Raises:
        OSError: the folder cannot be created or written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder} is not a folder: give a folder for the clips.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"Clips cannot be written into {folder}: {error.strerror}. Give another folder.") from error


def save_clips(
    results: Iterable[SearchResult],
    folder: str | os.PathLike,
    *,
    exact: bool = False,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> SavedClips:
    """Cut the segments of results, or their moments, out of their videos.

    A clip is named after its video and its time, such as `holiday_0m30s-1m00s.mp4`. If the name is taken by a file
    that is not this clip, the clip gets the next free one (`..._2.mp4`): no file is overwritten.

    Args:
        results (`Iterable[SearchResult]`): results of a search; each segment is saved once.
        folder (`str` or `os.PathLike`): folder that exists.
        exact, is_cancelled: as for [`write_clip`].

    Returns:
        [`SavedClips`]: the clips, and the videos that cannot be cut.

    Raises:
        OSError: a clip cannot be written; the message says how many are.
        InterruptedError: `is_cancelled` returned `True`.
    """
    saved, suffix = SavedClips(), clip_suffix()
    for path, start, end in dict.fromkeys((result.path, *result.span) for result in results):
        comment = _describe(path, start, end, exact)
        name = clip_name(path, start, end)
        output = None
        try:
            output = _reserve(Path(folder), name, suffix, comment)
            if os.path.getsize(output):
                saved.kept.append(output)
                continue
            duration = None if end is None else end - (start or 0.0)
            with open_source(path) as source:
                clip = write_clip(
                    source, start, duration, output, exact=exact, comment=comment, is_cancelled=is_cancelled
                )
            saved.clips.append(clip)
        except VideoDecodingError as error:
            saved.failures.append(error)
        except InterruptedError:
            raise
        except OSError as error:
            raise OSError(f"{error} ({len(saved.clips)} clips are saved)") from error
        finally:
            if output is not None:
                with suppress(OSError):
                    if not os.path.getsize(output):  # reserved, and not written
                        os.unlink(output)
    return saved


def clip_name(path: str, start: float | None, end: float | None) -> str:
    """Return the name of a clip, without extension: that of its video with safe characters, and its time."""
    stem = unicodedata.normalize("NFC", os.path.splitext(os.path.basename(path))[0])
    stem = re.sub(r"[^\w.\-]+", "_", stem.encode("utf-8", "replace").decode()).strip("._-") or "video"
    stem = stem.encode()[:_MAX_NAME].decode("utf-8", "ignore")
    if _RESERVED.fullmatch(stem):
        stem = f"video_{stem}"
    if start is None and end is None:
        return stem
    return f"{stem}_{_clock(start or 0.0)}-{'end' if end is None else _clock(end)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds, 2), 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h{minutes:02}m" if hours else f"{minutes}m") + f"{seconds:05.2f}".removesuffix(".00") + "s"


def _describe(path: str, start: float | None, end: float | None, exact: bool) -> str:
    """Return a tag by which a later run knows this clip; it does not tell the path of the video."""
    try:
        state = file_state(path)[:2]
    except OSError:
        state = (0, 0)
    digest = hashlib.sha256(repr((VideoEntry(path, start, end).key, *state, exact)).encode("utf-8", "replace"))
    return f"pig clip {digest.hexdigest()[:32]}"


def _reserve(folder: Path, name: str, suffix: str, comment: str) -> str:
    """Return the file of a clip that exists, or a free name: then the file is created empty, so that it is ours."""
    for number in count(1):
        output = folder / f"{name}{'' if number == 1 else f'_{number}'}{suffix}"
        try:
            with open(output, "xb"):
                return str(output)
        except FileExistsError:
            if output.is_file() and not output.is_symlink() and _read_comment(output) == comment:
                return str(output)
    raise AssertionError


def _read_comment(path: Path) -> str | None:
    av = import_av()
    try:
        with av.open(f"file:{path}", metadata_errors="ignore") as container:
            return container.metadata.get("comment") or container.metadata.get("COMMENT")
    except (av.FFmpegError, OSError):
        return None


__all__ = ["SavedClips", "clip_name", "prepare_folder", "save_clips"]
