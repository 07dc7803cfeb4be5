"""Split long videos into segments."""

import math
from dataclasses import dataclass

from ..encoding.video_segment import ShotRule
from ..stores.records import IndexInfo


MAX_WHOLE = 60.0  # seconds: by default, longer videos are split
DEFAULT_LENGTH = 30.0  # seconds per segment
MIN_STEP = 0.1  # seconds between the starts of two segments: closer segments would hold nearly the same frames


@dataclass(frozen=True)
class Segmentation:
    """Rule by which videos are split into segments.

    A segment starts every `length - overlap` seconds. If at least half that time remains after the last full segment,
    the rest becomes another segment; otherwise the last segment is extended to the end. A video with only one segment,
    or with unknown duration, is taken whole.

    Args:
        length (`float`, *optional*): seconds per segment; 0 takes all videos whole. By default, videos of up to 60 s
            are taken whole, and longer ones are split into segments of 30 s.
        overlap (`float`): seconds that a segment shares with the next one; less than `length`.

    Raises:
        ValueError: invalid length or overlap.
    """

    length: float | None = None
    overlap: float = 0.0

    def __post_init__(self):
        length = DEFAULT_LENGTH if self.length is None else self.length
        if not 0 <= length < math.inf:
            raise ValueError(f"The segment length is {self.length} s: give seconds, 0 for whole videos.")
        if not self.overlap >= 0 or (self.overlap or length) and not length - self.overlap >= MIN_STEP:
            raise ValueError(
                f"Segments of {length:g} s cannot overlap by {self.overlap:g} s: give an overlap of 0 or more that is "
                f"at least {MIN_STEP:g} s shorter than a segment."
            )

    def split(self, duration: float | None) -> list[tuple[float | None, float | None]]:
        """Return (start, end) of each segment of a video, in seconds and in order.

        Args:
            duration (`float`, *optional*): duration of the video in seconds; `None` if unknown.

        Returns:
            `list[tuple[float | None, float | None]]`: the segments; `[(None, None)]` for the whole video.
        """
        length = DEFAULT_LENGTH if self.length is None else self.length
        if duration is None or not length or duration <= (MAX_WHOLE if self.length is None else length):
            return [(None, None)]
        step = length - self.overlap
        num_segments = 1 + math.floor((duration - length) / step + 0.5)  # half a step makes another segment
        if num_segments == 1:
            return [(None, None)]
        ends = [number * step + length for number in range(num_segments - 1)] + [duration]
        return [(round(number * step, 3), round(end, 3)) for number, end in enumerate(ends)]


def segmentation_of(info: IndexInfo) -> Segmentation | ShotRule:
    """Return the rule by which new videos of an index are split: into the shots that it records, or by default."""
    return Segmentation() if info.shots is None else ShotRule(*info.shots)


__all__ = ["Segmentation", "segmentation_of"]
