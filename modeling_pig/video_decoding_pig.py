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
"""Sample frames of a video and decode them, from a video file (PyAV, torchcodec) or a folder of JPEG files (PIL)."""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import PIL.Image
from transformers.video_utils import VideoMetadata

from .video_file_pig import (
    FrameReader,
    Source,
    VideoDecodingError,
    VideoDecodingWarning,
    decode_frames,
    import_av,
    open_video,
    read_track,
    source_name,
)
from .video_torchcodec_pig import Decoder, decode_frames_with_torchcodec, find_torchcodec


# Maximum difference in seconds between a given time and the timestamp of the same frame: more than rounding errors.
TIME_TOLERANCE = 1e-6

# Name of a frame in a folder: its last digits are the number of the frame. Hidden files are ignored.
JPEG_FRAME = re.compile(r"(?!\.)(?:.*\D)?(\d+)\.jpe?g", re.IGNORECASE)

FrameSampling = Literal["time", "index"]


def sample_frame_indices(num_video_frames: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Sample evenly spaced frames of a video by their indices, as the paper does.

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
    return _sample_positions(num_video_frames, num_frames, rng).astype(np.int64)


def _sample_positions(num_video_frames: int, num_frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """Return the positions, `(T,)` float64 in frames, of which [`sample_frame_indices`] takes the integer part."""
    if num_video_frames < 1 or num_frames < 1:
        raise ValueError(
            f"num_video_frames and num_frames must be at least 1, got {num_video_frames} and {num_frames}."
        )
    first, last = 0, num_video_frames - 1
    if num_frames == 1:
        return np.array([last // 2 if rng is None else rng.integers(num_video_frames)], dtype=np.float64)
    if rng is not None:
        slack = min(num_video_frames // (num_frames - 1), last // 2)
        first, last = int(rng.integers(slack, endpoint=True)), last - int(rng.integers(slack, endpoint=True))
    return np.linspace(first, last, num_frames)


def sample_frame_times(
    times: np.ndarray, start: float, end: float, num_frames: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Sample frames of a video with variable frame rate that are evenly spaced in time, as displayed.

    The T positions that [`sample_frame_indices`] would choose are stretched over the time from `start` to `end`, and
    the frames displayed at these times are returned.

    Args:
        times (`np.ndarray` of shape `(N,)`): times of the frames, in seconds, ascending.
        start, end (`float`): time of which frames are sampled, in seconds; `end` is not before the last frame.
        num_frames (`int`): number of frames to sample, T, at least 1.
        rng (`np.random.Generator`, *optional*): random generator of the jitter in training.

    Returns:
        `np.ndarray` of shape `(T,)`: int64 indices into `times`, in non-decreasing order.

    Raises:
        ValueError: `times` is empty, or `num_frames` is less than 1.
    """
    positions = _sample_positions(len(times), num_frames, rng)
    chosen = start + positions / max(len(times) - 1, 1) * (end - start)  # (T,) seconds
    return np.clip(np.searchsorted(times, chosen + TIME_TOLERANCE, side="right") - 1, 0, None)


def is_regular(times: np.ndarray) -> bool:
    """Return whether each frame is within half a frame of its time at a constant frame rate."""
    if len(times) < 3:
        return True
    regular = np.linspace(times[0], times[-1], len(times))
    return bool(np.abs(times - regular).max() <= 0.5 * (regular[1] - regular[0]))


def decode_video(
    path: str | os.PathLike | bytes | BinaryIO,
    num_frames: int,
    rng: np.random.Generator | None = None,
    start: float | None = None,
    end: float | None = None,
    sampling: FrameSampling = "time",
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    decoder: Decoder = "pyav",
) -> tuple[np.ndarray, VideoMetadata]:
    """Decode `num_frames` frames of a video, or of a segment of it, as a player shows them.

    Frames are in display order, upright and not mirrored; HDR is tone-mapped ([`FrameConverter.to_rgb`]). Packets that
    cannot be decoded are skipped, up to a tenth of the packets. Decoding is single-threaded: decode several files in
    parallel instead.

    Args:
        path (`str`, `os.PathLike`, `bytes` or `BinaryIO`): video file, its content, a seekable binary file, or a
            folder of JPEG frames whose names end in their number (`000001.jpg`, `frame_2.jpeg`) and are sorted by it.
        num_frames (`int`): number of frames, T, at least 1.
        rng (`np.random.Generator`, *optional*): random generator of the jitter in training.
        start (`float`, *optional*): start of the segment, in seconds after the start of the file (of its sound or its
            first frame, whichever comes first).
        end (`float`, *optional*): end of the segment, in the same unit, exclusive; an end beyond the video is the end
            of the video. If no frame begins in the segment, the frame displayed at its start is used, or the first
            frame before it.
        sampling (`str`, *optional*, defaults to `"time"`): `"time"` samples frames that are evenly spaced in time
            ([`sample_frame_times`]); `"index"`, frames that are evenly spaced by number ([`sample_frame_indices`], as
            the paper does). They differ only for videos with variable frame rate, in which a frame is more than half
            a frame away from its time at a constant rate.
        transform (`Callable`, *optional*): is applied to each frame, `(height, width, 3)` uint8, as soon as it is
            decoded, for example to resize it. Without it, frames of more than 4 megapixels are reduced by an integer
            factor.
        decoder (`str`, *optional*, defaults to `"pyav"`): `"pyav"`, `"torchcodec"`, or `"auto"` for torchcodec if it
            is installed and CUDA is available. torchcodec decodes the frames on the GPU if there is one; PyAV still
            reads the times of all frames, and decodes the videos that torchcodec does not show as a player does
            ([`decode_frames_with_torchcodec`]).

    Returns:
        `tuple[np.ndarray, VideoMetadata]`: uint8 RGB frames of shape `(T, height, width, 3)`, all with the size of the
        first frame; metadata of the whole video, with the displayed size, average frames per second and duration in
        seconds (both `None` for a folder), the indices of the sampled frames and the decoder (`video_backend`).

    Raises:
        VideoDecodingError: the file is missing, empty, not a video, encrypted, truncated or damaged, has invalid
            timestamps, or has no frames between `start` and `end`; or `start` or `end` is given for a folder, which
            has no frame rate.
        ValueError: `num_frames` is less than 1, or `sampling` or `decoder` is unknown.
        ImportError: PyAV is not installed, and `path` is a file; or `decoder` is `"torchcodec"`, which is not
            installed.

    Warns:
        VideoDecodingWarning: the file ends early, and the frames before its end are used.
    """
    [segment] = decode_segments(path, num_frames, lambda duration: [(start, end)], rng, sampling, transform, decoder)
    return segment


def decode_segments(
    path: str | os.PathLike | bytes | BinaryIO,
    num_frames: int,
    split: Callable[[float | None], Sequence[tuple[float | None, float | None]]],
    rng: np.random.Generator | None = None,
    sampling: FrameSampling = "time",
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    decoder: Decoder = "pyav",
) -> Iterator[tuple[np.ndarray, VideoMetadata]]:
    """Decode `num_frames` frames of each segment of a video, in one pass over the video.

    The frames are those that [`decode_video`] decodes for each segment. At any time, only the transformed frames of
    segments that overlap are in memory, independent of the duration of the video.

    Args:
        path, num_frames, rng, sampling, transform, decoder: as for [`decode_video`].
        split (`Callable`): takes the duration in seconds (`None` if it is unknown, as for a folder of frames) and
            returns the segments as (start, end) in ascending order of both.

    Yields:
        `tuple[np.ndarray, VideoMetadata]`: result of [`decode_video`] for each segment, in order.

    Raises:
        VideoDecodingError, ValueError, ImportError: as [`decode_video`], possibly after some segments were yielded.
    """
    if sampling not in get_args(FrameSampling):
        raise ValueError(f"sampling must be one of {', '.join(get_args(FrameSampling))}; got {sampling!r}.")
    torchcodec = find_torchcodec(decoder)
    source = _source(path)
    read_images: Callable[[list[np.ndarray]], Iterator[tuple[tuple[int, int], list[np.ndarray]]]]
    transform = transform or _unchanged
    if isinstance(source, str) and (names := list_frames(source)):
        metadata = VideoMetadata(total_num_frames=len(names), video_backend="pil")
        spans = [_all_frames_of_folder(source, metadata, *segment) for segment in split(None)]
        sampled = [first + sample_frame_indices(stop - first, num_frames, rng) for first, stop in spans]
        read_images = partial(_read_frames, source, names, transform)
    else:
        av = import_av()
        track = read_track(av, source)
        metadata = track.metadata
        by_time = sampling == "time" and not is_regular(track.times)
        if track.warning is not None:
            warnings.warn(f"{source_name(source)}: {track.warning}", VideoDecodingWarning, stacklevel=2)
        sampled = [
            _sample_segment(source_name(source), metadata, track.times, num_frames, rng, by_time, *segment)
            for segment in split(metadata.duration)
        ]
        if torchcodec is None:
            read_images = partial(decode_frames, av, source, track, transform)
        else:
            read_images = partial(decode_frames_with_torchcodec, torchcodec, av, source, track, transform)
    for indices, (size, images) in zip(sampled, read_images([np.unique(indices) for indices in sampled]), strict=True):
        frames = np.stack([images[i] for i in np.unique(indices, return_inverse=True)[1]])  # (T, height, width, 3)
        yield frames, replace(metadata, height=size[0], width=size[1], frames_indices=indices.tolist())


def _unchanged(frame: np.ndarray) -> np.ndarray:
    return frame


def _source(path: str | os.PathLike | bytes | BinaryIO) -> Source:
    if isinstance(path, (bytes, bytearray)):
        return io.BytesIO(path)
    if isinstance(path, (str, os.PathLike)):
        return os.fsdecode(path)
    if not (hasattr(path, "read") and hasattr(path, "seek")):
        raise ValueError(f"Expected a path, bytes or a seekable binary file, got {type(path).__name__}.")
    return path


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
    with open_video(import_av(), path):
        return


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


def _read_frames(
    path: str, names: list[str], transform: Callable[[np.ndarray], np.ndarray], wanted: list[np.ndarray]
) -> Iterator[tuple[tuple[int, int], list[np.ndarray]]]:
    """Read the JPEG files at each of the indices `wanted` as RGB arrays of one shape, as [`decode_frames`] does."""
    for indices in wanted:
        images: list[np.ndarray] = []
        for index in indices:
            with _open_frame(path, names[index]) as image:
                if not images:
                    size = image.size
                rgb = image.convert("RGB")
            images.append(transform(np.asarray(rgb if rgb.size == size else rgb.resize(size))))
        yield (size[1], size[0]), images


def _all_frames_of_folder(
    path: str, metadata: VideoMetadata, start: float | None, end: float | None
) -> tuple[int, int]:
    if start is not None or end is not None:
        reason = "a folder of frames has no frame rate to find start and end: leave them out, or use a video file"
        raise VideoDecodingError(path, reason)
    return 0, metadata.total_num_frames


def _sample_segment(
    path: str,
    metadata: VideoMetadata,
    times: np.ndarray,
    num_frames: int,
    rng: np.random.Generator | None,
    by_time: bool,
    start: float | None,
    end: float | None,
) -> np.ndarray:
    """Return the indices, `(T,)`, of sampled frames of a segment; see [`decode_video`]."""
    first, stop = _frames_between(path, metadata, times, start, end)
    if not by_time:
        return first + sample_frame_indices(stop - first, num_frames, rng)
    duration = metadata.duration or 0.0  # a file with times has a duration
    shown_from = float(times[first]) if start is None else max(start, float(times[0]))
    shown_until = duration if end is None else min(end, duration)
    if first and times[first] > shown_from + TIME_TOLERANCE:
        first -= 1  # the frame that is displayed when the segment starts
    return first + sample_frame_times(times[first:stop], shown_from, shown_until, num_frames, rng)


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


def iterate_timed_frames(path: str | os.PathLike | BinaryIO) -> Iterator[tuple[float, Any, VideoMetadata]]:
    """Decode all frames of a video file in display order, for re-encoding and for finding cuts.

    Args:
        path (`str`, `os.PathLike` or `BinaryIO`): video file, not a folder of frames.

    Yields:
        `tuple[float, av.VideoFrame, VideoMetadata]`: time of the frame in seconds after the first frame; frame as
        stored, not rotated; metadata of the whole video as in [`decode_video`], without the size of its frames.

    Raises:
        VideoDecodingError: the file cannot be decoded to its end, or has neither timestamps nor a frame rate.
        ImportError: PyAV is not installed.

    Warns:
        VideoDecodingWarning: the file ends early, and the frames before its end are used.
    """
    source, av = _source(path), import_av()
    name, track = source_name(source), read_track(av, source)
    metadata, times = track.metadata, track.times
    if track.warning is not None:
        warnings.warn(f"{name}: {track.warning}", VideoDecodingWarning, stacklevel=2)
    if metadata.duration is None or metadata.fps is None:
        raise VideoDecodingError(name, "the file has neither timestamps nor a frame rate")
    index = -1  # index of the last yielded frame
    with open_video(av, source) as (container, stream):
        reader = FrameReader(av, name, container, stream)
        for frame in reader.frames():
            is_timed = len(track.pts) and frame.pts is not None
            decoded = int(np.searchsorted(track.pts, frame.pts, side="right")) - 1 if is_timed else index + 1
            decoded = min(decoded, len(times) - 1)
            if decoded > index:  # Other frames are not displayed, or are out of order.
                index = decoded
                yield float(times[index]), frame, metadata
        reader.check()
    if index < 0:
        raise VideoDecodingError(name, "no frame can be decoded, the file is damaged")
