"""Find video files in folders, by patterns and by name, with the size and time by which changes are detected.

Folders and files are on this machine, in object storage, on the Hugging Face Hub or on web servers.
"""

import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple

import PIL.Image

from ..files import VIDEO_EXTENSIONS, is_hidden
from ..remote import open_source
from ..video_file_pig import VideoDecodingError, is_url
from .list_remote import RemoteListing, list_remote


# Other files have these extensions too: extension -> what the start of a video contains, and of the others does not.
NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a]")
CONTENT_OF_VIDEOS = {
    ".ts": NOT_TEXT,  # TypeScript, translations
    ".mts": NOT_TEXT,  # TypeScript
    ".mod": re.compile(
        rb"\A\x00\x00\x01\xba"
    ),  # modules of Go and Fortran, music; the video is an MPEG program stream
    ".ogg": re.compile(rb"\x80theora|\x01video|OVP80|BBCD"),  # music; Theora, OGM, VP8 and Dirac are videos
}
READ_BYTES = 65536  # of a file, to recognise its content

NUM_NAMED = 8  # extensions that `describe_passed_over` names


class FoundVideo(NamedTuple):
    """A video file.

    Attributes:
        path (`str`): absolute path, or address of a remote file.
        size (`int`): size in bytes.
        modified (`int`): time of the last change, in ns since 1970; see also [`RemoteState`].
    """

    path: str
    size: int
    modified: int


@dataclass
class _Source:
    """A file, or a folder and the pattern that paths in it must match."""

    name: str  # as the user gave it
    root: str  # absolute path or address of the file or folder
    pattern: list[str]  # components below `root`, such as ["**", "*.mp4"]; empty if all videos in `root` match
    visited: set[tuple[int, int]] = field(default_factory=set)  # device and inode of its folders: links may form loops
    is_folder: bool = False
    is_readable: bool = True
    num_videos: int = 0  # including those that another source listed before
    passed_over: Counter[str] = field(default_factory=Counter)  # files that are not videos, by extension


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
    _not_videos: set[str] = field(default_factory=set)  # files named like videos

    @property
    def passed_over(self) -> Counter[str]:
        """Number of files that are not videos, by extension in lower case (`".jpg"`, or `""`); no hidden files."""
        return sum((source.passed_over for source in self._sources), Counter())

    @property
    def folders(self) -> list[str]:
        """Paths of the folders that were searched; for a single file, the path of its folder."""
        sources = (source for source in self._sources if source.is_readable)
        return list(dict.fromkeys(s.root if s.is_folder else os.path.dirname(s.root) for s in sources))

    def covers(self, path: str) -> bool:
        """Return whether the search would have found a video with this absolute path, if it existed.

        A covered path that is not in `videos` is that of a deleted file. Paths outside the sources, in folders that
        cannot be read, and of files whose content is no longer a video, are not covered.
        """
        unreadable = (path == other or _parts_below(other, path) for other in self._unreadable)
        if not _has_video_extension(path) or path in self._not_videos or any(unreadable):
            return False
        for source in self._sources:
            parts = _parts_below(source.root, path)
            if parts and not any(map(is_hidden, parts)) and _matches(parts, source.pattern):
                return True
        return False


def find_videos(sources: str | bytes | os.PathLike | Iterable[str | bytes | os.PathLike]) -> FoundVideos:
    """Find the video files in folders and their subfolders, the files that match patterns, and single files.

    Videos are recognised by their extension, see `modeling_pig.files.VIDEO_EXTENSIONS`. Files named ts, mts, mod and
    ogg, which may be something else, are also recognised by their content, and a gif counts as a video if it has
    several frames. A file that is itself a source always counts as a video. Hidden files and folders are skipped, as
    are `modeling_pig.files.SYSTEM_FOLDERS`. Links are followed. A file with several paths is listed once, if possible
    by a path without links.

    A remote source that cannot be read is a failure, and the others are searched; its videos do not count as deleted.

    Args:
        sources (`str`, `os.PathLike` or several): folders, files, or patterns such as `"clips/**/*.mp4"`, where `**`
            matches any number of folders. If a pattern matches a folder, all videos in the folder match. The address
            of a remote source starts with `s3://`, `gs://`, `az://`, `hf://`, `https://` or `http://`; the last two
            name single files.

    Raises:
        ValueError: a local source does not exist or cannot be read, the only source is remote and cannot be read, or
            a source contains no videos. An empty folder may be the mount point of a missing disk, so its videos do not
            count as deleted.
    """
    finder = _Finder()
    several = [sources] if isinstance(sources, (str, bytes, os.PathLike)) else sources
    names = list(map(os.fsdecode, several))
    for name in names:
        if not is_url(name):
            finder.search(_make_source(name))
    finder.follow_links()
    for listing in list_remote(filter(is_url, names)):
        finder.add_remote(listing)
    found = finder.found
    if len(names) == 1 and found.failures and not found.videos and not found._sources[0].is_readable:
        raise ValueError(str(found.failures[0]))
    for source in found._sources:
        if not source.is_readable:
            continue
        if source.root in found._unreadable:
            raise ValueError(
                f"{source.name} cannot be read: mount its disk, and check that you have the permission to list it."
            )
        if not source.num_videos:
            verb = "matches" if source.pattern else "holds"
            passed_over = f" ({describe_passed_over(source.passed_over)})" if source.passed_over else ""
            raise ValueError(
                f"{source.name} {verb} no videos, nor do its subfolders{passed_over}. Mount its disk or leave it out; "
                "an index keeps its entries of an empty folder. To empty an index, delete it."
            )
    found.videos.sort()
    found.failures.sort(key=lambda failure: failure.path)
    return found


