"""Cache decoded and resized frames on disk, so that each video is decoded once and not in every epoch."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from transformers.utils import logging

from modeling_pig import PigVideoProcessor

from ..bounded_folder import BoundedFolder
from ..files import replace_file
from ..video_decoding_pig import decode_video, sample_frame_indices


logger = logging.get_logger(__name__)

NPY_HEADER = 128  # bytes


class FrameCache:
    """Cache evenly spaced frames of each video, resized to the input size of the model, as `.npy` files in a folder.

    Training with a cache differs slightly from training without a cache: jittered frames are drawn from `num_frames`
    evenly spaced frames of a video (or from all, if it has fewer), instead of from all frames.

    Any number of processes may share a folder: entries are written atomically, and a missing or damaged entry is
    decoded again. An entry belongs to a path with a size and a modification time. Entries of changed files are evicted
    in time. Frames that are replaced within a folder of frames are not noticed.

    Args:
        folder (`str` or `os.PathLike`): folder of the entries; it is created if needed. Other files are not touched.
        max_bytes (`int`): total size of the entries; the least recently used entries are evicted. Processes that write
            at the same time can exceed it briefly by one entry each. A frame has 3 x height x width bytes.
        video_processor (`PigVideoProcessor`): resizes the frames.
        num_frames (`int`): frames per video.

    Raises:
        ValueError: the folder cannot be created.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        max_bytes: int,
        video_processor: PigVideoProcessor,
        num_frames: int = 32,
    ):
        self.folder = Path(folder).expanduser()
        self.max_bytes = max_bytes
        self._bounded = BoundedFolder(self.folder, max_bytes, (".npy",))
        self.video_processor = video_processor
        self.num_frames = num_frames
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.frame_cache, {self.folder}, cannot be created: {error.strerror}.") from error

    def load(self, path: str | os.PathLike, start: float | None = None, end: float | None = None) -> np.ndarray:
        """Return the frames of a video or of its segment [`start`, `end`) in seconds, from the cache if possible.

        Returns:
            `np.ndarray` of shape `(N, 3, height, width)`: uint8; N is `num_frames`, or less in a shorter video.

        Raises:
            VideoDecodingError: the video is not in the cache and cannot be decoded.
        """
        entry = self._entry(path, start, end)
        frames = _read(entry) if entry else None
        if frames is None:
            frames = self._decode(path, start, end)
            if entry:
                self._write(entry, frames)
        return frames

    def _entry(self, path: str | os.PathLike, start: float | None, end: float | None) -> Path | None:
        """Return the cache file of a video, or `None` if the video does not exist (the decoder reports it)."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        processor = self.video_processor
        facts = [os.path.abspath(os.fsdecode(path)), status.st_size, status.st_mtime_ns, start, end]
        facts += [self.num_frames, sorted(dict(processor.size).items()), int(processor.resample)]
        facts += [processor.frame_sampling]
        return self.folder / f"{hashlib.sha256(repr(facts).encode('utf-8', 'surrogateescape')).hexdigest()}.npy"

    def _decode(self, path: str | os.PathLike, start: float | None, end: float | None) -> np.ndarray:
        options = self.video_processor.decoding_options
        frames, metadata = decode_video(path, self.num_frames, start=start, end=end, **options)
        indices = np.array(metadata.frames_indices)
        by_index = indices[0] + sample_frame_indices(indices[-1] - indices[0] + 1, self.num_frames)
        if np.array_equal(indices, by_index):  # Otherwise the repetitions say for how long a frame is displayed.
            frames = frames[np.unique(indices, return_index=True)[1]]  # short videos repeat frames
        return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))

    def _write(self, entry: Path, frames: np.ndarray) -> None:
        try:
            if self._bounded.make_room(frames.nbytes + NPY_HEADER):
                with replace_file(entry) as partial, partial.open("wb") as file:
                    np.save(file, frames, allow_pickle=False)
        except FileNotFoundError:
            pass  # another process evicted the incomplete file
        except OSError as error:  # for example a full disk: training continues without the entry
            logger.warning_once(f"Frames cannot be kept in {self.folder}: {error.strerror or error}.")


def _read(entry: Path) -> np.ndarray | None:
    """Read an entry and mark it as used; remove a damaged entry. Return `None` without a usable entry."""
    try:
        frames = np.load(entry, allow_pickle=False)
        if frames.dtype != np.uint8 or frames.ndim != 4 or not len(frames):
            raise ValueError("no frames")
        with suppress(OSError):  # a shared folder may be read-only
            os.utime(entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError):
        with suppress(OSError):
            entry.unlink(missing_ok=True)
        return None
    return frames


__all__ = ["FrameCache"]
