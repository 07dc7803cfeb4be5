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
"""Decodes chosen frames of a video file with PyAV, and holds the rules that choose them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from transformers.video_utils import VideoMetadata


# Seeking refills the decoder, so it only pays when it saves more than this many frames.
MIN_SKIPPED_FRAMES = 8

# Playlists are left out: they name other files or addresses, and a live one never ends.
CONTAINERS = (
    "3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vc1,webm,yuv4mpegpipe"
)
OPEN_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}


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
    path: str | os.PathLike, num_frames: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, VideoMetadata]:
    """
    Decodes `num_frames` frames of a video file, chosen by [`sample_frame_indices`].

    Frames are counted in display order, whatever the header says, and come out upright where the file tells
    how it was rotated. Decoding is single-threaded: decode several files at a time instead.

    Args:
        path (`str` or `os.PathLike`): The video file.
        num_frames (`int`): Number of frames, T, at least 1.
        rng (`np.random.Generator`, *optional*): Source of the jitter in training.

    Returns:
        `tuple[np.ndarray, VideoMetadata]`: uint8 RGB frames of shape `(T, height, width, 3)`; the metadata:
        average frames per second, duration in seconds, number of each frame in the video, ...

    Raises:
        `VideoDecodingError`: If the file is missing, empty, no video, truncated, damaged, ...
        `ValueError`: If `num_frames` is less than 1.
        `ImportError`: If PyAV is not installed.
    """
    try:  # Inside `try`, or loading this file as remote code would require PyAV.
        import av
    except ImportError as error:
        raise ImportError("Decoding a video file needs PyAV: `pip install av`.") from error

    path = os.fsdecode(path)
    metadata, pts, keyframes = _read_packets(av, path)
    indices = sample_frame_indices(metadata.total_num_frames, num_frames, rng)
    wanted = np.unique(indices)
    images = _decode_frames(av, path, wanted, pts, keyframes)
    if images is None:  # Seeking does not work in this file.
        images = _decode_frames(av, path, wanted, pts, keyframes[:0])
        assert images is not None
    frames = np.stack([images[i] for i in np.searchsorted(wanted, indices)])  # (T, height, width, 3)
    metadata.height, metadata.width = frames.shape[1:3]
    metadata.frames_indices = indices.tolist()
    return frames, metadata


@contextmanager
def _open_video(av: ModuleType, path: str) -> Iterator[tuple[Any, Any]]:
    """Opens the container and its first video stream that is not a cover picture."""
    if not os.path.isfile(path):
        raise VideoDecodingError(
            path, "a directory or a device, not a file" if os.path.exists(path) else "no such file"
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


def _read_packets(av: ModuleType, path: str) -> tuple[VideoMetadata, np.ndarray, np.ndarray]:
    """
    Reads the whole file without decoding it, to number the frames and to see whether all are there.

    Returns the metadata, the presentation timestamps in display order, and the numbers of the frames where
    decoding can start. The last two are empty if the file has no timestamps that tell the frames apart.
    """
    shown = []  # (pts, duration, is_keyframe) of the packets of the frames
    end = 0.0  # seconds, of the last packet of any stream
    cut_off = False  # whether the file ends in the middle of the last frame
    damage: Any = None
    with _open_video(av, path) as (container, stream):
        try:
            for packet in _iterate_packets(container):
                if packet.size == 0:
                    continue
                if packet.pts is not None and not packet.is_corrupt:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index == stream.index and not packet.is_discard:
                    shown.append((packet.pts, packet.duration or 0, packet.is_keyframe))
                    cut_off = packet.is_corrupt
        except av.FFmpegError as error:
            damage = error
        if cut_off:
            shown.pop()
        num_frames = len(shown)
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
    if len({time for time, _, _ in shown} - {None}) == num_frames:
        shown.sort()
        span = shown[-1][0] - shown[0][0]
        last_duration = shown[-1][1] or span / max(num_frames - 1, 1)
        duration = (span + last_duration) * time_base or duration
        if not is_avi:  # AVI has no presentation timestamps: those of PyAV are guesses, wrong with B-frames.
            pts = np.array([time for time, _, _ in shown], dtype=np.int64)
            keyframes = np.flatnonzero([is_keyframe for _, _, is_keyframe in shown])
    metadata = VideoMetadata(
        total_num_frames=num_frames,
        fps=float(num_frames / duration) if duration else None,
        duration=float(duration) if duration else None,
        video_backend="pyav",
    )
    return metadata, pts, keyframes


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
    av: ModuleType, path: str, wanted: np.ndarray, pts: np.ndarray, keyframes: np.ndarray
) -> list[np.ndarray] | None:
    """
    Decodes the frames with the numbers `wanted`, sorted and distinct, to RGB arrays of one shape. Frames are
    told by their timestamps, or counted where `pts` is empty. Seeks to `keyframes` where that saves decoding,
    and returns `None` if seeking turns out not to work in this file.
    """
    images: list[np.ndarray] = []
    # One for all frames: set up anew for each, with threads of its own, it would take longer than decoding them.
    to_rgb = av.video.reformatter.VideoReformatter()
    frame: Any = None  # the last one decoded
    position = -1  # its number
    sought = landed = False
    with _open_video(av, path) as (container, stream):
        frames = _iterate_frames(av, container, stream)
        try:
            for index in wanted:
                start = int(keyframes[keyframes <= index].max(initial=0))
                if start - position > MIN_SKIPPED_FRAMES:
                    sought, landed = True, False
                    container.seek(int(pts[start]), stream=stream)
                    frames, frame, position = _iterate_frames(av, container, stream), None, -1
                while position < index:
                    following = next(frames, None)
                    if following is None:
                        break  # Not every packet shows a frame: the last one that was shown stands in.
                    frame = following
                    if len(pts) and frame.pts is not None:
                        position = int(np.searchsorted(pts, frame.pts, side="right")) - 1
                    else:
                        position += 1
                    if sought and not landed:
                        landed = True
                        if frame.pts is None or position > index:
                            return None
                        if position < start:  # The file has no index: each seek would start from far behind.
                            keyframes = keyframes[:0]
                if frame is None and sought:
                    return None
                if frame is None:
                    raise VideoDecodingError(path, "no frame can be decoded, the file is damaged")
                if not images:  # Size and rotation may change in the video, but not in the result.
                    size = {"width": frame.width, "height": frame.height}
                    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise
                image = to_rgb.reformat(frame, format="rgb24", threads=1, **size).to_ndarray()  # (height, width, 3)
                images.append(np.rot90(image, quarter_turns))
        except av.FFmpegError as error:
            if sought:
                return None
            reason = f"damaged, decoding fails near frame {position + 1}: {error.strerror}"
            raise VideoDecodingError(path, reason) from error
    return images


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
