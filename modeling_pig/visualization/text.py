"""Paths, queries and times as text for people to read, on a page or in a terminal."""


def printable(text: str) -> str:
    r"""A text in which what no screen should be sent stands escaped: a newline as `\n`, the start of a terminal's
    command as `\x1b`, the reversal of the direction of writing as `\u202e`."""
    return "".join(c if c.isprintable() or c == "\u3000" else c.encode("unicode_escape").decode() for c in text)


def format_span(start: float | None, end: float | None) -> str:
    """A time span as people read it, `0:30–1:00`; nothing for a whole file.

    Example:

    ```python
    >>> format_span(3630, 3660.5)
    '1:00:30–1:01:00.5'
    ```"""
    if start is None and end is None:
        return ""
    return f"{_clock(start or 0.0)}–{'' if end is None else _clock(end)}"


def _clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{clock}:{tenths // 10:02}" + (f".{tenths % 10}" if tenths % 10 else "")


__all__ = ["format_span", "printable"]
