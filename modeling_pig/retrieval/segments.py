"""Long videos as windows: where each begins and ends."""

import math
from dataclasses import dataclass


MAX_WHOLE = 60.0  # seconds: by default a longer video is indexed in windows
DEFAULT_LENGTH = 30.0  # seconds, of these windows
MIN_STEP = 0.1  # seconds from one window to the next: closer ones would hold nearly the same frames


@dataclass(frozen=True)
class Segmentation:
    """How videos are cut into windows.

    A window begins every `length - overlap` seconds. What is left at the end becomes a window of its own if at least
    half of that many seconds are in no other; otherwise the window before reaches to the end. A video that makes a
    single window is taken whole, and so is one whose file does not tell its duration.

    length (`float`, *optional*): seconds a window; 0 takes every video whole. By default a video of up to 60 s is
        taken whole, a longer one in windows of 30 s.
    overlap (`float`): seconds that a window shares with the next one, less than its length.

    Raises:
        ValueError: lengths that cannot be.
    """

    length: float | None = None
    overlap: float = 0.0

    def __post_init__(self):
        length = DEFAULT_LENGTH if self.length is None else self.length
        if not 0 <= length < math.inf:
            raise ValueError(f"A segment of {self.length} s was asked for: give a number of seconds, or 0 for none.")
        if not self.overlap >= 0 or (self.overlap or length) and not length - self.overlap >= MIN_STEP:
            raise ValueError(
                f"Segments of {length:g} s cannot overlap by {self.overlap:g} s: an overlap is 0 or more, and "
                f"{MIN_STEP:g} s or more shorter than a segment."
            )

    def split(self, duration: float | None) -> list[tuple[float | None, float | None]]:
        """(start, end) of each window of a video of `duration` seconds, in order; `(None, None)` is the whole."""
        length = DEFAULT_LENGTH if self.length is None else self.length
        if duration is None or not length or duration <= (MAX_WHOLE if self.length is None else length):
            return [(None, None)]
        step = length - self.overlap
        count = 1 + math.floor((duration - length) / step + 0.5)  # half a step makes one more
        if count == 1:
            return [(None, None)]
        ends = [number * step + length for number in range(count - 1)] + [duration]
        return [(round(number * step, 3), round(end, 3)) for number, end in enumerate(ends)]


__all__ = ["Segmentation"]
