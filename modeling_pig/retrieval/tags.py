"""Read the tags that a video file holds: title, time and place of the recording."""

import re
from typing import Any

from ..remote import open_source
from ..stores.columns import FLOAT, TEXT, TIME, convert, shorten
from ..video_file_pig import VideoDecodingError, import_av, open_video


TAG_COLUMNS = {"title": TEXT, "created": TIME, "latitude": FLOAT, "longitude": FLOAT}
# Usual names of the tags, the best first. An export of a phone's video has the time of the export in creation_time.
_TITLES = ("com.apple.quicktime.title", "title")
_TIMES = ("com.apple.quicktime.creationdate", "creation_time")
_LOCATIONS = ("com.apple.quicktime.location.iso6709", "location", "location-eng")
# ISO 6709: +DD.DDDD+DDD.DDDD, or with minutes (+DDMM.MM+DDDMM.MM) or minutes and seconds; a height may follow.
_LOCATION = re.compile(
    r"([+-])(\d{2})(\d{2})?(\d{2})?(\.\d+)?([+-])(\d{3})(\d{2})?(\d{2})?(\.\d+)?(?:[+-][\d.]+)?(?:CRS.*)?/?"
)


def read_tags(path: str) -> tuple[dict[str, Any], list[str]]:
    """Read the tags of a video file.

    Returns:
        `tuple`: values by column of `TAG_COLUMNS`, `None` if the file has no such tag, and one message per tag that is
        not valid. Values of such tags are left out, as all are if the file cannot be opened.
    """
    try:
        with open_source(path, whole=False) as source, open_video(import_av(), source) as (container, stream):
            tags = {**_fold(stream.metadata), **_fold(container.metadata)}
    except VideoDecodingError:
        return {}, []
    values: dict[str, Any] = {}
    problems = []
    for column, names in (("title", _TITLES), ("created", _TIMES)):
        name = next((name for name in names if tags.get(name)), None)
        try:
            values[column] = name and convert(tags[name], TAG_COLUMNS[column], f"{path}: the tag {name}")
        except ValueError as error:
            problems.append(str(error))
    name = next((name for name in _LOCATIONS if tags.get(name)), None)
    latitude, longitude = (None, None) if name is None else _parse_location(tags[name])
    if name is not None and latitude is None:
        shown = shorten(repr(tags[name]))
        problems.append(f"{path}: the tag {name} is {shown}; expected a place such as +59.9139+010.7522/")
    else:
        values |= {"latitude": latitude, "longitude": longitude}
    return values, problems


def _fold(metadata: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value.strip() for name, value in metadata.items()}


def _parse_location(text: str) -> tuple[float, float] | tuple[None, None]:
    """Return latitude and longitude in degrees."""
    match = _LOCATION.fullmatch(text)
    if match is None:
        return None, None
    latitude, longitude = (_degrees(*match.groups()[first : first + 5]) for first in (0, 5))
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else (None, None)


def _degrees(sign: str, degrees: str, minutes: str | None, seconds: str | None, fraction: str | None) -> float:
    """Return degrees; the fraction is one of the last unit that is given."""
    parts = [part for part in (degrees, minutes, seconds) if part]
    parts[-1] += fraction or ""
    value = sum(float(part) / 60**number for number, part in enumerate(parts))
    return -value if sign == "-" else value


__all__ = ["TAG_COLUMNS", "read_tags"]
