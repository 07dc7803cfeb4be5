"""Read the annotation files of benchmarks in all formats in which they circulate.

A file is a list of video ids, or captions of videos, or the number of one caption per video. Its format is recognised
by its content, never by its name: lines of ids, CSV (`,`, `;` or tabs), JSON in several structures, JSONL, lines of
an id and a caption, or a pickle of plain values.
"""

import csv
import hashlib
import io
import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple


# Columns and keys that hold the id or the captions of a video, in lower case.
_ID_KEYS = ("video_id", "videoid", "clip_id", "video", "image_id")
_CAPTION_KEYS = ("caption", "encap", "text", "sentence", "description")
# A line of `AllVideoDescriptions.txt`: an MSVD id and a caption.
_ID_AND_CAPTION = re.compile(r"([\w-]{11}_\d+_\d+)\s+(\S.*)")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as which `surrogateescape` decodes a byte that is not UTF-8


class UnknownFormatError(ValueError):
    """A file is not an annotation file; the message gives the reason."""


class FileContent(NamedTuple):
    """Parsed content of a file: video ids, (id, caption) pairs, and caption numbers by id."""

    ids: list[str]
    captions: list[tuple[str, str]]
    choices: dict[str, int]


@dataclass
class AnnotationFile:
    """An annotation file of a benchmark.

    Attributes:
        path (`Path`): path of the file.
        ids (`list[str]`): video ids in file order, without repetitions.
        captions (`list[tuple[str, str]]`): (id, caption) pairs in file order; empty for a list of ids.
        choices (`dict[str, int]`): number of the caption that is the query of a video; empty for all files except
            `jsfusion_val_caption_idx.pkl` of MSR-VTT 1k-A.
        repeated (`int`): number of repeated ids in a list.
    """

    path: Path
    ids: list[str]
    captions: list[tuple[str, str]] = field(default_factory=list)
    choices: dict[str, int] = field(default_factory=dict)
    repeated: int = 0

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def is_list(self) -> bool:
        """Whether the file is a list of ids, without captions."""
        return not self.captions and not self.choices

    @cached_property
    def captions_by_id(self) -> dict[str, list[str]]:
        """Captions of each video, in file order."""
        grouped: dict[str, list[str]] = {}
        for video_id, caption in self.captions:
            grouped.setdefault(video_id, []).append(caption)
        return grouped

    @property
    def split_in_name(self) -> str | None:
        """Split that the file's name mentions; `None` if it mentions none or several."""
        starts = {"train": "train", "val": "validation", "test": "test"}
        words = re.findall("[a-z]+", self.path.stem.lower())
        found = {split for word in words for start, split in starts.items() if word.startswith(start)}
        return found.pop() if len(found) == 1 else None


