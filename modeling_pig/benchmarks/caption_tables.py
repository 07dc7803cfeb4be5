"""Read the captions of videos from the rows of a table."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..tables import PATH_COLUMNS, Row


CAPTION_COLUMNS = ("caption", "captions", "text", "sentence")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass
class Columns:
    """Names of the columns that are read; `None`: the usual name, see `PATH_COLUMNS` and `CAPTION_COLUMNS`.

    Args:
        path (`str`, *optional*): path of a video.
        caption (`str`, *optional*): a caption, or a list of captions.
        group (`str`, *optional*): videos with the same value come from the same recording; by default `group`.
    """

    path: str | None = None
    caption: str | None = None
    group: str | None = None


@dataclass
class CaptionedVideo:
    """A video, or a segment of one, with its captions.

    Attributes:
        path (`str`): path of the file, as in the table.
        start, end (`float`, *optional*): segment in seconds.
        split (`str`, *optional*): `"train"`, `"validation"`, `"test"`, or `None` if the table does not say.
        group (`str`, *optional*): recording that the video comes from.
        place (`str`): the first row of the video, for messages.
        captions (`list[str]`): captions in the order of the table.
        num_empty (`int`): number of empty captions, which are left out.
    """

    path: str
    start: float | None
    end: float | None
    split: str | None
    group: str | None
    place: str
    captions: list[str] = field(default_factory=list)
    num_empty: int = 0

    @property
    def video_id(self) -> str:
        """The path; for a segment with a media fragment (`a.mp4#t=30,60`)."""
        if self.start is None and self.end is None:
            return self.path
        return f"{self.path}#t={self.start or 0:g}" + ("" if self.end is None else f",{self.end:g}")


def split_named(name: str) -> str | None:
    """Return the split that a name means, such as `"validation"` for `"val"`; `None` if it means none."""
    return _SPLITS.get(name.strip().lower())


def join_captions(rows: Iterable[Row], columns: Columns, source: str) -> list[CaptionedVideo]:
    """Join the rows of each video, or of each segment of a video.

    Args:
        rows (`Iterable[Row]`): rows, of which several may be of one video.
        columns ([`Columns`]): names of the columns.
        source (`str`): the table, for messages.

    Raises:
        ValueError: a column is missing or ambiguous, or a value is invalid; the message names the line.
    """
    videos: dict[tuple[str, float | None, float | None], CaptionedVideo] = {}
    names: tuple[str, str, str | None] | None = None
    for row in rows:
        names = names or _find_columns(list(row.values), columns, source)
        path_column, caption_column, group_column = names
        path = row.values.get(path_column)
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"{row.place}: the column {path_column} is {path!r}; expected the path of a video")
        start, end = (_seconds(row, name) for name in ("start", "end"))
        if end is not None and end <= (start or 0.0):
            raise ValueError(f"{row.place}: the segment ends at {end:g} s and starts at {start or 0:g} s")
        group = None if group_column is None else row.values.get(group_column)
        found = CaptionedVideo(
            path.strip(), start, end, _split(row), None if group in (None, "") else str(group), row.place
        )
        known = videos.setdefault((found.path, start, end), found)
        for name in ("split", "group"):
            first, second = getattr(known, name), getattr(found, name)
            if first != second:
                raise ValueError(
                    f"{row.place}: {found.video_id} is in the {name} {second}, and in {first} in {known.place}"
                )
        captions = _captions(row, caption_column)
        known.captions += [caption for caption in captions if caption]
        known.num_empty += sum(not caption for caption in captions)
    return list(videos.values())


def _find_columns(names: Sequence[str], columns: Columns, source: str) -> tuple[str, str, str | None]:
    path = _find_column(names, columns.path, PATH_COLUMNS[:1], "path", source, required=False)
    path = path or _find_column(names, columns.path, PATH_COLUMNS, "path", source)
    caption = _find_column(names, columns.caption, CAPTION_COLUMNS, "caption", source)
    group = _find_column(names, columns.group, ("group",), "group", source, required=False)
    assert path is not None and caption is not None
    return path, caption, group


def _find_column(
    names: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, source: str, required: bool = True
) -> str | None:
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"{source} has no column {wanted!r} ({what}_column): its columns are {', '.join(names)}")
        return wanted
    found = [name for name in usual if name in names]
    if len(found) > 1:
        raise ValueError(f"{source} has the columns {' and '.join(found)}: choose one by the option {what}_column")
    if not found and required:
        raise ValueError(
            f"{source} has no column {' or '.join(usual)}: its columns are {', '.join(names)}; name one by the option "
            f"{what}_column"
        )
    return found[0] if found else None


def _seconds(row: Row, name: str) -> float | None:
    value = row.values.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{row.place}: the column {name} is {value!r}; expected seconds, 0 or more")
    return seconds


def _split(row: Row) -> str | None:
    value = row.values.get("split")
    if value is None or value == "":
        return None
    split = split_named(value) if isinstance(value, str) else None
    if split is None:
        raise ValueError(f"{row.place}: the column split is {value!r}; expected train, validation or test")
    return split


def _captions(row: Row, column: str) -> list[str]:
    value = row.values.get(column)
    captions = value if isinstance(value, list) else [value]
    for caption in captions:
        if caption is not None and not isinstance(caption, str):
            raise ValueError(
                f"{row.place}: the column {column} holds {caption!r}, a {type(caption).__name__}; expected text, or a "
                "list of texts"
            )
    return [" ".join((caption or "").encode("utf-8", "replace").decode().split()) for caption in captions]


__all__ = ["CaptionedVideo", "Columns", "join_captions", "split_named"]
