"""Split videos into shots while they are decoded: PySceneDetect finds the cuts, in the pass that reads the clips."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from transformers.video_utils import VideoMetadata

from ..extras import pip_install
from ..video_decoding_pig import (
    TIME_TOLERANCE,
    FrameSampling,
    is_regular,
    iterate_timed_frames,
    sample_frame_indices,
    sample_frame_times,
)
from ..video_file_pig import import_av
from ..video_frames_pig import FrameConverter, FrameShape
from .video_segment import ShotRule


MAX_DETECTED_SIDE = 256  # pixels of the longer side of the frames that the detector compares
# Frames per frame of a clip that are kept of a shot, until its end is known. More frames of a shot are thinned out.
KEPT_PER_FRAME = 4

Shot = tuple[float, float]  # start and end in seconds


class ShotDetector:
    """Find cuts between the frames of a video, one frame after the other.

    Raises:
        ImportError: PySceneDetect is not installed.
    """

    def __init__(self):
        check_shot_detector()
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        self._detector = ContentDetector(min_scene_len=0)
        self._timecode = FrameTimecode
        self._num_frames = 0

    def is_cut(self, frame: np.ndarray) -> bool:
        """Return whether a frame, `(height, width, 3)` uint8 RGB, begins a shot. All frames have one size."""
        # The time only counts frames: the lengths of shots are checked elsewhere.
        timecode = self._timecode(self._num_frames, fps=25.0)
        self._num_frames += 1
        return bool(self._detector.process_frame(timecode, np.ascontiguousarray(frame[..., ::-1])))


def check_shot_detector() -> None:
    """Raise an `ImportError` that says what to install if shots cannot be detected."""
    try:
        import cv2  # noqa: F401 - only whether it is there
        import scenedetect  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ImportError(f"Splitting videos into shots needs PySceneDetect: {pip_install('shots')}") from error


def decode_shots(
    path: str | os.PathLike | BinaryIO,
    num_frames: int,
    rule: ShotRule,
    sampling: FrameSampling = "time",
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    decoder: str = "pyav",
) -> Iterator[tuple[np.ndarray, VideoMetadata, Shot]]:
    """Decode `num_frames` frames of each shot of a video file, in one pass over the video.

    All frames are decoded. The frames of a shot of up to `4 * num_frames` frames are those that [`decode_video`]
    decodes for it; those of a longer shot are at most an eighth of their distance away from these. Memory holds
    `4 * num_frames` transformed frames.

    Args:
        path, num_frames, sampling, transform: as for [`decode_video`].
        rule (`ShotRule`): lengths of the shots.
        decoder (`str`): ignored: all frames are decoded with PyAV.

    Yields:
        `tuple[np.ndarray, VideoMetadata, tuple[float, float]]`: frames of the shot, `(T, height, width, 3)` or as
        transformed; metadata of the whole video; start and end of the shot in seconds. The first shot starts at 0, and
        the last one ends with the video.

    Raises:
        VideoDecodingError: the file cannot be decoded to its end, or has neither timestamps nor a frame rate.
        ImportError: PySceneDetect or PyAV is not installed.
    """
    detector, converter = ShotDetector(), FrameConverter(import_av())
    frames = _KeptFrames(num_frames, sampling)
    start, shape, size, metadata = 0.0, None, None, None
    for index, (time, frame, metadata) in enumerate(iterate_timed_frames(path)):
        assert metadata.duration is not None
        shown = converter.shape(frame)
        size = size or _reduced(shown)
        if detector.is_cut(converter.to_rgb(frame, FrameShape(*size), size, "AREA")):
            if time - start >= rule.min_length and metadata.duration - time >= rule.min_length:
                yield from frames.split(start, time, rule, metadata)
                start, shape = time, None
                frames.clear()
        while time - start >= rule.max_length + rule.min_length:
            yield frames.sample(start, start + rule.max_length, metadata)
            start += rule.max_length
            frames.forget_before(start)
        shape = shape or shown  # Size and orientation may change in the video, but not within a shot.
        if frames.wants_next():
            image = converter.to_rgb(frame, shape)
            frames.add(index, time, image if transform is None else transform(image), shape.displayed)
    assert metadata is not None and metadata.duration is not None
    yield from frames.split(start, metadata.duration, rule, metadata)


def _reduced(shape: FrameShape) -> tuple[int, int]:
    """Return width and height, as stored, of the frames that the detector compares."""
    factor = min(MAX_DETECTED_SIDE / max(shape.width, shape.height), 1)
    return max(round(shape.width * factor), 1), max(round(shape.height * factor), 1)


@dataclass
class _KeptFrames:
    """Evenly spaced frames of the shot that is being decoded."""

    num_frames: int
    sampling: FrameSampling
    _kept: list[tuple[int, float, Any]] = field(default_factory=list)  # index in the video, time, image
    _size: tuple[int, int] = (0, 0)
    _stride: int = 1
    _num_passed: int = 0  # frames of the shot

    def clear(self) -> None:
        self._kept, self._stride, self._num_passed = [], 1, 0

    def wants_next(self) -> bool:
        """Return whether the next frame is to be added."""
        self._num_passed += 1
        return (self._num_passed - 1) % self._stride == 0

    def add(self, index: int, time: float, image: np.ndarray, size: tuple[int, int]) -> None:
        self._kept.append((index, time, image))
        self._size = size
        if len(self._kept) > max(KEPT_PER_FRAME * self.num_frames, 2):
            self._kept, self._stride = self._kept[::2], 2 * self._stride

    def forget_before(self, time: float) -> None:
        """Drop the frames before a time, but the one that is shown then."""
        first = np.searchsorted([kept[1] for kept in self._kept], time + TIME_TOLERANCE, side="right") - 1
        self._kept = self._kept[max(int(first), 0) :]

    def split(self, start: float, end: float, rule: ShotRule, metadata: VideoMetadata) -> Iterator[Any]:
        """Sample a shot that ends, which may be too long for one segment."""
        while end - start >= rule.max_length + rule.min_length:
            yield self.sample(start, start + rule.max_length, metadata)
            start += rule.max_length
        if end - start > rule.max_length:
            middle = (start + end) / 2
            yield self.sample(start, middle, metadata)
            start = middle
        yield self.sample(start, end, metadata)

    def sample(self, start: float, end: float, metadata: VideoMetadata) -> tuple[np.ndarray, VideoMetadata, Shot]:
        """Return the frames of a clip from `start` to `end`; see [`decode_shots`]."""
        times = np.array([kept[1] for kept in self._kept])  # (N,)
        first, stop = np.searchsorted(times, [start - TIME_TOLERANCE, end - TIME_TOLERANCE]).tolist()
        if first == stop:  # no frame begins in the segment: the one that is shown
            first, stop = max(stop, 1) - 1, max(stop, 1)
        if self.sampling == "time" and not is_regular(times):
            chosen = first + sample_frame_times(times[first:stop], start, end, self.num_frames)
        else:
            chosen = first + sample_frame_indices(stop - first, self.num_frames)
        frames = np.stack([self._kept[position][2] for position in chosen])
        height, width = self._size
        indices = [self._kept[position][0] for position in chosen]
        shot = round(start, 3), round(end, 3)
        return frames, replace(metadata, height=height, width=width, frames_indices=indices), shot


__all__ = ["ShotDetector", "check_shot_detector", "decode_shots"]
