"""Find the file of a video id in a folder, and list the video files that cannot be opened."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from ..files import VIDEO_EXTENSIONS, is_hidden
from ..video_decoding_pig import JPEG_FRAME, VideoDecodingError, ensure_opens


# `.null` is the extension of some DiDeMo videos.
_EXTENSIONS = VIDEO_EXTENSIONS | {".null"}


class _Candidate(NamedTuple):
    is_folder: bool  # of frames
    depth: int  # number of folders above the video
    path: str  # relative to the folder of the videos


class VideoFiles:
    """
    The videos of a folder and its subfolders, by the names that annotations use for them.

    A video is a file with a video extension or without an extension, or a folder of numbered JPEG frames
    (`000001.jpg`, `frame_0001.jpeg`, ...). Hidden and unreadable files and folders are skipped. The constructor walks
    the folder once and follows links; videos that are added later are not found.

    Args:
        folder (`str` or `os.PathLike`): folder of the videos, with or without subfolders.
        file_names (`Mapping[str, str]`, *optional*): names of the files of ids, for files that are not named by an id.

    Attributes:
        folder (`str`): absolute path of the folder.
        fingerprint (`str`): SHA-256 over the name, size and modification time of each video; for a folder of frames,
            over the number of frames and the modification time of the folder.

    Raises:
        ValueError: there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike, file_names: Mapping[str, str] | None = None):
        self.folder = os.path.abspath(os.path.expanduser(folder))
        if not os.path.isdir(self.folder):
            raise ValueError(f"there is no folder {os.fspath(folder)!r}; give the folder that holds the videos")
        self._file_names = file_names or {}
        self._candidates: dict[str, list[_Candidate]] = {}  # by base name
        self._walk()

    def find(self, name: str) -> str | None:
        """
        Find the file of a video.

        Extensions are ignored: `x.mov` finds `x.mp4`, and `x` and `x.` find both. Of several candidates, files come
        before folders of frames, then exact names before other extensions, then the smallest depth, then alphabetical
        order. If no file has the name of an id in `file_names`, the file of the name given there is found.

        Args:
            name (`str`): id of a video, or the name of its file in an annotation. If it contains a `/`, the parent
                folders must match too.

        Returns:
            `str` or `None`: absolute path of the file or of the folder of frames; `None` if there is none.
        """
        name = os.path.normpath(name)
        wanted = _base_name(name)
        candidates = [
            candidate
            for candidate in self._candidates.get(os.path.basename(wanted), ())
            if f"/{_base_name(candidate.path)}".endswith(f"/{wanted}")
        ]
        if not candidates:
            return self.find(self._file_names[name]) if name in self._file_names else None
        # In ascending order False comes before True.
        best = min(candidates, key=lambda c: (c.is_folder, not f"/{c.path}".endswith(f"/{name}"), c.depth, c.path))
        return os.path.join(self.folder, best.path)

    def _walk(self) -> None:
        found = []  # (path relative to the folder, size or number of frames, modification time)
        visited = set()  # Links may form a cycle.
        for parent, folders, files in os.walk(self.folder, followlinks=True):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            relative = os.path.relpath(parent, self.folder)
            num_frames = sum(JPEG_FRAME.fullmatch(name) is not None for name in files)
            if num_frames and relative != os.curdir:
                self._add(relative, is_folder=True)
                found.append((relative, num_frames, status.st_mtime_ns))
            for name in files:
                extension = os.path.splitext(name)[1].lower()
                if is_hidden(name) or extension.strip(".") and extension not in _EXTENSIONS:
                    continue
                try:
                    status = os.stat(os.path.join(parent, name))
                except OSError:
                    continue  # A broken link, or a file that was removed meanwhile.
                path = os.path.normpath(os.path.join(relative, name))
                self._add(path, is_folder=False)
                found.append((path, status.st_size, status.st_mtime_ns))
        digest = hashlib.sha256()
        for path, size, time in sorted(found):
            digest.update(os.fsencode(f"{path}\0{size}\0{time}\0"))
        self.fingerprint = digest.hexdigest()

    def _add(self, path: str, is_folder: bool) -> None:
        name = os.path.basename(_base_name(path))
        self._candidates.setdefault(name, []).append(_Candidate(is_folder, path.count(os.sep), path))


def _base_name(name: str) -> str:
    """Return the name without video extensions or trailing dots; other dots belong to the name."""
    base, extension = os.path.splitext(name)
    return _base_name(base) if extension.lower() in {".", *_EXTENSIONS} else name


def find_unreadable(
    paths: Iterable[str | os.PathLike], num_threads: int | None = None, progress: bool = True
) -> dict[str, str]:
    """
    Find the videos that do not open. No frame is decoded: a video that opens may still be damaged.

    Args:
        paths (`Iterable[str | os.PathLike]`): video files, or folders of numbered JPEGs.
        num_threads (`int`, *optional*): number of videos that are opened at a time; by default one per core.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar on standard error.

    Returns:
        `dict[str, str]`: reason for each video that does not open, by path.
    """
    names = [os.fsdecode(path) for path in paths]
    problems = {}
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        try:
            reasons = tqdm(pool.map(_problem, names), "checking", len(names), unit="video", disable=not progress)
            for name, reason in zip(names, reasons, strict=True):
                if reason is not None:
                    problems[name] = reason
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return problems


def _problem(path: str) -> str | None:
    """Return why a video does not open; `None` if it opens."""
    try:
        ensure_opens(path)
    except VideoDecodingError as error:
        return error.reason
    return None
