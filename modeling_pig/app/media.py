"""Pictures and playable clips of videos, made once from the package's own decoder and kept in a bounded folder.

Every file that can be indexed has a picture, also those that no browser plays (ts, mxf, folders of frames).
"""

import errno
import functools
import hashlib
import io
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..bounded_folder import BoundedFolder
from ..files import replace_file
from ..remote import file_state, is_gone, is_remote, open_source, redact


if TYPE_CHECKING:  # imports transformers
    from ..video_decoding_pig import VideoDecodingError


IMAGE_TYPE = "image/webp"
THUMBNAIL_SIDE = 320  # pixels of the longer side
PREVIEW_FRAMES, PREVIEW_SIDE = 8, 240
QUALITY = 72  # of WebP: a thumbnail has about 8 kB
# Reading the times of all frames means reading the file. In larger files, pictures are decoded at a keyframe.
MAX_READ_FILE = 64_000_000  # bytes
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # formats with an index of keyframes
MAX_FAILURES = 10_000  # broken files that are remembered
MAX_CLIP = 120.0  # seconds of a playable clip: longer videos are played in parts
MAX_CLIPS = 8  # clips that are being made or wait for it
MAX_TRANSCODING = 180.0  # seconds after which making a clip is given up

logger = logging.getLogger(__name__)


class StorageOfflineError(OSError):
    """Error of a video whose folder cannot be reached, such as on a disk that is not connected."""


class BusyError(RuntimeError):
    """Error of a clip that is not made now, because too many others are."""


