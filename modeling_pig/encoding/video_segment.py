"""Identify a segment of a video file, and say how long shots are. Importing this module imports no torch."""

import math
from dataclasses import dataclass
from typing import NamedTuple


class VideoSegment(NamedTuple):
    """A segment of a video file.

    Attributes:
        path (`str`): video file, or folder of frames.
        start, end (`float`, *optional*): seconds after the start of the file, `end` excluded; `None` for the whole.
    """

    path: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class ShotRule:
    """Rule by which videos are split into shots.

    A cut is where the content detector of PySceneDetect finds one, at its default threshold: the mean change of hue,
    saturation and brightness from one frame to the next. A cut that would leave less than `min_length` before or after
    it is ignored. A shot that is longer than `max_length` is divided into segments of `max_length`; what remains is
    at least `min_length` long, or is halved with the segment before it.

    Args:
        min_length (`float`): shortest shot in seconds; more than 0.
        max_length (`float`): longest segment in seconds; at least twice `min_length`.

    Raises:
        ValueError: invalid lengths.
    """

    min_length: float = 2.0
    max_length: float = 30.0

    def __post_init__(self):
        if not 0 < self.min_length < math.inf or not 2 * self.min_length <= self.max_length < math.inf:
            raise ValueError(
                f"Shots cannot be from {self.min_length:g} to {self.max_length:g} s long: give a shortest shot of "
                "more than 0 s, and a longest shot of at least twice that."
            )


__all__ = ["ShotRule", "VideoSegment"]
