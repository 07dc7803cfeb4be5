"""Text for people: files of it, one thing a line, and paths, queries and times as a page or a terminal shows them."""

import re
from pathlib import Path


def printable(text: str) -> str:
    r"""A text in which what no screen should be sent stands escaped: a newline as `\n`, the start of a terminal's
    command as `\x1b`, the reversal of the direction of writing as `\u202e`, a byte of a path that is no UTF-8 as
    `\xff`."""
    return "".join(c if c.isprintable() or c == "\u3000" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00  # where Python keeps such bytes of file names
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


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


def read_captions(path: str | Path) -> list[str]:
    """The different captions in a UTF-8 file with one a line, in their order; empty lines are left out.

    Raises:
        OSError: no such file.
        ValueError: a file of another kind, or without captions.
    """
    lines = split_lines(Path(path).read_bytes(), path, "captions")
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))


def split_lines(content: bytes, place: str | Path, things: str) -> list[str]:
    """The lines of UTF-8 text, without the empty ones and the white space around them. `place` says where it came from
    and `things` what it holds, for the errors.

    Raises:
        ValueError: no UTF-8, or no line with anything in it.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no UTF-8 text: expected a file of {things}, one a line.") from error
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not lines:
        raise ValueError(f"{place} holds no {things}: expected one a line.")
    return lines


__all__ = ["format_span", "printable", "read_captions", "split_lines"]
