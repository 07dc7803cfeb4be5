"""Find video files in folders, by patterns and by name, with the size and time by which changes are detected."""

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
    """A video file.

    Attributes:
        path (`str`): absolute path.
        size (`int`): size in bytes.
        modified (`int`): time of the last change, in ns since 1970.
    """

    path: str
    size: int
    modified: int


@dataclass
class _Source:
    """A file, or a folder and the pattern that paths in it must match."""

    name: str  # as the user gave it
    root: str  # absolute path of the file or folder
    pattern: list[str]  # components below `root`, such as ["**", "*.mp4"]; empty if all videos in `root` match
    visited: set[tuple[int, int]] = field(default_factory=set)  # device and inode of its folders: links may form loops
    num_videos: int = 0  # including those that another source listed before


@dataclass
class FoundVideos:
    """Result of [`find_videos`].

    Attributes:
        videos (`list[FoundVideo]`): video files in order of path, each file once.
        failures (`list[VideoDecodingError]`): files, folders and links that cannot be read, and files whose path an
            index cannot hold, in order of path.
    """

    videos: list[FoundVideo] = field(default_factory=list)
    failures: list[VideoDecodingError] = field(default_factory=list)
    _sources: list[_Source] = field(default_factory=list)
    _unreadable: list[str] = field(default_factory=list)

    def covers(self, path: str) -> bool:
        """Return whether the search would have found a video with this absolute path, if it existed.

        A covered path that is not in `videos` is that of a deleted file. Paths outside the sources, and in folders
        that cannot be read, are not covered.
        """
        unreadable = (path == other or _parts_below(other, path) for other in self._unreadable)
        if not _has_video_extension(path) or any(unreadable):
            return False
        for source in self._sources:
            parts = _parts_below(source.root, path)
            if parts and not any(part.startswith(".") for part in parts) and _matches(parts, source.pattern):
                return True
        return False


def find_videos(sources: str | bytes | os.PathLike | Iterable[str | bytes | os.PathLike]) -> FoundVideos:
    """Find the video files in folders and their subfolders, the files that match patterns, and single files.

    Videos are recognised by their extension; a file that is itself a source always counts as a video. Hidden files
    and folders are skipped. Links are followed. A file with several paths is listed once, if possible by a path
    without links.

    Args:
        sources (`str`, `os.PathLike` or several): folders, files, or patterns such as `"clips/**/*.mp4"`, where `**`
            matches any number of folders. If a pattern matches a folder, all videos in the folder match.

    Raises:
        ValueError: a source does not exist, cannot be read, or contains no videos. An empty folder may be the mount
            point of a missing disk, so its videos do not count as deleted.
    """
    finder = _Finder()
    for name in [sources] if isinstance(sources, (str, bytes, os.PathLike)) else sources:
        finder.search(_make_source(os.fsdecode(name)))
    finder.follow_links()
    found = finder.found
    for source in found._sources:
        if source.root in found._unreadable:
            raise ValueError(
                f"{source.name} cannot be read: mount its disk, and check that you have the permission to list it."
            )
        if not source.num_videos:
            verb = "matches" if source.pattern else "holds"
            extensions = ", ".join(sorted(VIDEO_EXTENSIONS))
            raise ValueError(
                f"{source.name} {verb} no videos (files named {extensions}), nor do its subfolders. Mount its disk "
                "or leave it out; an index keeps its entries of an empty folder. To empty an index, delete it."
            )
    found.videos.sort()
    found.failures.sort(key=lambda failure: failure.path)
    return found


def _make_source(name: str) -> _Source:
    """Make a source of a path or pattern. A path that exists is no pattern, whatever characters it contains."""
    root = os.path.abspath(os.path.expanduser(name))
    pattern: list[str] = []
    while not os.path.exists(root) and any(character in root for character in "*?["):
        root, component = os.path.split(root)
        pattern.insert(0, component)
    if not os.path.exists(root):
        raise ValueError(f"There is no file or folder {name}.")
    if os.path.isdir(root):
        return _Source(name, os.path.realpath(root), pattern)
    # A link to a file keeps its own name, as it does when its folder is the source.
    return _Source(name, os.path.join(os.path.realpath(os.path.dirname(root)), os.path.basename(root)), pattern)


class _Finder:
    """Search sources, and collect their videos in `found`."""

    def __init__(self) -> None:
        self.found = FoundVideos()
        self._listed: set[tuple[int, int]] = set()  # device and inode of the files in `found`
        self._links: deque[tuple[_Source, str, list[str]]] = deque()

    def search(self, source: _Source) -> None:
        """Search a source without following links."""
        self.found._sources.append(source)
        self._search(source, source.root, [])

    def follow_links(self) -> None:
        """Follow the links of all sources. This comes last, so that a path without links has priority."""
        while self._links:
            self._search(*self._links.popleft())

    def _search(self, source: _Source, path: str, parts: list[str]) -> None:
        """Search a file or folder; `parts` are the components of its path below the root of the source."""
        pending = [(path, parts)]
        while pending:
            path, parts = pending.pop()
            is_match = not parts or (_has_video_extension(path) and _matches(parts, source.pattern))
            may_contain_matches = _matches(parts, source.pattern, partly=True)
            try:
                status = os.stat(path)
            except OSError as error:
                is_link = os.path.islink(path)
                if isinstance(error, FileNotFoundError) and not is_link:
                    continue  # deleted since its folder was listed
                # The target of a broken link may be a folder on a disk that is not mounted.
                reason = f"{'broken link' if is_link else 'cannot be read'} ({error.strerror})"
                self._add_unreadable(path, reason, is_failure=is_match or may_contain_matches)
                continue
            identity = status.st_dev, status.st_ino
            is_folder = stat.S_ISDIR(status.st_mode)
            # Also list a folder that is named like a video: it may hold frames; otherwise decoding it fails.
            if is_match and (parts or not is_folder):
                source.num_videos += 1
                if identity not in self._listed:
                    self._listed.add(identity)
                    self._add(FoundVideo(path, status.st_size, status.st_mtime_ns))
            if is_folder and identity not in source.visited and may_contain_matches:
                source.visited.add(identity)
                try:
                    with os.scandir(path) as entries:
                        visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
                    own = [e for e in visible if not e.is_symlink() and (_has_video_extension(e.name) or e.is_dir())]
                except OSError as error:
                    self._add_unreadable(path, f"the folder cannot be read ({error.strerror})")
                    continue
                self._links += [(source, e.path, [*parts, e.name]) for e in visible if e.is_symlink()]
                pending += [(e.path, [*parts, e.name]) for e in reversed(own)]  # the last is searched first

    def _add(self, video: FoundVideo) -> None:
        try:
            video.path.encode()
        except UnicodeEncodeError:
            reason = "its name is not valid UTF-8, and an index holds text: rename the file or its folder"
            self.found.failures.append(VideoDecodingError(video.path, reason))
        else:
            self.found.videos.append(video)

    def _add_unreadable(self, path: str, reason: str, is_failure: bool = True) -> None:
        self.found._unreadable.append(path)
        if is_failure:
            self.found.failures.append(VideoDecodingError(path, reason))


def _has_video_extension(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS


def _parts_below(folder: str, path: str) -> list[str]:
    """Return the components of a path below a folder; an empty list if the path is not in the folder."""
    prefix = os.path.join(folder, "")
    return path.removeprefix(prefix).split(os.sep) if path.startswith(prefix) else []


def _matches(parts: list[str], pattern: list[str], partly: bool = False) -> bool:
    """Return whether a path, or one of its parent folders, matches a pattern.

    With `partly`, return whether the path is a folder that may contain matching paths.
    """
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