def describe_passed_over(passed_over: Counter[str]) -> str:
    """Describe files that are not videos in one line: `passed over 12 files that are not videos: 10 jpg, 2 txt`."""
    counts = [(count, extension[1:] or "without extension") for extension, count in passed_over.most_common()]
    named = [f"{count} {extension}" for count, extension in counts[:NUM_NAMED]]
    if others := sum(count for count, _ in counts[NUM_NAMED:]):
        named.append(f"{others} others")
    return f"passed over {passed_over.total()} files that are not videos: {', '.join(named)}"


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
        return _Source(name, os.path.realpath(root), pattern, is_folder=True)
    # A link to a file keeps its own name, as it does when its folder is the source.
    return _Source(name, os.path.join(os.path.realpath(os.path.dirname(root)), os.path.basename(root)), pattern)


class _Finder:
    """Search sources, and collect their videos in `found`."""

    def __init__(self) -> None:
        self.found = FoundVideos()
        self._listed: set[tuple[int, int]] = set()  # device and inode of the files in `found`
        self._passed_over: set[tuple[int, int]] = set()  # device and inode of counted files, or of their folder
        self._addresses: set[str] = set()  # of remote files that are listed or passed over
        self._links: deque[tuple[_Source, str, list[str]]] = deque()

    def search(self, source: _Source) -> None:
        """Search a source without following links."""
        self.found._sources.append(source)
        self._search(source, source.root, [])

    def follow_links(self) -> None:
        """Follow the links of all sources. This comes last, so that a path without links has priority."""
        while self._links:
            self._search(*self._links.popleft())

    def add_remote(self, listing: RemoteListing) -> None:
        """Add the videos among remote files, which have neither links nor folders of frames."""
        is_readable = bool(listing.files) or not listing.failures
        source = _Source(listing.name, listing.root, listing.pattern, is_folder=listing.is_folder)
        source.is_readable = is_readable
        self.found._sources.append(source)
        for failure in listing.failures:
            self.found._unreadable.append(listing.root if failure.path == listing.name else failure.path)
        self.found.failures += listing.failures
        for address, state in listing.files:
            parts = _parts_below(listing.root, address)
            if parts and (any(map(is_hidden, parts)) or not _matches(parts, listing.pattern)):
                continue
            is_new = address not in self._addresses
            self._addresses.add(address)
            if not parts or _has_video_extension(address) and (not is_new or _may_hold_video(address)):
                source.num_videos += address not in self.found._not_videos
                if is_new:
                    self.found.videos.append(FoundVideo(address, *state))
            elif is_new:
                source.passed_over[_extension(address)] += 1
                if _has_video_extension(address):
                    self.found._not_videos.add(address)

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
            if is_match and parts and stat.S_ISREG(status.st_mode) and not _may_hold_video(path):
                self.found._not_videos.add(path)
                is_match = False
            # Also list a folder that is named like a video: it may hold frames; otherwise decoding it fails.
            is_video = is_match and (bool(parts) or not is_folder)
            if is_video:
                source.num_videos += 1
                if identity not in self._listed:
                    self._listed.add(identity)
                    self._add(FoundVideo(path, status.st_size, status.st_mtime_ns))
            elif not is_folder:
                self._pass_over(source, identity, [parts])
            if is_folder and identity not in source.visited and may_contain_matches:
                source.visited.add(identity)
                try:
                    with os.scandir(path) as entries:
                        visible = sorted((e for e in entries if not is_hidden(e.name)), key=lambda e: e.name)
                    links = [e for e in visible if e.is_symlink()]
                    own = [e for e in visible if not e.is_symlink()]
                    searched = [e for e in own if _has_video_extension(e.name) or e.is_dir()]
                except OSError as error:
                    self._add_unreadable(path, f"the folder cannot be read ({error.strerror})")
                    continue
                if not is_video:  # the files of a video are its frames
                    others = (e.name for e in own if not (_has_video_extension(e.name) or e.is_dir()))
                    self._pass_over(source, identity, ([*parts, name] for name in others))
                self._links += [(source, e.path, [*parts, e.name]) for e in links]
                pending += [(e.path, [*parts, e.name]) for e in reversed(searched)]  # the last is searched first

    def _pass_over(self, source: _Source, identity: tuple[int, int], files: Iterable[list[str]]) -> None:
        """Count files that match a source but are not videos, unless another source has counted them.

        `identity` is that of the file, or of the folder that holds the files.
        """
        names = [parts[-1] for parts in files if _matches(parts, source.pattern)]
        if names and identity not in self._passed_over:
            self._passed_over.add(identity)
            source.passed_over.update(map(_extension, names))

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


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _has_video_extension(path: str) -> bool:
    return _extension(path) in VIDEO_EXTENSIONS


def _may_hold_video(path: str) -> bool:
    """Return whether the content of a file may be a video; `True` if it is damaged: decoding reports the reason."""
    extension = _extension(path)
    if extension != ".gif" and extension not in CONTENT_OF_VIDEOS:
        return True
    try:
        with open_source(path, whole=False) as source:
            if extension == ".gif":
                with PIL.Image.open(source, formats=["GIF"]) as image:
                    return getattr(image, "is_animated", True)
            with open(source, "rb") if isinstance(source, str) else nullcontext(source) as file:
                return CONTENT_OF_VIDEOS[extension].search(file.read(READ_BYTES)) is not None
    except (OSError, SyntaxError, VideoDecodingError, PIL.Image.DecompressionBombError):
        pass
    return True


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


__all__ = ["FoundVideo", "FoundVideos", "describe_passed_over", "find_videos"]
