"""Read text files line by line, and format paths, queries and times for a page or a terminal."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any


def printable(text: str) -> str:
    r"""Escape all characters that are not printable.

    A newline becomes `\n`, the start of a terminal's command `\x1b`, the reversal of the writing direction `\u202e`,
    and a byte of a path that is not UTF-8 `\xff`.
    """
    return "".join(c if c.isprintable() or c == "\u3000" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    byte = ord(character) - 0xDC00  # Python decodes a byte of a path that is not UTF-8 to 0xDC00 + byte
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def readable(value: Any) -> str | list[str]:
    r"""Return a value of one of the owner's columns as a page shows it; a list of texts stays a list.

    A time is local, such as `2026-01-31 12:00`, without its time of day at midnight. In texts, lines stay, and control
    characters are escaped (`\x1b`). A page has to isolate texts that change the writing direction (`<bdi>`).
    """
    if isinstance(value, list):
        return [str(readable(item)) for item in value]
    if isinstance(value, datetime):
        local = value.astimezone()
        if (local.hour, local.minute, local.second) == (0, 0, 0):
            return local.date().isoformat()
        return local.strftime("%Y-%m-%d %H:%M" + (":%S" if local.second else ""))
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: _escaped(match[0]), str(value).replace("\r\n", "\n"))


def abridge(text: str, length: int = 100) -> str:
    """Cut a long text at a space after at most `length` characters, and end it with …; a shorter one stays."""
    if len(text) <= length:
        return text
    return (text[:length].rpartition(" ")[0] or text[:length]) + "…"


def format_span(start: float | None, end: float | None) -> str:
    """Format a time span in seconds as `0:30–1:00`; return an empty string for a whole file.

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
    """Read the distinct captions of a UTF-8 file with one caption per line, in file order.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not UTF-8 text, or holds no caption.
    """
    lines = split_lines(Path(path).read_bytes(), path, "captions")
    return list(dict.fromkeys(" ".join(line.split()) for line in lines))


def split_lines(content: bytes, source: str | Path, things: str) -> list[str]:
    """Split UTF-8 text into its lines, stripped of white space, without empty lines.

    Args:
        content (`bytes`): text in UTF-8.
        source (`str` or `Path`): name of the text's source, for errors.
        things (`str`): plural of what a line holds, for errors.

    Raises:
        ValueError: the text is not UTF-8, or all lines are empty.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: give a file of {things}, one per line.") from error
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    if not lines:
        raise ValueError(f"{source} holds no {things}: give one per line.")
    return lines


__all__ = ["abridge", "format_span", "printable", "read_captions", "readable", "split_lines"]
