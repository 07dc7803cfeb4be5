"""Read the rows of table files: CSV, JSON, JSONL and Parquet. Every package may import this module."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
PATH_COLUMNS = ("file_name", "path", "video", "video_path", "file")  # usual names of the column with paths of videos


class Row(NamedTuple):
    """A row of a table: its place, such as `captions.csv, line 3`, and its values by column."""

    place: str
    values: Mapping[str, Any]


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table file.

    Raises:
        ValueError: the file cannot be read; the message names the file, the line and what was expected.
    """
    try:
        if path.suffix.lower() == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix.lower() in (".csv", ".tsv"):
            yield from _read_csv(path, _read_text(path))
        elif path.suffix.lower() in (".json", ".jsonl"):
            yield from _read_json(path, _read_text(path))
        else:
            raise ValueError(f"{path} is not a table: expected a file with the suffix {', '.join(TABLE_SUFFIXES)}")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4096]:
        raise ValueError(f"{path} is not text in UTF-8; if it is UTF-16, save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ValueError(f"{path}, line {line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error


def _read_csv(path: Path, text: str) -> Iterator[Row]:
    header = text.split("\n", 1)[0]
    reader = csv.reader(text.splitlines(keepends=True), delimiter=max(",;\t", key=header.count), strict=True)
    columns: list[str] | None = None
    line = 1
    try:
        for values in reader:
            if columns is None:
                columns = [name.strip() for name in values]
                if repeated := next((name for name in columns if columns.count(name) > 1), None):
                    raise ValueError(f"{path}, line 1: two columns are named {repeated!r}; rename one")
            elif values:
                if len(values) != len(columns):
                    raise ValueError(
                        f"{path}, line {line}: {len(values)} values for {len(columns)} columns; put a text that "
                        "holds the separator in double quotes"
                    )
                yield Row(f"{path.name}, line {line}", dict(zip(columns, values, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}; expected CSV with cells of at most 128 kB") from error


def _read_json(path: Path, text: str) -> Iterator[Row]:
    if path.suffix.lower() == ".jsonl":
        records = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        for place, line in records:
            yield Row(f"{path.name}, {place}", _as_record(_parse(path, line, place), f"{path}, {place}"))
        return
    tree = _parse(path, text, "")
    if isinstance(tree, dict) and all(isinstance(value, str | list) for value in tree.values()):
        tree = [{"file_name": name, "caption": value} for name, value in tree.items()]
    if not isinstance(tree, list):
        raise ValueError(f"{path}: expected a list of objects, or an object of captions by path")
    for number, record in enumerate(tree, 1):
        yield Row(f"{path.name}, record {number}", _as_record(record, f"{path}, record {number}"))


def _parse(path: Path, text: str, place: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{path}{place and f', {place}'}: an object has two values {name[:60]!r}; keep one")
        return record

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        line = place or f"line {getattr(error, 'lineno', 1)}"
        raise ValueError(f"{path}, {line}: broken JSON: {getattr(error, 'msg', error)}") from error


def _as_record(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{place}: a {type(record).__name__}; expected an object with a path and a caption")
    return record


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}, row {number}", record)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error


__all__ = ["PATH_COLUMNS", "TABLE_SUFFIXES", "Row", "read_rows"]
