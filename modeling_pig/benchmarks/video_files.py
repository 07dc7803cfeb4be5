"""The videos of a benchmark on disk: finds the file of a video id, and tells which files cannot be opened."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from ..video_decoding_pig import JPEG_FRAME, VideoDecodingError, ensure_opens


# fmt: off
VIDEO_EXTENSIONS = {
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".rm", ".ts", ".vob", ".webm", ".wmv",
}
# fmt: on


class VideoFiles:
    """
    The videos in a folder and its subfolders, by the names that annotations have for them.

    A video is a file with the extension of a video or with none, or a folder of numbered JPEGs (`000001.jpg`,
    `frame_0001.jpeg`, ...), its frames. Hidden files and folders are skipped, and so is what cannot be read. The
    folder is walked once, here, through links as well: what is added later is not seen.

    Args:
        folder (`str` or `os.PathLike`): The folder. Its videos may lie in it side by side, or in subfolders.

    Attributes:
        folder (`str`): Its absolute path.
        fingerprint (`str`): 64 hexadecimal digits. A hash of the videos' names with the size and the modification
            time of each; of a folder of frames with their number and the modification time of the folder.

    Raises:
        `ValueError`: If there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.path.abspath(os.path.expanduser(folder))
        if not os.path.isdir(self.folder):
            raise ValueError(f"there is no folder {os.fspath(folder)!r}; give the one that holds the videos")
        # Base name -> (is a folder of frames, number of folders above it, path from the folder) of the candidates.
        self._candidates: dict[str, list[tuple[bool, int, str]]] = {}
        self._walk()

    def find(self, name: str) -> str | None:
        """
        Finds the file of a video.

        An extension is a matter of the file, not of the video: `x.mov` finds `x.mp4`, and `x` and `x.` find
        either. Of several candidates files come before folders of frames, then what is named exactly so, then
        the one in the fewest folders, then the first in the order of the alphabet.

        Args:
            name (`str`): Id of a video, or the name of its file in an annotation. If it holds a `/`, the folders
                that it names have to be there as well.

        Returns:
            `str` or `None`: Absolute path of the file, or of the folder of frames.
        """
        name = os.path.normpath(name)
        wanted = _base_name(name)
        candidates = [
            candidate
            for candidate in self._candidates.get(os.path.basename(wanted), ())
            if f"/{_base_name(candidate[2])}".endswith(f"/{wanted}")
        ]
        if not candidates:
            return None
        # Ascending: False comes before True.
        best = min(candidates, key=lambda found: (found[0], not f"/{found[2]}".endswith(f"/{name}"), *found[1:]))
        return os.path.join(self.folder, best[2])

    def _walk(self) -> None:
        found = []  # (path from the folder, size or number of frames, modification time)
        visited = set()  # Links may lead in a circle.
        for parent, folders, files in os.walk(self.folder, followlinks=True):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            relative = os.path.relpath(parent, self.folder)
            num_frames = sum(JPEG_FRAME.fullmatch(name) is not None for name in files)
            if num_frames and relative != os.curdir:
                self._add(relative, is_frames=True)
                found.append((relative, num_frames, status.st_mtime_ns))
            for name in files:
                extension = os.path.splitext(name)[1].lower()
                if name.startswith(".") or extension.strip(".") and extension not in VIDEO_EXTENSIONS:
                    continue
                try:
                    status = os.stat(os.path.join(parent, name))
                except OSError:
                    continue  # A link to nowhere, or removed meanwhile.
                path = os.path.normpath(os.path.join(relative, name))
                self._add(path, is_frames=False)
                found.append((path, status.st_size, status.st_mtime_ns))
        digest = hashlib.sha256()
        for path, size, time in sorted(found):
            digest.update(os.fsencode(f"{path}\0{size}\0{time}\0"))
        self.fingerprint = digest.hexdigest()

    def _add(self, path: str, is_frames: bool) -> None:
        name = os.path.basename(_base_name(path))
        self._candidates.setdefault(name, []).append((is_frames, path.count(os.sep), path))


def _base_name(name: str) -> str:
    """The name without extensions of videos, which may be empty ones; other dots belong to the name."""
    base, extension = os.path.splitext(name)
    return _base_name(base) if extension.lower() in {".", *VIDEO_EXTENSIONS} else name


def unreadable(
    paths: Iterable[str | os.PathLike], num_threads: int | None = None, progress: bool = True
) -> dict[str, str]:
    """
    Tells which videos do not open. Nothing is decoded: a video that opens may still be damaged further on.

    Args:
        paths (`Iterable[str | os.PathLike]`): Video files, or folders of numbered JPEGs.
        num_threads (`int`, *optional*): How many are opened at a time; by default one a core.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar on standard error.

    Returns:
        `dict[str, str]`: Those that do not, each with what is wrong with it, in plain words.
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
    """What is wrong with a video that does not open."""
    try:
        ensure_opens(path)
    except VideoDecodingError as error:
        return error.reason
    return None
