"""Folders, globs and files -> the video files to index, each once, with size and time, by which a change is known."""

import os
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

from ..video_decoding_pig import VideoDecodingError


VIDEO_EXTENSIONS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}


class FoundVideo(NamedTuple):
    """A video file: absolute path, size in bytes, and time of its last change in ns."""

    path: str
    size: int
    modified: int


@dataclass
class _Place:
    """A folder and the components of a pattern below it (none: all that it holds); or a file."""

    name: str  # as it was given
    root: str
    pattern: list[str]
    visited: set[tuple[int, int]] = field(default_factory=set)  # device and number of its folders: links may loop
    num_met: int = 0  # videos, those that were listed already included


@dataclass
class FoundVideos:
    """What [`find_videos`] found.

    videos (`list[FoundVideo]`): in order of path, no file twice.
    failures (`list[VideoDecodingError]`): files that no index can hold, and files, folders and links that cannot be
        read.
    """

    videos: list[FoundVideo] = field(default_factory=list)
    failures: list[VideoDecodingError] = field(default_factory=list)
    _places: list[_Place] = field(default_factory=list)
    _unreadable: list[str] = field(default_factory=list)

    def would_hold(self, path: str) -> bool:
        """Whether the video of this absolute path would have been found, were it there: if it was not, it is gone.
        Of other places, and of what cannot be read with all that lies in it, the search knows nothing."""
        if not _is_video_name(path) or any(path == one or _parts_below(one, path) for one in self._unreadable):
            return False
        for place in self._places:
            parts = _parts_below(place.root, path)
            if parts and not any(part.startswith(".") for part in parts) and _matches(parts, place.pattern):
                return True
        return False


def find_videos(places: str | bytes | os.PathLike | Iterable[str | bytes | os.PathLike]) -> FoundVideos:
    """The video files in folders with their subfolders, those that match globs, and single files.

    A file counts by its extension, whatever it is if the file itself was given; hidden files and folders do not count.
    Links are followed. A file that has several names is listed once, by one that leads over no link if it has one.

    Args:
        places (`str`, `os.PathLike` or several): each a folder, a file, or a pattern such as `"clips/**/*.mp4"`, where
            `**` stands for any number of folders, and a folder that matches stands for all that it holds.

    Raises:
        ValueError: a place that is not there, or one without videos. An empty folder may be a disk that is not
            mounted: it should not pass for one whose videos have all been deleted.
    """
    found = FoundVideos()
    listed: set[tuple[int, int]] = set()  # device and number of the files
    links: deque[tuple[_Place, str, list[str]]] = deque()
    for name in [places] if isinstance(places, (str, bytes, os.PathLike)) else places:
        place = _place_of(os.fsdecode(name))
        found._places.append(place)
        _take(place, place.root, [], found, listed, links)
    # Last, so that what a link leads to is listed by its own name where that is in one of the places.
    while links:
        place, path, parts = links.popleft()
        _take(place, path, parts, found, listed, links)
    for place in found._places:
        if place.root in found._unreadable:
            raise ValueError(f"{place.name} cannot be read: you need its disk, and the permission to list it.")
        if not place.num_met:
            verb = "matches" if place.pattern else "holds"
            known = ", ".join(sorted(VIDEO_EXTENSIONS))
            raise ValueError(
                f"{place.name} {verb} no videos (files named {known}), nor do its subfolders. An index keeps what it "
                "holds of an empty folder, whose disk may not be mounted; if it is to hold nothing, delete the index."
            )
    found.videos.sort()
    found.failures.sort(key=lambda failure: failure.path)
    return found


def _place_of(name: str) -> _Place:
    """A name that is there is that file or folder, whatever characters it holds; another may be a pattern."""
    root = os.path.abspath(os.path.expanduser(name))
    pattern: list[str] = []
    while not os.path.exists(root) and any(character in root for character in "*?["):
        root, component = os.path.split(root)
        pattern.insert(0, component)
    if not os.path.exists(root):
        raise ValueError(f"There is no file or folder {name}.")
    if os.path.isdir(root):
        return _Place(name, os.path.realpath(root), pattern)
    # A file keeps its own name where that is a link, as it does when its folder is given.
    return _Place(name, os.path.join(os.path.realpath(os.path.dirname(root)), os.path.basename(root)), pattern)


def _take(
    place: _Place,
    path: str,
    parts: list[str],
    found: FoundVideos,
    listed: set[tuple[int, int]],
    links: deque[tuple[_Place, str, list[str]]],
) -> None:
    """Takes a file, or all that a folder holds; `parts` is the way to it from the root of its place."""
    pending = [(path, parts)]
    while pending:
        path, parts = pending.pop()
        is_wanted = not parts or (_is_video_name(path) and _matches(parts, place.pattern))
        try:
            status = os.stat(path)
        except OSError as error:
            is_link = os.path.islink(path)
            if is_link or not isinstance(error, FileNotFoundError):  # otherwise it was deleted just now
                found._unreadable.append(path)
                what = "a link that leads nowhere" if is_link else "cannot be read"
                # Behind a link of any name may have been a folder, of a disk that is not mounted now.
                if is_wanted or _matches(parts, place.pattern, partly=True):
                    found.failures.append(VideoDecodingError(path, f"{what} ({error.strerror})"))
            continue
        identity = status.st_dev, status.st_ino
        is_folder = stat.S_ISDIR(status.st_mode)
        # A folder that is named like a video is listed as well: it may hold frames, or be a mistake to be told.
        if is_wanted and (parts or not is_folder):
            place.num_met += 1
            if identity not in listed:
                listed.add(identity)
                _list(FoundVideo(path, status.st_size, status.st_mtime_ns), found)
        if is_folder and identity not in place.visited and _matches(parts, place.pattern, partly=True):
            place.visited.add(identity)
            try:
                with os.scandir(path) as entries:
                    visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
                own = [e for e in visible if not e.is_symlink() and (_is_video_name(e.name) or e.is_dir())]
            except OSError as error:
                found._unreadable.append(path)
                found.failures.append(VideoDecodingError(path, f"the folder cannot be read ({error.strerror})"))
                continue
            links += [(place, e.path, [*parts, e.name]) for e in visible if e.is_symlink()]
            pending += [(e.path, [*parts, e.name]) for e in reversed(own)]  # which is taken from its end


def _list(video: FoundVideo, found: FoundVideos) -> None:
    try:
        video.path.encode()
    except UnicodeEncodeError:
        reason = "its name is not valid UTF-8, and an index holds text: rename the file or its folder"
        found.failures.append(VideoDecodingError(video.path, reason))
    else:
        found.videos.append(video)


def _is_video_name(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS


def _parts_below(folder: str, path: str) -> list[str]:
    """The components that lead from a folder to what lies in it; none if it does not."""
    prefix = os.path.join(folder, "")
    return path.removeprefix(prefix).split(os.sep) if path.startswith(prefix) else []


def _matches(parts: list[str], pattern: list[str], partly: bool = False) -> bool:
    """Whether a path, or a folder on the way to it, matches a pattern; or, `partly`, whether what lies in it may."""
    if not pattern:
        return True
    if not parts:
        return partly
    if pattern[0] == "**" and _matches(parts[1:], pattern, partly):
        return True
    if pattern[0] == "**":
        return _matches(parts, pattern[1:], partly)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:], partly)


__all__ = ["VIDEO_EXTENSIONS", "FoundVideo", "FoundVideos", "find_videos"]
