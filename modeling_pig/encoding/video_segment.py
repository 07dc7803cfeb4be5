"""Identify a segment of a video file."""

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


__all__ = ["VideoSegment"]
