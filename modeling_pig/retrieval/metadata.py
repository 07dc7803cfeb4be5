"""Read the owner's columns from a table with a row per video."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..remote import is_remote
from ..stores.columns import ID, TEXT, check_columns, convert, infer_type, shorten
from ..tables import PATH_COLUMNS, Row, read_rows


def read_metadata(
    file: str | os.PathLike,
    folders: Sequence[str | os.PathLike],
    known_paths: Collection[str],
    columns: Mapping[str, str],
    types: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Read the values of the owner's columns, one row per video, and check all of them.

    Args:
        file (`str` or `os.PathLike`): CSV, TSV, JSON, JSONL or Parquet file with a column `file_name`, `path`,
            `video`, `video_path` or `file`: paths relative to one of the folders, or absolute. All other columns are
            read; `id` is the owner's identifier of the video, which is text and unique.
        folders (`Sequence[str | os.PathLike]`): folders of videos.
        known_paths (`Collection[str]`): absolute paths of the videos that the index holds or is going to hold.
        columns (`Mapping[str, str]`): the owner's columns that the index has, name -> type.
        types (`Mapping[str, str]`, *optional*): types of further columns; by default the narrowest that fits.

    Returns:
        `tuple`: the types of the columns of the file, and path -> values by column.

    Raises:
        ValueError: the file cannot be read, names a video that is not known or names one twice, or a column or value
            is not valid. The message names the line.
    """
    path = Path(file)
    by_path: dict[str, Row] = {}
    rows = list(read_rows(path))
    if not rows:
        raise ValueError(f"{path} holds no rows: expected a row per video.")
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    key = next((name for name in PATH_COLUMNS if name in names), None)
    if key is None:
        raise ValueError(f"{path} has no column {' or '.join(PATH_COLUMNS)}: its columns are {_join(names)}.")
    roots = list(dict.fromkeys(root for folder in folders for root in _roots(folder)))
    for row in rows:
        found = _find(row, key, roots, known_paths)
        if found in by_path:
            raise ValueError(f"{row.place}: {row.values[key]!r} is also in {by_path[found].place}: keep one row.")
        by_path[found] = row
    names.remove(key)
    kinds = {name: (types or {}).get(name) or columns.get(name) or "" for name in names}
    if unknown := sorted(set(types or {}) - set(names)):
        raise ValueError(f"{path} has no column {unknown[0]}: its columns are {_join(names)}.")
    if ID in names:
        kinds[ID] = TEXT
    for name in names:
        kinds[name] = kinds[name] or infer_type(row.values.get(name) for row in rows)
        if columns.get(name, kinds[name]) != kinds[name]:
            raise ValueError(f"The index has the column {name} of type {columns[name]}, not {kinds[name]}.")
    try:
        check_columns(kinds)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check_ids(by_path.values())
    values = {
        found: {name: convert(_value(row, name), kinds[name], f"{row.place}: the column {name}") for name in names}
        for found, row in by_path.items()
    }
    return kinds, values


def _roots(folder: str | os.PathLike) -> list[str]:
    path = os.fspath(folder)
    return [path] if is_remote(path) else [os.path.abspath(path), os.path.realpath(path)]


def _join_path(root: str, path: str) -> str:
    if is_remote(root):
        return f"{root}/{path.removeprefix('./')}"
    return os.path.normpath(os.path.join(root, path))


def _check_ids(rows: Iterable[Row]) -> None:
    """Raise `ValueError` if two videos have one identifier."""
    seen: dict[str, Row] = {}
    for row in rows:
        found = _value(row, ID)
        if not isinstance(found, str) or not found:
            continue
        if found in seen:
            raise ValueError(f"{row.place}: the id {found!r} is also in {seen[found].place}: give each video its own.")
        seen[found] = row


def _value(row: Row, name: str) -> Any:
    """Return a value of a row; an identifier that is a whole number becomes text."""
    value = row.values.get(name)
    return str(value) if name == ID and isinstance(value, int) and not isinstance(value, bool) else value


def parse_types(assignments: Sequence[str]) -> dict[str, str]:
    """Read types of columns as a command line gives them, `name=type`.

    Raises:
        ValueError: an assignment has another form, or a name or type is not valid.
    """
    types = {}
    for assignment in assignments:
        name, equals, kind = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} is not of the form name=type: write, for example, published=time.")
        types[name.strip()] = kind.strip()
    check_columns(types)
    return types


def _join(names: Sequence[str]) -> str:
    return shorten(", ".join(names), 500)


def _find(row: Row, key: str, roots: Sequence[str], known_paths: Collection[str]) -> str:
    value = row.values.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{row.place}: the column {key} is {shorten(repr(value))}; expected the path of a video")
    for root in roots:
        found = value.strip() if is_remote(value.strip()) else _join_path(root, value.strip())
        if found in known_paths:
            return found
    shown = shorten(repr(value.strip()), 500)
    raise ValueError(f"{row.place}: there is no video {shown} in {', '.join(roots)}")


__all__ = ["parse_types", "read_metadata"]