class Annotations:
    """
    The annotation files of a folder and its subfolders. Hidden files are ignored.

    Args:
        folder (`str` or `os.PathLike`): folder of the annotation files.
        title (`str`): name of the benchmark, for messages.
        id_pattern (`str`): regular expression of the benchmark's video ids.
        example (`str`): one video id, for messages.

    Attributes:
        files (`list[AnnotationFile]`): annotation files of the benchmark, sorted by path.
        ignored (`dict[str, str]`): reason why each other file was ignored, by path relative to the folder.
        fingerprint (`str`): hash of the names and the content of `files`.

    Raises:
        ValueError: the folder does not exist, or an annotation file of the benchmark is damaged.
    """

    def __init__(self, folder: str | os.PathLike, title: str, id_pattern: str, example: str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise ValueError(
                f"`annotations` is {str(folder)!r}, which is no folder: give the folder of {title}'s annotations"
            )
        self.title, self.example = title, example
        self._id_pattern = re.compile(id_pattern)
        self._digests: list[str] = []
        self.files: list[AnnotationFile] = []
        self.ignored: dict[str, str] = {}
        for path in _visible_files(self.folder):
            try:
                self.files.append(self.read(path))
            except UnknownFormatError as reason:
                self.ignored[str(path.relative_to(self.folder))] = str(reason)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self._digests).encode()).hexdigest()[:16]

    def read(self, path: Path) -> AnnotationFile:
        """Read an annotation file.

        Raises:
            UnknownFormatError: the file is not an annotation file of this benchmark.
            ValueError: the file is an annotation file of this benchmark, and is damaged.
        """
        repeated_keys: list[str] = []
        try:
            with open(path, "rb") as file:
                start = file.read(4096)
                if _is_pickle(start):
                    file.seek(0)
                    text, (ids, captions, choices) = "", _parse_tree(_unpickle(path, file))
                elif b"\0" in start:
                    raise UnknownFormatError("neither text in UTF-8 nor a pickle")
                else:
                    # A byte that is not UTF-8 is an error only if the file belongs to the benchmark.
                    text = (start + file.read()).decode("utf-8-sig", "surrogateescape")
                    ids, captions, choices = _parse_text(path, text, repeated_keys)
        except OSError as error:
            raise UnknownFormatError(f"cannot be read: {error.strerror}") from error
        if not ids:
            raise UnknownFormatError("holds no video ids")
        unique = list(dict.fromkeys(ids))
        invalid = [video_id for video_id in unique if not self._id_pattern.fullmatch(video_id)]
        if 2 * len(invalid) > len(unique):
            raise UnknownFormatError(f"{_short(invalid[0])} is no id of {self.title}, such as {self.example!r}")
        if invalid:
            location = _locate(path, text, invalid[0])
            raise ValueError(
                f"{location}: {_short(invalid[0])} is no id of {self.title}, such as {self.example!r}; correct it"
            )
        if damaged := _NOT_UTF8.search(text):
            location = f"{path}, line {text.count(chr(10), 0, damaged.start()) + 1}"
            raise ValueError(f"{location}: byte 0x{ord(damaged[0]) - 0xDC00:02x} is not UTF-8; save the file as UTF-8")
        if repeated_keys:
            key = repeated_keys[0]
            raise ValueError(
                f"{_locate(path, text, key)}: the key {_short(key)} comes again in the same JSON object, which would "
                "lose its first value; join the two"
            )
        self._digests.append(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
        return AnnotationFile(path, unique, captions, choices, 0 if captions or choices else len(ids) - len(unique))

    def open(self, name: str | os.PathLike) -> AnnotationFile:
        """Read the file `name` of the annotations' folder, or else of the working directory.

        Raises:
            ValueError: there is no such file, or it is not an annotation file of this benchmark.
        """
        inside = self.folder / Path(name).expanduser()
        path = inside if inside.is_file() else Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"`lists` names {str(name)!r}, which is no file, nor is it in {str(self.folder)!r}")
        try:
            return self.read(path)
        except UnknownFormatError as reason:
            raise ValueError(f"`lists` names {str(path)!r}, which is no list of {self.title}: {reason}") from reason

    def missing_error(self, what: str) -> ValueError:
        """Return the error that the folder lacks `what`, with the files that were read and ignored."""
        files = ", ".join(file.name for file in self.files) or "none"
        ignored = "; ".join(f"{name} ({reason})" for name, reason in list(self.ignored.items())[:8])
        ignored += f"; and {len(self.ignored) - 8} more" if len(self.ignored) > 8 else ""
        return ValueError(
            f"{str(self.folder)!r} holds no {what}. Files of {self.title} in it: {files}. Ignored: {ignored or 'none'}"
        )


def clean_caption(caption: str) -> str:
    """Collapse white space in a caption, and replace lone surrogates, which UTF-8 cannot encode."""
    return " ".join(caption.encode("utf-8", "replace").decode().split())


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _visible_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _is_pickle(content: bytes) -> bool:
    # Protocols 2 and later have a header; in protocols 0 and 1 check how a dict or list starts.
    return content[:1] == b"\x80" or content[:3] in (b"(dp", b"(lp", b"(dq", b"}q\0", b"]q\0")


def _locate(path: Path, text: str, wanted: str) -> str:
    """Return the path with the number of the line that equals `wanted`, or else holds it as a word or field."""
    lines = [line.strip() for line in text.split("\n")]
    field = re.compile(rf"(?<![^\s,;\"]){re.escape(wanted)}(?![^\s,;\"])")
    found = [lines.index(wanted)] if wanted in lines else [n for n, line in enumerate(lines) if field.search(line)]
    return f"{path}, line {found[0] + 1}" if found else str(path)


def _parse_text(path: Path, text: str, repeated_keys: list[str]) -> FileContent:
    """Parse a text file; append the keys that are repeated within a JSON object to `repeated_keys`."""
    first = text.lstrip()[:1]
    if first and first in "[{":
        return _parse_tree(_load_json(text, repeated_keys))
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise UnknownFormatError("empty")
    for delimiter in ",;\t":
        columns = [column.strip().strip('"').lower() for column in lines[0].split(delimiter)]
        if any(key in columns for key in _ID_KEYS):
            return _parse_table(path, text, delimiter, columns)
    matches = [_ID_AND_CAPTION.fullmatch(line) for line in lines]
    if any(matches):
        # Prose may precede the first pair.
        start = next(number for number, match in enumerate(matches) if match)
        for line, match in zip(lines[start:], matches[start:], strict=True):
            if not match:
                raise ValueError(f"{_locate(path, text, line)}: {_short(line)} is not an id, a space and a caption")
        pairs = [(match[1], match[2]) for match in matches if match]
        return FileContent([video_id for video_id, _ in pairs], pairs, {})
    return FileContent(lines, [], {})