class MediaCache:
    """Make thumbnails, previews and playable clips of videos, each once, and keep them in a folder.

    Requests for one picture share one decoding. A changed file, by size or modification time, gets new pictures. If
    the folder cannot be written (read-only, disk full), pictures are made and not kept. Processes may share a folder.

    Args:
        folder (`str` or `os.PathLike`): folder of the files, created if needed; see [`media_folder`].
        max_bytes (`int`, *optional*, defaults to 500,000,000): total size of the files; the least recently used files
            are removed.
        num_decoders (`int`, *optional*, defaults to 2): files that are decoded at a time.
    """

    def __init__(self, folder: str | os.PathLike, max_bytes: int = 500_000_000, num_decoders: int = 2):
        self.folder = Path(folder)
        self._bounded = BoundedFolder(self.folder, max_bytes, (".webp", ".mp4", ".webm"))
        self._decoders = ThreadPoolExecutor(num_decoders, thread_name_prefix="thumbnails")
        self._transcoder = ThreadPoolExecutor(1, thread_name_prefix="clips")  # apart: pictures do not wait for clips
        self._num_clips = 0  # of those in `_pending`
        self._temporary: tempfile.TemporaryDirectory | None = None  # of clips, if `folder` cannot be written
        self._is_closed = False
        self._pending: dict[str, Future] = {}
        self._failures: OrderedDict[str, VideoDecodingError] = OrderedDict()
        self._lock = threading.Lock()  # guards `_pending` and `_failures`
        self._warned = False

    def thumbnail(self, path: str, start: float | None = None, end: float | None = None) -> Future[bytes]:
        """Return the middle frame of a video or of its segment [`start`, `end`) in seconds, as WebP.

        Returns:
            `Future[bytes]`: done if the picture is in the cache. Raises [`VideoDecodingError`] if the file cannot be
            decoded.

        Raises:
            FileNotFoundError: the file does not exist, and its folder does: the file was deleted or moved.
            StorageOfflineError: the folder of the file cannot be reached.
        """
        return self._picture("thumbnail", path, start, end, 1, THUMBNAIL_SIDE)

    def preview(self, path: str, start: float | None = None, end: float | None = None) -> Future[bytes]:
        """Return `PREVIEW_FRAMES` frames of a video or segment side by side, as WebP; see [`MediaCache.thumbnail`]."""
        return self._picture("preview", path, start, end, PREVIEW_FRAMES, PREVIEW_SIDE)

    def playable(self, path: str, start: float | None = None, end: float | None = None) -> Future[Path]:
        """Return a file with the first `MAX_CLIP` seconds of a video or segment that browsers play.

        Streams that browsers play are copied, the others are transcoded to H.264 and AAC with at most 720 lines.

        Returns:
            `Future[Path]`: done if the clip is in the cache. Raises [`VideoDecodingError`] if the file cannot be
            decoded, and `OSError` if the clip cannot be written, or takes more than `MAX_TRANSCODING` seconds.

        Raises:
            BusyError: `MAX_CLIPS` clips are being made.
            FileNotFoundError, StorageOfflineError: as for [`MediaCache.thumbnail`].
        """
        key = _key("clip", path, start, end)
        folder = self._clip_folder()
        for file in (folder / f"{key}.mp4", folder / f"{key}.webm"):
            with suppress(OSError):
                os.utime(file)
                return _done(file)
        with self._lock:
            if key not in self._pending and self._num_clips >= MAX_CLIPS:
                raise BusyError("Too many videos are being converted: try again later.")
        return self._once(key, lambda: self._cut(folder / key, path, start, end), self._transcoder)

    def close(self) -> None:
        """Drop what waits for a decoder, and wait for what is being decoded."""
        self._is_closed = True
        for pool in (self._decoders, self._transcoder):
            pool.shutdown(cancel_futures=True)
        if self._temporary is not None:
            self._temporary.cleanup()

    def _picture(
        self, kind: str, path: str, start: float | None, end: float | None, num_frames: int, side: int
    ) -> Future[bytes]:
        key = _key(kind, path, start, end)
        file = self.folder / f"{key}.webp"
        with suppress(OSError):
            content = file.read_bytes()
            with suppress(OSError):  # a folder may be read-only
                os.utime(file)
            return _done(content)
        return self._once(key, lambda: self._keep(file, _draw(path, start, end, num_frames, side)), self._decoders)

    def _once(self, key: str, make: Callable[[], Any], pool: ThreadPoolExecutor) -> Future[Any]:
        """Run a function in a pool, once for all who ask before it ends; errors of broken files stay."""
        with self._lock:
            if key in self._failures:
                failed: Future[Any] = Future()
                failed.set_exception(self._failures[key])
                return failed
            if key in self._pending:
                return self._pending[key]
            self._pending[key] = future = pool.submit(make)
            self._num_clips += pool is self._transcoder
        future.add_done_callback(functools.partial(self._finish, key, pool))
        return future

    def _finish(self, key: str, pool: ThreadPoolExecutor, future: Future) -> None:
        from ..video_decoding_pig import VideoDecodingError

        error = None if future.cancelled() else future.exception()
        with self._lock:
            del self._pending[key]
            self._num_clips -= pool is self._transcoder
            if isinstance(error, VideoDecodingError):
                self._failures[key] = error
                if len(self._failures) > MAX_FAILURES:
                    self._failures.popitem(last=False)

    def _keep(self, file: Path, content: bytes) -> bytes:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._bounded.make_room(len(content)):
                with replace_file(file) as partial:
                    partial.write_bytes(content)
        except OSError as error:
            if not self._warned:  # once: every picture of a page would say the same
                logger.warning("Pictures of videos are not kept in %s: %s.", self.folder, error.strerror or error)
                self._warned = True
        return content

    def _clip_folder(self) -> Path:
        """Return the folder of the cache, or a temporary one if that cannot be written."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(self.folder, os.W_OK):
                return self.folder
        with self._lock:
            self._temporary = self._temporary or tempfile.TemporaryDirectory()
            return Path(self._temporary.name)

    def _cut(self, stem: Path, path: str, start: float | None, end: float | None) -> Path:
        from ..retrieval.clips import clip_suffix, write_clip

        deadline = time.monotonic() + MAX_TRANSCODING
        duration = MAX_CLIP if end is None else min(end - (start or 0.0), MAX_CLIP)
        file = stem.with_suffix(clip_suffix())
        try:
            with open_source(path) as source:
                write_clip(
                    source,
                    start,
                    duration,
                    file,
                    playable=True,
                    is_cancelled=lambda: self._is_closed or time.monotonic() > deadline,
                )
        except InterruptedError as error:
            raise OSError(f"The video was not converted within {MAX_TRANSCODING:g} s: download it instead.") from error
        with suppress(OSError):
            self._bounded.make_room(file.stat().st_size)
        return file


def media_folder(uri: str) -> Path:
    """Return the folder of the pictures of an index: beside an index in a folder, else in the user's cache."""
    if "://" not in uri:
        folder = Path(uri).absolute()
        return folder.with_name(f".{folder.name}.media")
    from huggingface_hub import cached_assets_path

    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return cached_assets_path("modeling_pig", namespace="media", subfolder=name)


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def stat_video(path: str) -> os.stat_result:
    """Return the status of a video file or of a folder of frames.

    Raises:
        FileNotFoundError: the file does not exist, and its folder does: the file was deleted or moved.
        StorageOfflineError: the folder of the file does not exist or does not respond.
    """
    try:
        return os.stat(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.path.isdir(os.path.dirname(path)):
            raise
        raise StorageOfflineError(error.errno, f"the folder cannot be reached: {error.strerror}", path) from error


def check_remote(address: str) -> tuple[int, ...]:
    """Return the numbers of [`file_state`] of a remote video.

    Raises:
        FileNotFoundError: the server says that the file does not exist.
        StorageOfflineError: the server does not respond, or refuses.
    """
    try:
        return file_state(address)
    except OSError as error:
        if is_gone(address):
            raise FileNotFoundError(errno.ENOENT, "the file does not exist", redact(address)) from error
        raise StorageOfflineError(errno.EIO, error.strerror, redact(address)) from error


def _key(kind: str, path: str, start: float | None, end: float | None) -> str:
    if is_remote(path):
        state = check_remote(path)[:2]
    else:
        status = stat_video(path)
        state = status.st_size, status.st_mtime_ns
    facts = (kind, path, *state, start, end)
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:40]


