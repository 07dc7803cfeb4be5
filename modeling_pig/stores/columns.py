"""The owner's columns of an index: their names, types and values."""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from .conditions import FIELDS, KEYWORDS


if TYPE_CHECKING:
    import pyarrow as pa

# Types of columns, as users name them; a time is stored in UTC, in microseconds.
TEXT, INTEGER, FLOAT, BOOL, TIME, TEXTS = "text", "integer", "float", "bool", "time", "texts"
TYPES = (TEXT, INTEGER, FLOAT, BOOL, TIME, TEXTS)
_EXPECTED = {
    TEXT: "text",
    INTEGER: "a whole number",
    FLOAT: "a number",
    BOOL: "true or false",
    TIME: "a time such as 2026-01-31 or 2026-01-31 12:00",
    TEXTS: "a list of texts",
}
# Texts that are inferred to be numbers: not 007, +47 and 1_000, which a number would not hold as they are.
_NUMBER = re.compile(r"\s*-?(?:0|[1-9]\d*)?(?:\.\d*)?(?:[eE][-+]?\d+)?\s*")
_TYPE_KEY = b"pig:column"  # metadata of an Arrow field
_RESERVED = {*FIELDS, "key", "content_hash", "embedding", "context", "score", "rank", "metadata"}
ID = "id"  # column of the identifier of a video; always text
MAX_TEXT = 64_000  # bytes of a text, or of all texts of a list; Milvus stores at most 65,535


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise `ValueError` if a name or type of a column is not valid."""
    for name, kind in columns.items():
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name):
            raise ValueError(
                f"{shorten(repr(name))} cannot be the name of a column: expected lower-case letters, digits and _."
            )
        if name in _RESERVED or name in KEYWORDS or name.startswith("_"):
            raise ValueError(f"A column cannot be named {name!r}, which every index has or reserves: rename it.")
        if name == ID and kind != TEXT:
            raise ValueError(f"The column id holds identifiers, which are text, not {kind}.")
        if kind not in TYPES:
            raise ValueError(f"The column {name} has the type {kind!r}: expected {', '.join(TYPES)}.")


def arrow_fields(columns: Mapping[str, str]) -> "list[pa.Field]":
    """Return the Arrow fields of columns, which remember the types."""
    import pyarrow as pa

    types = {
        TEXT: pa.string(),
        INTEGER: pa.int64(),
        FLOAT: pa.float64(),
        BOOL: pa.bool_(),
        TIME: pa.timestamp("us", tz="UTC"),
        TEXTS: pa.list_(pa.string()),
    }
    return [pa.field(name, types[kind], metadata={_TYPE_KEY: kind}) for name, kind in columns.items()]


def columns_of(schema: "pa.Schema") -> dict[str, str]:
    """Return the owner's columns of an Arrow schema, name -> type."""
    return {field.name: field.metadata[_TYPE_KEY].decode() for field in schema if _TYPE_KEY in (field.metadata or {})}


def convert(value: Any, kind: str, place: str) -> Any:
    """Convert a value to the type of its column; `None` if it is no value: an empty text or list, or NaN.

    Args:
        value: value, also as text, as tables of text hold it.
        kind (`str`): type of the column.
        place (`str`): place of the value, for messages.

    Raises:
        ValueError: the value has another type, is too long, or is not valid Unicode.
    """
    if _is_missing(value):
        return None
    found = _convert(value, kind)
    if found is None:
        raise ValueError(f"{place} is {shorten(repr(value))}; expected {_EXPECTED[kind]}")
    texts = "".join(found) if isinstance(found, str | list) else ""
    try:
        size = len(texts.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{place} is {shorten(repr(value))}; expected valid Unicode") from error
    if size > MAX_TEXT:
        raise ValueError(f"{place} has {len(texts):,} characters; expected at most {MAX_TEXT:,} bytes")
    return None if found == [] else found


def _is_missing(value: Any) -> bool:
    return value is None or value in ("", []) or (isinstance(value, float) and math.isnan(value))


def shorten(text: str, length: int = 60) -> str:
    """Cut a text for a message to at most `length` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."


def _convert(value: Any, kind: str) -> Any:
    if kind == TEXT:
        return value if isinstance(value, str) else None
    if kind == TEXTS:
        if isinstance(value, str):
            return [part.strip() for part in value.split(";") if part.strip()]
        is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return list(value) if is_list else None
    if kind == TIME:
        return _to_time(value)
    if kind == BOOL:
        if isinstance(value, bool):
            return value
        return {"true": True, "yes": True, "false": False, "no": False}.get(str(value).strip().lower())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if kind == INTEGER and not isinstance(value, float):
        with suppress(ValueError):  # such as "3.0"
            whole = int(value)
            return whole if abs(whole) < 2**63 else None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if kind == FLOAT:
        return number if math.isfinite(number) else None
    return int(number) if number.is_integer() and abs(number) < 2**63 else None


def _to_time(value: Any) -> datetime | None:
    """Return a time in UTC; one without a time zone is local, as the times of files are."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    try:
        return value.astimezone(UTC) if isinstance(value, datetime) else None
    except (OverflowError, OSError, ValueError):
        return None


def infer_type(values: Iterable[Any]) -> str:
    """Return the narrowest type that holds all values of a column; text if there are none."""
    present = [value for value in values if not _is_missing(value)]
    if any(isinstance(value, list | tuple) for value in present):
        return TEXTS
    texts = [value for value in present if isinstance(value, str)]
    for kind in (BOOL, INTEGER, FLOAT, TIME):
        if kind in (INTEGER, FLOAT) and not all(map(_NUMBER.fullmatch, texts)):
            continue
        if present and all(_convert(value, kind) is not None for value in present):
            return kind
    return TEXT


def describe_value(value: Any) -> Any:
    """Return a value as JSON and tables show it: a time as text in local time."""
    return value.astimezone().isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else value


__all__ = [
    "BOOL",
    "FLOAT",
    "ID",
    "INTEGER",
    "MAX_TEXT",
    "TEXT",
    "TEXTS",
    "TIME",
    "TYPES",
    "arrow_fields",
    "check_columns",
    "columns_of",
    "convert",
    "describe_value",
    "infer_type",
    "shorten",
]