def _parse_table(path: Path, text: str, delimiter: str, columns: list[str]) -> FileContent:
    reader = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter, strict=True)
    records = []
    try:
        next(reader)
        for row in reader:
            if not any(row):
                continue
            if len(row) > len(columns):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} fields in {len(columns)} columns; put a text that "
                    f"holds a {delimiter!r} in double quotes"
                )
            records.append(dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: broken CSV: {error}") from error
    if {"videoid", "start", "end", "language"} <= set(columns):  # the MSR corpus: MSVD
        english = [record for record in records if record["language"].strip().lower() == "english"]
        records = [{**r, "videoid": "_".join(r[key].strip() for key in ("videoid", "start", "end"))} for r in english]
    elif len(columns) == 1:
        return FileContent([record[columns[0]].strip() for record in records], [], {})
    elif not any(key in columns for key in _CAPTION_KEYS):
        raise UnknownFormatError("a table without captions")
    return _parse_records(records)


def _load_json(text: str, repeated_keys: list[str]) -> Any:
    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated_keys.extend(key for key, count in counts.items() if count > 1)
        return tree

    try:
        return json.loads(text, object_pairs_hook=to_dict)
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) == 1 or any(not line.lstrip().startswith("{") for _, line in lines[:2]):
            raise UnknownFormatError(f"broken JSON at line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise UnknownFormatError("JSON nested too deeply") from error
    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line, object_pairs_hook=to_dict))
        except json.JSONDecodeError as error:
            raise UnknownFormatError(f"broken JSON at line {number}: {error.msg}") from error
    return records


class _PlainUnpickler(pickle.Unpickler):
    """Read lists, tuples, dicts, strings and numbers; refuse all other classes and functions."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _unpickle(path: Path, file: BinaryIO) -> Any:
    try:
        return _PlainUnpickler(file, encoding="utf-8").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UnknownFormatError(
            f"a pickle, of which only lists, tuples, dicts, strings and numbers are read: {error}; if you trust its "
            f'origin, convert it: python -c "import json, pickle; json.dump(pickle.load(open({path.name!r}, '
            f"'rb')), open({path.stem + '.json'!r}, 'w'))\""
        ) from error


def _parse_tree(tree: Any) -> FileContent:
    if isinstance(tree, dict):
        # the JSON of MSR-VTT, and of COCO
        tree = next((tree[key] for key in ("sentences", "annotations") if isinstance(tree.get(key), list)), tree)
    if isinstance(tree, dict) and tree and all(type(value) is int for value in tree.values()):
        return FileContent(list(map(str, tree)), [], {str(key): value for key, value in tree.items()})
    if isinstance(tree, dict):
        return _parse_records({"video_id": key, "caption": value} for key, value in tree.items())
    if isinstance(tree, (list, tuple)) and all(isinstance(item, str) for item in tree):
        return FileContent([item.strip() for item in tree], [], {})
    if isinstance(tree, (list, tuple)) and all(isinstance(item, dict) for item in tree):
        return _parse_records({str(key).lower(): value for key, value in item.items()} for item in tree)
    raise UnknownFormatError("JSON of no known structure")


def _parse_records(records: Iterable[dict[str, Any]]) -> FileContent:
    ids, pairs = [], []
    for record in records:
        key = next((key for key in _ID_KEYS if key in record), None)
        if key is None:
            raise UnknownFormatError("records without a video id")
        video_id = str(record[key]).strip()
        ids.append(video_id)
        pairs += [(video_id, caption) for caption in _captions_of(record)]
    if ids and not pairs:
        raise UnknownFormatError("records without captions")
    return FileContent(ids, pairs, {})


def _captions_of(record: dict[str, Any]) -> list[str]:
    """Return the captions of a record: a string, a list of strings or of lists of words, or a dict of these."""
    key = next((key for key in _CAPTION_KEYS if key in record), None)
    value = None if key is None else record[key]
    if isinstance(value, dict):
        return _captions_of({str(key).lower(): item for key, item in value.items()})
    if isinstance(value, str):
        return [value]
    if value is None:
        return [""] if key is not None else []
    if not isinstance(value, (list, tuple)):
        raise UnknownFormatError(f"a caption that is a {type(value).__name__}, not text")
    captions = [" ".join(map(str, item)) if isinstance(item, (list, tuple)) else item for item in value]
    wrong = [caption for caption in captions if not isinstance(caption, str | None)]
    if wrong:
        raise UnknownFormatError(f"a caption that is a {type(wrong[0]).__name__}, not text")
    return [caption or "" for caption in captions]