# --- frames


def _draw(path: str, start: float | None, end: float | None, num_frames: int, side: int) -> bytes:
    """Return evenly spaced frames of a video side by side, as WebP; a single frame is the middle one."""
    import PIL.Image

    frames = _seek_frames(path, start, end, num_frames)
    if frames is None:
        with open_source(path) as source:
            frames = _decode_frames(source, start, end, num_frames)
    images = []
    for frame in frames:
        image = PIL.Image.fromarray(frame)
        image.thumbnail((side, side))
        images.append(image)
    width, height = images[0].size
    strip = PIL.Image.new("RGB", (width * len(images), height))
    for number, image in enumerate(images):
        strip.paste(image if image.size == (width, height) else image.resize((width, height)), (number * width, 0))
    output = io.BytesIO()
    strip.save(output, "WEBP", quality=QUALITY, method=4)
    return output.getvalue()


def _decode_frames(
    source: str | BinaryIO, start: float | None, end: float | None, num_frames: int
) -> list[np.ndarray]:
    import warnings

    from ..video_decoding_pig import VideoDecodingWarning, decode_video

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoDecodingWarning)  # given when the file was indexed
        frames, _ = decode_video(source, num_frames, start=start, end=end, transform=_shrink)
    return list(frames)


def _shrink(frame: np.ndarray) -> np.ndarray:
    """Reduce a frame, `(height, width, 3)`, to about `THUMBNAIL_SIDE` by an integer factor, to hold less memory."""
    import PIL.Image

    factor = max(frame.shape[:2]) // THUMBNAIL_SIDE
    return np.asarray(PIL.Image.fromarray(frame).reduce(factor)) if factor > 1 else frame


def _seek_frames(path: str, start: float | None, end: float | None, num_frames: int) -> list[np.ndarray] | None:
    """Decode frames of a large file at the keyframes before evenly spaced times, but not before `start`.

    Returns `None` for other files, and if seeking fails.
    """
    if not os.path.isfile(path) or os.path.getsize(path) < MAX_READ_FILE:
        return None
    from ..video_decoding_pig import VideoDecodingError
    from ..video_file_pig import FrameReader, import_av, open_video
    from ..video_frames_pig import FrameConverter

    av = import_av()
    converter, frames = FrameConverter(av), []
    try:
        with open_video(av, path) as (container, stream):
            if container.format.name not in SEEKABLE or not container.duration:
                return None
            first = (container.start_time or 0) / av.time_base
            stop = min(
                end if end is not None else container.duration / av.time_base, container.duration / av.time_base
            )
            begin = start or 0.0
            for number in range(num_frames):
                container.seek(int((first + begin + (number + 0.5) / num_frames * (stop - begin)) * av.time_base))
                decoded = FrameReader(av, path, container, stream).frames()
                frame = next(frame for frame in decoded if frame.time is None or frame.time >= first + begin - 0.001)
                frames.append(_shrink(converter.to_rgb(frame, converter.shape(frame))))
    except (av.FFmpegError, StopIteration, VideoDecodingError):
        return None
    return frames


__all__ = [
    "IMAGE_TYPE",
    "MAX_CLIP",
    "BusyError",
    "MediaCache",
    "StorageOfflineError",
    "check_remote",
    "media_folder",
    "stat_video",
]
