"""Read the words that are spoken in videos from the subtitle files beside them."""

import codecs
import html
import io
import os
import re
from functools import lru_cache
from typing import NamedTuple

from ..remote import is_remote
from ..stores.columns import MAX_TEXT, TEXT
from ..video_file_pig import import_av


SUBTITLE_COLUMNS = {"subtitles": TEXT}
MAX_BYTES = 16_000_000  # of a subtitle file: a film has 0.1 MB

_NAME = re.compile(r"(?P<stem>.+?)(?P<language>\.[a-z]{2,3}(?:[-_][a-z0-9]{2,8})*)?\.(?P<suffix>srt|vtt)")
# Tags such as <i>, <v Fred> and <00:01.500>, and commands of other formats such as {\an8}.
_TAG = re.compile(r"</?[A-Za-z][^<>\n]*>|<[\d:.]+>|\{\\[^{}\n]*\}")


class Cue(NamedTuple):
    """Lines of text that are shown from `start` to `end`, in seconds from the start of the file."""

    start: float
    end: float
    lines: list[str]


class SubtitleReader:
    """Find the subtitle files of videos, and read the words of each video or segment.

    The file of `clip.mp4` is the first of `clip.srt`, `clip.vtt`, and those with a language, such as `clip.en.srt`, in
    order of name. Upper and lower case are the same.

    Attributes:
        problems (`dict[str, str]`): subtitle files that cannot be used as they are -> reason.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self._files_in = lru_cache(1000)(_find_files)
        self._cues_of = lru_cache(100)(self._read)

    def values(self, path: str, start: float | None = None, end: float | None = None) -> dict[str, str | None]:
        """Return the value of the column `subtitles` for a video, or for its segment from `start` to `end` in seconds.

        Returns:
            `dict`: `None` if no words are spoken; empty if the subtitle file cannot be read, so that a value that was
            read earlier stays.
        """
        folder, name = os.path.split(path)
        if is_remote(path):
            self.problems[folder] = "subtitle files of remote videos are not read: give their words with --metadata"
            return {}
        try:
            file = self._files_in(folder).get(os.path.splitext(name)[0].casefold())
        except OSError as error:
            self.problems[folder] = f"cannot be listed ({error.strerror})"
            return {}
        if file is None:
            return {"subtitles": None}
        cues = self._cues_of(os.path.join(folder, file))
        if cues is None:
            return {}
        words = find_words(cues, start, end)
        if len(words.encode()) > MAX_TEXT:
            self.problems[os.path.join(folder, file)] = f"only the first {MAX_TEXT:,} bytes are kept; use --segment"
            words = words.encode()[:MAX_TEXT].decode(errors="ignore")
        return {"subtitles": words or None}

    def _read(self, file: str) -> list[Cue] | None:
        try:
            return read_cues(file)
        except OSError as error:
            self.problems[file] = f"cannot be read ({error.strerror})"
        except ValueError as error:
            self.problems[file] = str(error)
        return None


def read_cues(file: str) -> list[Cue]:
    """Read the cues of a SubRip or WebVTT file, in order of start.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds no cues, or is too large to be one of subtitles.
    """
    with open(file, "rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES / 1e6:g} MB; expected subtitles")
    av = import_av()
    text = re.sub(r"\r\n?", "\n", _decode(content)).replace("\0", "")
    cues = []
    try:
        source = io.BytesIO(text.encode("utf-8", "replace"))
        with av.open(source, format="webvtt" if text.startswith("WEBVTT") else "srt") as container:
            for packet in container.demux(container.streams[0]):
                if packet.pts is not None:
                    start, seconds = packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base
                    cues.append(Cue(float(start), float(start + max(seconds, 0)), _clean(bytes(packet).decode())))
    except av.FFmpegError as error:
        raise ValueError(f"cannot be read ({error.strerror}); expected SubRip or WebVTT") from error
    if not cues:
        raise ValueError("holds no subtitles; expected SubRip or WebVTT")
    return cues


def find_words(cues: list[Cue], start: float | None = None, end: float | None = None) -> str:
    """Return the words of the cues that overlap a segment, in seconds.

    A line that repeats the line before it is left out: automatic subtitles show each line two or three times.
    """
    first, last = -1.0 if start is None else start, float("inf") if end is None else end
    lines: list[str] = []
    for cue in cues:
        if cue.start < last and (cue.end > first or cue.start >= first):
            for line in cue.lines:
                if line != (lines[-1] if lines else None):
                    lines.append(line)
    return " ".join(lines)


def _find_files(folder: str) -> dict[str, str]:
    """Return the subtitle files of a folder by the name of their video, without its extension and in lower case."""
    found: dict[str, tuple[bool, str, str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name.casefold())
            if match and entry.is_file():
                whole_stem = entry.name.casefold().rpartition(".")[0]
                for stem in {whole_stem, match["stem"]}:  # a.en.srt is of a.en.mp4, or of a.mp4
                    rank = (stem != whole_stem, match["suffix"] if stem == whole_stem else "", entry.name)
                    found[stem] = min(rank, found.get(stem, rank))
    return {stem: name for stem, (*_, name) in found.items()}


def _decode(content: bytes) -> str:
    """Decode UTF-8, UTF-16 with or without a byte order mark, and otherwise Windows-1252, which contains Latin-1."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    if b"\0" in content[:2]:
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _clean(text: str) -> list[str]:
    """Return the lines of a cue without tags, and without empty lines."""
    lines = (" ".join(html.unescape(_TAG.sub("", line)).split()) for line in text.split("\n"))
    return [line for line in lines if line]


__all__ = ["SUBTITLE_COLUMNS", "Cue", "SubtitleReader", "find_words", "read_cues"]
