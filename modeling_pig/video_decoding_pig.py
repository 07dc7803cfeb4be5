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
"""Decodes chosen frames of a video file (PyAV) or of a folder of JPEGs (PIL), and holds the rules that choose them."""

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


# Seeking refills the decoder, so it only pays when it saves more than this many frames.
MIN_SKIPPED_FRAMES = 8

# Playlists are left out: they name other files or addresses, and a live one never ends.
CONTAINERS = (
    "3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vc1,webm,yuv4mpegpipe"
)
OPEN_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}

# Seconds by which a time may miss a timestamp and still mean that frame: more than what rounding adds.
TIME_TOLERANCE = 1e-6

# Slides may stay for half a minute. At more than this on average a timestamp is wrong, and the duration that it gives
# would make any number of windows of a few frames.
MAX_SECONDS_A_FRAME = 60.0

# A frame in a folder: the last digits of the name number it. Hidden files are none of ours.
JPEG_FRAME = re.compile(r"(?!\.)(?:.*\D)?(\d+)\.jpe?g", re.IGNORECASE)


class VideoDecodingError(ValueError):
    """
    A video file from which the frames asked for cannot be decoded, for whatever reason.

    Attributes:
        path (`str`): The file.
        reason (`str`): What is wrong with it, in plain words.
    """

    def __init__(self, path: str | os.PathLike, reason: str | None = None):
        super().__init__(path, reason)
        # A DataLoader rebuilds the error of a worker from its message alone.
        self.path, self.reason = ("", str(path)) if reason is None else (os.fspath(path), reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


def sample_frame_indices(num_video_frames: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """
    Chooses evenly spaced frames of a video.

    Without `rng` (testing) the first and the last frame of the video are included, and a single frame is the
    middle one. With `rng` (training) the first index is drawn from `[0, s]` and the last one from
    `[n - 1 - s, n - 1]`, where `n` is `num_video_frames` and `s = n // (num_frames - 1)`, or less in videos
    so short that the two intervals would overlap; a single frame is drawn from the whole video.

    Args:
        num_video_frames (`int`): Number of frames in the video, at least 1.
        num_frames (`int`): Number of frames to choose, at least 1. Short videos repeat frames.
        rng (`np.random.Generator`, *optional*): Source of the jitter.

    Returns:
        `np.ndarray` of shape `(num_frames,)`: int64 frame numbers in non-decreasing order.

    Raises:
        `ValueError`: If `num_video_frames` or `num_frames` is less than 1.
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
    """
    Decodes `num_frames` frames of a video, or of a part of it, chosen by [`sample_frame_indices`].

    Frames are counted in display order, whatever the header says, and come out upright where the file tells
    how it was rotated. Decoding is single-threaded: decode several files at a time instead.

    Args:
        path (`str` or `os.PathLike`): The video file, or a folder of JPEG frames whose names end in their number
            (`000001.jpg`, `frame_2.jpeg`); they are put in the order of the numbers.
        num_frames (`int`): Number of frames, T, at least 1.
        rng (`np.random.Generator`, *optional*): Source of the jitter in training.
        start (`float`, *optional*): Seconds after the first frame at which the part begins.
        end (`float`, *optional*): Seconds after the first frame before which it ends; what lies beyond the
            video is cut off. In a part so short that no frame begins in it, the one on the screen is chosen.

    Returns:
        `tuple[np.ndarray, VideoMetadata]`: uint8 RGB frames of shape `(T, height, width, 3)`; the metadata of the
        whole video: average frames per second, duration in seconds (both `None` for a folder), number of each
        frame in it, ... All frames have the size of the first of them.

    Raises:
        `VideoDecodingError`: If the file is missing, empty, no video, truncated, damaged, ..., has times that cannot
            be right, or has nothing between `start` and `end`; if a part is asked of a folder, which has no frame
            rate.
        `ValueError`: If `num_frames` is less than 1.
        `ImportError`: If PyAV is not installed, and `path` is a file.
    """
    [part] = decode_segments(path, num_frames, lambda duration: [(start, end)], rng)
    return part


def decode_segments(
    path: str | os.PathLike,
    num_frames: int,
    split: Callable[[float | None], Sequence[tuple[float | None, float | None]]],
    rng: np.random.Generator | None = None,
) -> Iterator[tuple[np.ndarray, VideoMetadata]]:
    """
    Decodes `num_frames` frames of each of several parts of a video, in one pass over it: those that [`decode_video`]
    decodes of each part. In memory are the frames of the parts that overlap at the time, whatever the video's length.

    Args:
        path (`str` or `os.PathLike`): As for [`decode_video`].
        num_frames (`int`): Frames of each part, T, at least 1.
        split (`Callable`): Takes the duration in seconds (`None` where the file does not tell, as for a
            folder of frames) and returns the parts as (start, end), in order of both.
        rng (`np.random.Generator`, *optional*): Source of the jitter in training.

    Yields:
        `tuple[np.ndarray, VideoMetadata]`: For each part in order what [`decode_video`] returns for it.

    Raises:
        `VideoDecodingError`, `ValueError`, `ImportError`: As [`decode_video`] does; some parts may have come before.
    """
    path = os.fsdecode(path)
    if names := list_frames(path):
        metadata = VideoMetadata(total_num_frames=len(names), video_backend="pil")
        spans = [_all_frames_of_folder(path, metadata, *window) for window in split(None)]
        read_images = partial(_read_frames, path, names)
    else:
        av = _import_av()
        metadata, pts, keyframes, times = _read_packets(av, path)
        spans = [_frames_between(path, metadata, times, *window) for window in split(metadata.duration)]
        read_images = partial(_decode_frames, av, path, pts, keyframes)
    chosen = [first + sample_frame_indices(stop - first, num_frames, rng) for first, stop in spans]
    for indices, images in zip(chosen, read_images([np.unique(indices) for indices in chosen]), strict=True):
        frames = np.stack([images[i] for i in np.unique(indices, return_inverse=True)[1]])  # (T, height, width, 3)
        height, width = frames.shape[1:3]
        yield frames, replace(metadata, height=height, width=width, frames_indices=indices.tolist())


def ensure_opens(path: str | os.PathLike) -> None:
    """
    Makes sure, without decoding, that a file opens as a video, or the first frame of a folder as a picture.

    Args:
        path (`str` or `os.PathLike`): As for [`decode_video`].

    Raises:
        `VideoDecodingError`: If it does not. A file that opens may still turn out to be truncated or damaged.
        `ImportError`: If PyAV is not installed, and `path` is a file.
    """
    path = os.fsdecode(path)
    if names := list_frames(path):
        with _open_frame(path, names[0]):
            return
    with _open_video(_import_av(), path):
        return


def _import_av() -> ModuleType:
    try:  # Inside `try`, or loading this file as remote code would require PyAV.
        import av
    except ImportError as error:
        raise ImportError("Decoding a video file needs PyAV: `pip install av`.") from error
    return av


def list_frames(path: str) -> list[str]:
    """The names of the numbered JPEG files in a folder, in the order of their numbers; none if it is a file."""
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
    """Reads the JPEG files of a folder with the numbers in each of `wanted` as RGB arrays of one shape, as
    [`_decode_frames`] does."""
    for indices in wanted:
        images: list[np.ndarray] = []
        for index in indices:
            with _open_frame(path, names[index]) as image:
                if not images:
                    size = image.size
                picture = image.convert("RGB")
            images.append(np.asarray(picture if picture.size == size else picture.resize(size)))
        yield images


def _all_frames_of_folder(
    path: str, metadata: VideoMetadata, start: float | None, end: float | None
) -> tuple[int, int]:
    if start is not None or end is not None:
        reason = "a folder of frames has no frame rate, so that start and end in seconds mean nothing in it"
        raise VideoDecodingError(path, reason)
    return 0, metadata.total_num_frames


def _frames_between(
    path: str, metadata: VideoMetadata, times: np.ndarray, start: float | None, end: float | None
) -> tuple[int, int]:
    """The first frame of a part of a video, and the one behind its last; see [`decode_video`]."""
    if start is None and end is None:
        return 0, metadata.total_num_frames
    start = 0.0 if start is None else start
    if metadata.duration is None:
        raise VideoDecodingError(path, "the file has no times and no frame rate by which to find start and end")
    if start >= metadata.duration:
        raise VideoDecodingError(path, f"the part starts at {start:g} s, the video ends at {metadata.duration:g} s")
    end = metadata.duration if end is None else end
    if not max(start, 0) < end:
        raise VideoDecodingError(path, f"the part from {start:g} to {end:g} s is empty: its end must lie behind")
    first, stop = np.searchsorted(times, [start - TIME_TOLERANCE, end - TIME_TOLERANCE]).tolist()
    return (first, stop) if first < stop else (max(stop, 1) - 1, max(stop, 1))


@contextmanager
def _open_video(av: ModuleType, path: str) -> Iterator[tuple[Any, Any]]:
    """Opens the container and its first video stream that is not a cover picture."""
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
    """
    Reads the whole file without decoding it, to number the frames and to see whether all are there.

    Returns the metadata, the presentation timestamps in display order, the numbers of the frames where decoding
    can start, and the times in seconds after the first frame. Timestamps and starting points are empty if the
    file has no timestamps that tell the frames apart, times if it has no frame rate either.
    """
    shown = []  # (pts, duration, is_keyframe) of the packets of the frames
    ends: dict[int, int] = {}  # end of the last packet of each stream, in its units of time
    cut_off = False  # whether the file ends in the middle of the last frame
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
        reason = f"truncated: {num_frames} of about {num_expected} frames are there"
        raise VideoDecodingError(path, f"{reason}; download or copy it again") from damage
    if damage is not None:
        raise VideoDecodingError(path, f"damaged after {num_frames} frames: {damage.strerror}") from damage
    if not shown:
        raise VideoDecodingError(path, "the video stream of the file holds no frames")

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
    if duration and duration > MAX_SECONDS_A_FRAME * num_frames:
        frames = "1 frame" if num_frames == 1 else f"{num_frames} frames"
        raise VideoDecodingError(path, f"its times cannot be right: {frames} in {float(duration):.0f} s")
    metadata = VideoMetadata(
        total_num_frames=num_frames,
        fps=float(num_frames / duration) if duration else None,
        duration=float(duration) if duration else None,
        video_backend="pyav",
    )
    return metadata, pts, keyframes, times


def _count_missing_frames(av: ModuleType, container: Any, stream: Any, num_frames: int, end: float) -> int:
    """
    Tells how many frames lie beyond the end of the file, which is only an estimate where it has no index at its
    start. The number of frames in the header alone would not do: it counts those that an MP4 edit list cuts away
    and those that an AVI repeats.
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
    """
    Decodes the frames with the numbers in each of `wanted`, sorted and distinct, to RGB arrays of one shape. A frame
    that several want is decoded once. What is not wanted any more is not kept.
    """
    wanted_by: dict[int, list[int]] = {}
    for part, indices in enumerate(wanted):
        for index in indices.tolist():
            wanted_by.setdefault(index, []).append(part)
    images: list[list[np.ndarray]] = [[] for _ in wanted]
    shapes: list[Any] = [None] * len(wanted)  # of the first frame of each: width, height, turns
    num_done = 0
    # One for all frames: set up anew for each, with threads of its own, it would take longer than decoding them.
    to_rgb = av.video.reformatter.VideoReformatter()
    for starts in (keyframes, keyframes[:0]):  # Seeking does not work in every file.
        remaining = sorted(wanted_by)
        for index, frame in zip(remaining, _frames_at(av, path, remaining, pts, starts), strict=False):
            for part in wanted_by.pop(index):
                if not images[part]:  # Size and rotation may change in the video, but not in the result.
                    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise
                    shapes[part] = frame.width, frame.height, quarter_turns
                width, height, quarter_turns = shapes[part]
                try:
                    image = to_rgb.reformat(frame, width, height, format="rgb24", threads=1).to_ndarray()
                except av.FFmpegError as error:
                    raise VideoDecodingError(path, f"frame {index} is no picture: {error.strerror}") from error
                images[part].append(np.rot90(image, quarter_turns))  # (height, width, 3)
            while num_done < len(wanted) and len(images[num_done]) == len(wanted[num_done]):
                yield images[num_done]
                images[num_done] = []
                num_done += 1
        if not wanted_by:
            return


def _frames_at(av: ModuleType, path: str, wanted: list[int], pts: np.ndarray, keyframes: np.ndarray) -> Iterator[Any]:
    """
    Decodes the frames with the numbers `wanted`, sorted and distinct. Frames are told by their timestamps, or
    counted where `pts` is empty. Seeks to `keyframes` where that saves decoding, and stops before the last of
    `wanted` if seeking turns out not to work in this file.
    """
    times = pts.tolist()
    frame: Any = None  # the last one decoded
    position = -1  # its number
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
                        break  # Not every packet shows a frame: the last one that was shown stands in.
                    frame = following
                    if times and frame.pts is not None:
                        position = bisect_right(times, frame.pts) - 1
                    else:
                        position += 1
                    if sought and not landed:
                        landed = True
                        if frame.pts is None or position > index:
                            return
                        if position < start:  # The file has no index: each seek would start from far behind.
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
            if not packet.is_corrupt:  # One that is known to lack a part need not yield a frame.
                raise


def _iterate_packets(container: Any, *streams: Any) -> Iterator[Any]:
    try:
        yield from container.demux(*streams)
    except IndexError:
        pass  # How PyAV ends a file in which a stream began that was not announced at its start.


def iterate_timed_frames(path: str | os.PathLike) -> Iterator[tuple[float, Any, VideoMetadata]]:
    """
    Decode all frames of a video file in display order, one at a time, as re-encoding needs them.

    Args:
        path (`str` or `os.PathLike`): The video file; not a folder of frames.

    Yields:
        `tuple[float, av.VideoFrame, VideoMetadata]`: Seconds after the first frame; the frame as it is stored, not
        rotated yet; the metadata of the whole video, as [`decode_video`] returns it but for the size of a frame.

    Raises:
        `VideoDecodingError`: If the file cannot be decoded to its end, or has neither times nor a frame rate.
        `ImportError`: If PyAV is not installed.
    """
    path = os.fsdecode(path)
    av = _import_av()
    metadata, pts, _, times = _read_packets(av, path)
    if metadata.duration is None or metadata.fps is None:
        raise VideoDecodingError(path, "the file has neither times nor a frame rate")
    index = -1  # of the last frame that was yielded
    with _open_video(av, path) as (container, stream):
        try:
            for frame in _iterate_frames(av, container, stream):
                is_timed = len(pts) and frame.pts is not None
                decoded = int(np.searchsorted(pts, frame.pts, side="right")) - 1 if is_timed else index + 1
                decoded = min(decoded, len(times) - 1)
                if decoded > index:  # Other frames are not shown, or come out of order.
                    index = decoded
                    yield float(times[index]), frame, metadata
        except av.FFmpegError as error:
            reason = f"damaged, decoding fails near frame {index + 1}: {error.strerror}"
            raise VideoDecodingError(path, reason) from error
    if index < 0:
        raise VideoDecodingError(path, "no frame can be decoded, the file is damaged")
