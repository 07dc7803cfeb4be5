# Copyright 2026 The PIG contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Sample frames of a video and decode them, from a video file (PyAV) or a folder of JPEG files (PIL)."""

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
from transformers.video_utils import VideoMetadata


# Seeking refills the decoder: it saves time only if it skips more than this number of frames.
MIN_SKIPPED_FRAMES = 8

# Formats that FFmpeg may open. Playlists are excluded: they name other files or addresses, and may never end.
CONTAINERS = (
    "3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vc1,webm,yuv4mpegpipe"
)
OPEN_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}

# Maximum difference in seconds between a given time and the timestamp of the same frame: more than rounding errors.
TIME_TOLERANCE = 1e-6

# Maximum average duration of a frame (a slide may stay for half a minute). A longer average means that a timestamp is
# wrong; the resulting duration could give any number of segments for a few frames.
MAX_SECONDS_PER_FRAME = 60.0

# Name of a frame in a folder: its last digits are the number of the frame. Hidden files are ignored.
JPEG_FRAME = re.compile(r"(?!\.)(?:.*\D)?(\d+)\.jpe?g", re.IGNORECASE)


class VideoDecodingError(ValueError):
    """Error of a video whose frames cannot be decoded.

    Attributes:
        path (`str`): path of the video.
        reason (`str`): what is wrong with the video, for users.
    """

    def __init__(self, path: str | os.PathLike, reason: str | None = None):
        super().__init__(path, reason)
        # A DataLoader recreates the error of a worker from its message only.
        self.path, self.reason = ("", str(path)) if reason is None else (os.fspath(path), reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


def is_url(path: str) -> bool:
    """Return whether a string is a URL, such as `https://host/a.mp4`, and not the path of a file."""
    return re.match(r"[a-z][a-z0-9+.-]+:/", path, re.IGNORECASE) is not None and not os.path.exists(path)


def sample_frame_indices(num_video_frames: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Sample evenly spaced frames of a video.

    Without `rng` (evaluation), the first and the last frame of the video are included; a single frame is the middle
    frame. With `rng` (training), the first index is drawn from `[0, s]` and the last index from `[n - 1 - s, n - 1]`,
    where `n` is `num_video_frames` and `s = n // (num_frames - 1)`, or less if the two intervals would overlap; a
    single frame is drawn from the whole video.

    Args:
        num_video_frames (`int`): number of frames in the video, at least 1.
        num_frames (`int`): number of frames to sample, T, at least 1. Short videos repeat frames.
        rng (`np.random.Generator`, *optional*): random generator of the jitter.

    Returns:
        `np.ndarray` of shape `(T,)`: int64 frame indices in non-decreasing order.

    Raises:
        ValueError: `num_video_frames` or `num_frames` is less than 1.
    """
    if num_video_frames < 1 or num_frames < 1:
        raise ValueError(
            f"num_video_frames and num_frames must be at least 1, got {num_video_frames} and {num_frames}."
        )
    first, last = 0, num_video_frames - 1
    if num_frames == 1:
        return np.array([last // 2 if rng is None else rng.integers(num_video_frames)], dtype=np.int64)
    if rng is not None:
        slack = min(num_video_frames // (num_frames - 1), last // 2)
        first, last = int(rng.integers(slack, endpoint=True)), last - int(rng.integers(slack, endpoint=True))
    return np.linspace(first, last, num_frames, dtype=np.int64)


def decode_video(
    path: str | os.PathLike,
    num_frames: int,
    rng: np.random.Generator | None = None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """Decode `num_frames` frames of a video, or of a segment of it, sampled by [`sample_frame_indices`].

    Frames are counted in display order, not taken from the header. Rotated videos are decoded upright if the file
    stores the rotation. Decoding is single-threaded: decode several files in parallel instead.

    Args:
        path (`str` or `os.PathLike`): video file, or folder of JPEG frames whose names end in their number
            (`000001.jpg`, `frame_2.jpeg`) and are sorted by it.
        num_frames (`int`): number of frames, T, at least 1.
        rng (`np.random.Generator`, *optional*): random generator of the jitter in training.
        start (`float`, *optional*): start of the segment, in seconds after the first frame.
        end (`float`, *optional*): end of the segment, in seconds after the first frame, exclusive; an end beyond the
            video is the end of the video. If no frame begins in the segment, the frame displayed at its start is used.

    Returns:
        `tuple[np.ndarray, VideoMetadata]`: uint8 RGB frames of shape `(T, height, width, 3)`, all with the size of the
        first frame; metadata of the whole video, with average frames per second and duration in seconds (both `None`
        for a folder) and the indices of the sampled frames.

    Raises:
        VideoDecodingError: the file is missing, empty, not a video, truncated or damaged, has invalid timestamps, or
            has no frames between `start` and `end`; or `start` or `end` is given for a folder, which has no frame
            rate.
        ValueError: `num_frames` is less than 1.
        ImportError: PyAV is not installed, and `path` is a file.
    """
    [segment] = decode_segments(path, num_frames, lambda duration: [(start, end)], rng)
    return segment


def decode_segments(
    path: str | os.PathLike,
    num_frames: int,
    split: Callable[[float | None], Sequence[tuple[float | None, float | None]]],
    rng: np.random.Generator | None = None,
) -> Iterator[tuple[np.ndarray, VideoMetadata]]:
    """Decode `num_frames` frames of each segment of a video, in one pass over the video.

    The frames are those that [`decode_video`] decodes for each segment. At any time, only the frames of segments that
    overlap are in memory, independent of the duration of the video.

    Args:
        path (`str` or `os.PathLike`): as for [`decode_video`].
        num_frames (`int`): number of frames per segment, T, at least 1.
        split (`Callable`): takes the duration in seconds (`None` if it is unknown, as for a folder of frames) and
            returns the segments as (start, end) in ascending order of both.
        rng (`np.random.Generator`, *optional*): random generator of the jitter in training.

    Yields:
        `tuple[np.ndarray, VideoMetadata]`: result of [`decode_video`] for each segment, in order.

    Raises:
        VideoDecodingError, ValueError, ImportError: as [`decode_video`], possibly after some segments were yielded.
    """
    path = os.fsdecode(path)
    if names := list_frames(path):
        metadata = VideoMetadata(total_num_frames=len(names), video_backend="pil")
        spans = [_all_frames_of_folder(path, metadata, *segment) for segment in split(None)]
        read_images = partial(_read_frames, path, names)
    else:
        av = _import_av()
        metadata, pts, keyframes, times = _read_packets(av, path)
        spans = [_frames_between(path, metadata, times, *segment) for segment in split(metadata.duration)]
        read_images = partial(_decode_frames, av, path, pts, keyframes)
    sampled = [first + sample_frame_indices(stop - first, num_frames, rng) for first, stop in spans]
    for indices, images in zip(sampled, read_images([np.unique(indices) for indices in sampled]), strict=True):
        frames = np.stack([images[i] for i in np.unique(indices, return_inverse=True)[1]])  # (T, height, width, 3)
        height, width = frames.shape[1:3]
        yield frames, replace(metadata, height=height, width=width, frames_indices=indices.tolist())


def ensure_opens(path: str | os.PathLike) -> None:
    """Check, without decoding, that a file opens as a video, or the first frame of a folder as an image.

    A file that opens may still be truncated or damaged.

    Args:
        path (`str` or `os.PathLike`): as for [`decode_video`].

    Raises:
        VideoDecodingError: the file or the first frame does not open.
        ImportError: PyAV is not installed, and `path` is a file.
    """
    path = os.fsdecode(path)
    if names := list_frames(path):
        with _open_frame(path, names[0]):
            return
    with _open_video(_import_av(), path):
        return


def _import_av() -> ModuleType:
    try:  # transformers requires the packages that remote code imports, except within a `try`.
        import av
    except ImportError as error:
        raise ImportError("Decoding a video file needs PyAV: `pip install av`.") from error
    return av


def list_frames(path: str) -> list[str]:
    """Return the names of the numbered JPEG files in a folder, sorted by number; `[]` if `path` is not a folder."""
    if not os.path.isdir(path):
        return []
    try:
        found = [JPEG_FRAME.fullmatch(name) for name in os.listdir(path)]
    except OSError as error:
        raise VideoDecodingError(path, f"the folder cannot be read: {error.strerror}") from error
    return [match[0] for match in sorted(filter(None, found), key=lambda match: (int(match[1]), match[0]))]


@contextmanager
def _open_frame(path: str, name: str) -> Iterator[PIL.Image.Image]:
    try:
        with PIL.Image.open(os.path.join(path, name), formats=["JPEG"]) as image:
            yield image
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        reason = f"the frame {name} cannot be read as a JPEG; extract or copy it again"
        raise VideoDecodingError(path, reason) from error


def _read_frames(path: str, names: list[str], wanted: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Read the JPEG files at each of the indices `wanted` as RGB arrays of one shape, as [`_decode_frames`] does."""
    for indices in wanted:
        images: list[np.ndarray] = []
        for index in indices:
            with _open_frame(path, names[index]) as image:
                if not images:
                    size = image.size
                rgb = image.convert("RGB")
            images.append(np.asarray(rgb if rgb.size == size else rgb.resize(size)))
        yield images


def _all_frames_of_folder(
    path: str, metadata: VideoMetadata, start: float | None, end: float | None
) -> tuple[int, int]:
    if start is not None or end is not None:
        reason = "a folder of frames has no frame rate to find start and end: leave them out, or use a video file"
        raise VideoDecodingError(path, reason)
    return 0, metadata.total_num_frames


def _frames_between(
    path: str, metadata: VideoMetadata, times: np.ndarray, start: float | None, end: float | None
) -> tuple[int, int]:
    """Return the indices of the first frame of a segment and of the frame after its last; see [`decode_video`]."""
    if start is None and end is None:
        return 0, metadata.total_num_frames
    start = 0.0 if start is None else start
    if metadata.duration is None:
        raise VideoDecodingError(path, "the file has neither timestamps nor a frame rate to find start and end")
    if start >= metadata.duration:
        raise VideoDecodingError(path, f"the segment starts at {start:g} s, the video ends at {metadata.duration:g} s")
    end = metadata.duration if end is None else end
    if not max(start, 0) < end:
        reason = f"the segment from {start:g} to {end:g} s is empty: its end must be after its start and after 0"
        raise VideoDecodingError(path, reason)
    first, stop = np.searchsorted(times, [start - TIME_TOLERANCE, end - TIME_TOLERANCE]).tolist()
    return (first, stop) if first < stop else (max(stop, 1) - 1, max(stop, 1))


@contextmanager
def _open_video(av: ModuleType, path: str) -> Iterator[tuple[Any, Any]]:
    """Open the container and its first video stream that is not a cover image."""
    if not os.path.isfile(path):
        raise VideoDecodingError(
            path,
            "a directory without numbered JPEG frames, or a device, not a file"
            if os.path.exists(path)
            else "no such file",
        )
    if not os.access(path, os.R_OK):
        raise VideoDecodingError(path, "no permission to read the file")
    if os.path.getsize(path) == 0:
        raise VideoDecodingError(path, "the file is empty; download or copy it again")
    try:
        container = av.open(f"file:{path}", container_options=OPEN_OPTIONS, metadata_errors="ignore")
    except av.FFmpegError as error:
        reason = "not a video file, or cut off before its index; download or copy it again"
        raise VideoDecodingError(path, reason) from error
    with container:
        cover = av.stream.Disposition.attached_pic
        stream = next((s for s in container.streams.video if not s.disposition & cover), None)
        if stream is None:
            raise VideoDecodingError(path, "no video stream in the file, it may hold audio only")
        if stream.codec_context is None:
            raise VideoDecodingError(path, "this build of PyAV has no decoder for the video stream")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield container, stream


def _read_packets(av: ModuleType, path: str) -> tuple[VideoMetadata, np.ndarray, np.ndarray, np.ndarray]:
    """Read the whole file without decoding, to number its frames and to check that no frames are missing.

    Returns:
        `tuple`: metadata; presentation timestamps of the frames in display order; indices of the frames where decoding
        can start; times of the frames in seconds after the first frame. Timestamps and starting points are empty if
        the file has no distinct timestamps; times are empty if it has no frame rate either.
    """
    shown = []  # (pts, duration, is_keyframe) of each packet that holds a displayed frame
    ends: dict[int, int] = {}  # end of the last packet of each stream, in the time unit of the stream
    cut_off = False  # whether the file ends within the last frame
    damage: Any = None
    with _open_video(av, path) as (container, stream):
        try:
            for packet in _iterate_packets(container):
                if packet.size == 0:
                    continue
                time, length, number = packet.pts, packet.duration or 0, packet.stream_index
                if time is not None and not packet.is_corrupt:
                    ends[number] = max(ends.get(number, 0), time + length)
                if number == stream.index and not packet.is_discard:
                    shown.append((time, length, packet.is_keyframe))
                    cut_off = packet.is_corrupt
        except av.FFmpegError as error:
            damage = error
        if cut_off:
            shown.pop()
        num_frames = len(shown)
        end = max((float(end * container.streams[number].time_base) for number, end in ends.items()), default=0)
        num_expected = num_frames + _count_missing_frames(av, container, stream, num_frames, end)
        is_avi = container.format.name == "avi"
        rate, time_base = stream.average_rate or stream.guessed_rate, stream.time_base

    if num_expected - num_frames > max(2, 0.05 * num_expected):
        reason = f"truncated: the file holds {num_frames} of about {num_expected} frames"
        raise VideoDecodingError(path, f"{reason}; download or copy it again") from damage
    if damage is not None:
        raise VideoDecodingError(path, f"damaged after {num_frames} frames: {damage.strerror}") from damage
    if not shown:
        raise VideoDecodingError(path, "the video stream holds no frames")

    pts = np.empty(0, dtype=np.int64)
    keyframes = np.empty(0, dtype=np.int64)
    duration = num_frames / rate if rate else None
    times = np.arange(num_frames) / float(rate) if rate else np.empty(0)
    if len({time for time, _, _ in shown} - {None}) == num_frames:
        shown.sort()
        span = shown[-1][0] - shown[0][0]
        last_duration = shown[-1][1] or span / max(num_frames - 1, 1)
        duration = (span + last_duration) * time_base or duration
        times = np.array([time - shown[0][0] for time, _, _ in shown]) * float(time_base)
        if not is_avi:  # AVI has no presentation timestamps: those of PyAV are guesses, wrong with B-frames.
            pts = np.array([time for time, _, _ in shown], dtype=np.int64)
            keyframes = np.flatnonzero([is_keyframe for _, _, is_keyframe in shown])
    if duration and duration > MAX_SECONDS_PER_FRAME * num_frames:
        frames = "1 frame" if num_frames == 1 else f"{num_frames} frames"
        raise VideoDecodingError(path, f"invalid timestamps: {frames} in {float(duration):.0f} s")
    metadata = VideoMetadata(
        total_num_frames=num_frames,
        fps=float(num_frames / duration) if duration else None,
        duration=float(duration) if duration else None,
        video_backend="pyav",
    )
    return metadata, pts, keyframes, times


def _count_missing_frames(av: ModuleType, container: Any, stream: Any, num_frames: int, end: float) -> int:
    """Return how many frames are missing at the end of the file: an estimate if the file does not start with an index.

    The number of frames in the header does not help: it includes frames that an MP4 edit list removes, and frames that
    an AVI repeats.
    """
    if container.format.name in ("avi", "matroska,webm"):
        is_avi = container.format.name == "avi"
        seconds = stream.frames * stream.time_base if is_avi else (container.duration or 0) / av.time_base
        return round(num_frames * max(float(seconds) / end - 1, 0)) if end else 0
    entries = stream.index_entries
    return sum(entry.pos + entry.size > container.size and not entry.is_discard for entry in entries)


def _decode_frames(
    av: ModuleType, path: str, pts: np.ndarray, keyframes: np.ndarray, wanted: list[np.ndarray]
) -> Iterator[list[np.ndarray]]:
    """Decode the frames at each of the indices `wanted`, sorted and distinct, to RGB arrays of one shape.

    A frame of several segments is decoded once. Frames are released once their segment is yielded.
    """
    wanted_by: dict[int, list[int]] = {}  # segments that contain a frame
    for segment, indices in enumerate(wanted):
        for index in indices.tolist():
            wanted_by.setdefault(index, []).append(segment)
    images: list[list[np.ndarray]] = [[] for _ in wanted]
    shapes: list[Any] = [None] * len(wanted)  # width, height and rotation of the first frame of each segment
    num_done = 0
    # One reformatter for all frames: creating one per frame, with threads, would take longer than decoding.
    to_rgb = av.video.reformatter.VideoReformatter()
    for starts in (keyframes, keyframes[:0]):  # Seeking fails in some files: the second pass does not seek.
        remaining = sorted(wanted_by)
        for index, frame in zip(remaining, _frames_at(av, path, remaining, pts, starts), strict=False):
            for segment in wanted_by.pop(index):
                if not images[segment]:  # Size and rotation may change in the video, but not within the result.
                    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise
                    shapes[segment] = frame.width, frame.height, quarter_turns
                width, height, quarter_turns = shapes[segment]
                try:
                    image = to_rgb.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
                except av.FFmpegError as error:
                    raise VideoDecodingError(path, f"frame {index} is not an image: {error.strerror}") from error
                images[segment].append(np.rot90(image, quarter_turns))  # (height, width, 3)
            while num_done < len(wanted) and len(images[num_done]) == len(wanted[num_done]):
                yield images[num_done]
                images[num_done] = []
                num_done += 1
        if not wanted_by:
            return


def _frames_at(av: ModuleType, path: str, wanted: list[int], pts: np.ndarray, keyframes: np.ndarray) -> Iterator[Any]:
    """Decode the frames at the indices `wanted`, sorted and distinct.

    Frames are identified by their timestamps, or counted if `pts` is empty. Seeks to `keyframes` if that saves
    decoding, and stops before the last index of `wanted` if seeking does not work in this file.
    """
    times = pts.tolist()
    frame: Any = None  # last decoded frame
    position = -1  # index of the last decoded frame
    sought = landed = False
    with _open_video(av, path) as (container, stream):
        frames = _iterate_frames(av, container, stream)
        try:
            for index in wanted:
                start = int(keyframes[: np.searchsorted(keyframes, index, side="right")].max(initial=0))
                if start - position > MIN_SKIPPED_FRAMES:
                    sought, landed = True, False
                    container.seek(times[start], stream=stream)
                    frames, frame, position = _iterate_frames(av, container, stream), None, -1
                while position < index:
                    following = next(frames, None)
                    if following is None:
                        break  # Not every packet holds a displayed frame: use the last displayed frame instead.
                    frame = following
                    if times and frame.pts is not None:
                        position = bisect_right(times, frame.pts) - 1
                    else:
                        position += 1
                    if sought and not landed:
                        landed = True
                        if frame.pts is None or position > index:
                            return
                        if position < start:  # The file has no index: each seek would land far before its target.
                            keyframes = keyframes[:0]
                if frame is None and sought:
                    return
                if frame is None:
                    raise VideoDecodingError(path, "no frame can be decoded, the file is damaged")
                yield frame
        except av.FFmpegError as error:
            if sought:
                return
            reason = f"damaged, decoding fails near frame {position + 1}: {error.strerror}"
            raise VideoDecodingError(path, reason) from error


def _iterate_frames(av: ModuleType, container: Any, stream: Any) -> Iterator[Any]:
    for packet in _iterate_packets(container, stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            if not packet.is_corrupt:  # An incomplete packet need not yield a frame.
                raise


def _iterate_packets(container: Any, *streams: Any) -> Iterator[Any]:
    try:
        yield from container.demux(*streams)
    except IndexError:
        pass  # PyAV raises this at the end of a file with a stream that its header does not list.


def iterate_timed_frames(path: str | os.PathLike) -> Iterator[tuple[float, Any, VideoMetadata]]:
    """Decode all frames of a video file in display order, for re-encoding.

    Args:
        path (`str` or `os.PathLike`): video file, not a folder of frames.

    Yields:
        `tuple[float, av.VideoFrame, VideoMetadata]`: time of the frame in seconds after the first frame; frame as
        stored, not rotated; metadata of the whole video as in [`decode_video`], without the size of its frames.

    Raises:
        VideoDecodingError: the file cannot be decoded to its end, or has neither timestamps nor a frame rate.
        ImportError: PyAV is not installed.
    """
    path = os.fsdecode(path)
    av = _import_av()
    metadata, pts, _, times = _read_packets(av, path)
    if metadata.duration is None or metadata.fps is None:
        raise VideoDecodingError(path, "the file has neither timestamps nor a frame rate")
    index = -1  # index of the last yielded frame
    with _open_video(av, path) as (container, stream):
        try:
            for frame in _iterate_frames(av, container, stream):
                is_timed = len(pts) and frame.pts is not None
                decoded = int(np.searchsorted(pts, frame.pts, side="right")) - 1 if is_timed else index + 1
                decoded = min(decoded, len(times) - 1)
                if decoded > index:  # Other frames are not displayed, or are out of order.
                    index = decoded
                    yield float(times[index]), frame, metadata
        except av.FFmpegError as error:
            reason = f"damaged, decoding fails near frame {index + 1}: {error.strerror}"
            raise VideoDecodingError(path, reason) from error
    if index < 0:
        raise VideoDecodingError(path, "no frame can be decoded, the file is damaged")
