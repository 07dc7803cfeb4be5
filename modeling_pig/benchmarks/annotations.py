"""Read the annotation files of benchmarks in all formats in which they circulate.

A file is a list of video ids, or captions of videos, or the number of one caption per video, or the file name of each
video. Its format is recognised by its content, never by its name: lines of ids, CSV (`,`, `;` or tabs), JSON in
several structures, JSONL, lines of an id and a caption or a file name, or a pickle of plain values.
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

from .video_files import VIDEO_EXTENSIONS


# Columns and keys that hold the id or the captions of a video, in lower case.
_ID_KEYS = ("video_id", "videoid", "clip_id", "clip_name", "video", "image_id")
_CAPTION_KEYS = ("caption", "encap", "text", "sentence", "description")
_NUMBER_KEYS = ("sen_id", "id")
_ACCEPTED_KEYS = f"ids are read from {', '.join(_ID_KEYS)}, captions from {', '.join(_CAPTION_KEYS)}"
# A line of `AllVideoDescriptions.txt`: an MSVD id and a caption.
_ID_AND_CAPTION = re.compile(r"([\w-]{11}_\d+_\d+)\s+(\S.*)")
# The second half of a line of `youtube_mapping.txt` of MSVD: the name of a video file, without its extension.
_FILE_NAME = re.compile(r"vid\d+")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # as which `surrogateescape` decodes a byte that is not UTF-8


class UnknownFormatError(ValueError):
    """A file is not an annotation file; the message gives the reason."""


class DamagedFileError(UnknownFormatError):
    """A file starts like JSON or a pickle, and cannot be read to its end; the message gives the reason."""


class DamagedFile(NamedTuple):
    """A file that cannot be read to its end: the reason, and the ids of the benchmark at its beginning."""

    reason: str
    ids: set[str]


@dataclass
class AnnotationFile:
    """An annotation file of a benchmark, or the records of one split in a file that groups them by split.

    Attributes:
        ids (`list[str]`): video ids in file order, without repetitions.
        captions (`list[tuple[str, str]]`): (id, caption) pairs in file order; empty for a list of ids.
        choices (`dict[str, int]`): number of the caption that is the query of a video; empty for all files except
            `jsfusion_val_caption_idx.pkl` of MSR-VTT 1k-A.
        file_names (`dict[str, str]`): name of the file of each video, without its extension; empty for all files
            except `youtube_mapping.txt` of MSVD.
        repeats (`set[int]`): positions in `captions` of the captions whose whole record repeats an earlier record.
        is_tokenized (`bool`): whether the captions are lists of words, joined by spaces.
        is_ordered (`bool`): whether the numbers of the captions of each video ascend, if the captions have numbers.
        path (`Path`): path of the file.
        group (`str`): key of the group in the file, such as `"train"`; empty for a whole file.
        repeated (`int`): number of repeated ids in a list.
    """

    ids: list[str]
    captions: list[tuple[str, str]] = field(default_factory=list)
    choices: dict[str, int] = field(default_factory=dict)
    file_names: dict[str, str] = field(default_factory=dict)
    repeats: set[int] = field(default_factory=set)
    is_tokenized: bool = False
    is_ordered: bool = True
    path: Path = Path()
    group: str = ""
    repeated: int = 0

    @property
    def name(self) -> str:
        """Name of the file, with the group if the file has several."""
        return f"{self.path.name} ({self.group})" if self.group else self.path.name

    @property
    def is_list(self) -> bool:
        """Whether the file is a list of ids and nothing else."""
        return not self.captions and not self.choices and not self.file_names

    @cached_property
    def captions_by_id(self) -> dict[str, list[str]]:
        """Captions of each video, in file order."""
        grouped: dict[str, list[str]] = {}
        for video_id, caption in self.captions:
            grouped.setdefault(video_id, []).append(caption)
        return grouped

    @property
    def split_in_name(self) -> str | None:
        """Split that the group or the file's name mentions; `None` if it mentions none or several."""
        return _split_in(self.group or self.path.stem)


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
        damaged (`dict[str, DamagedFile]`): files that hold ids of the benchmark and cannot be read to their end, by
            path relative to the folder.
        ignored (`dict[str, str]`): reason why each other file was ignored, by path relative to the folder.
        fingerprint (`str`): hash of the names and the content of `files`.

    Raises:
        ValueError: the folder does not exist, or an annotation file of the benchmark is invalid.
    """

    def __init__(self, folder: str | os.PathLike, title: str, id_pattern: str, example: str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise ValueError(
                f"`annotations` is {str(folder)!r}, which is no folder: give the folder of {title}'s annotations"
            )
        self.title, self.example = title, example
        self._id_pattern = re.compile(id_pattern)
        # An id in quotes, or after the length that a pickle stores before a string.
        self._stored_id = re.compile(rf"(?<=[\"'V\0-\x1f])(?:{id_pattern})(?![\w-])", re.ASCII)
        self._digests: list[str] = []
        self.files: list[AnnotationFile] = []
        self.damaged: dict[str, DamagedFile] = {}
        self.ignored: dict[str, str] = {}
        for path in _visible_files(self.folder):
            try:
                self.files += self.read(path)
            except UnknownFormatError as reason:
                if isinstance(reason, DamagedFileError) and (ids := self._first_ids(path)):
                    self.damaged[self.relative(path)] = DamagedFile(str(reason), ids)
                else:
                    self.ignored[self.relative(path)] = str(reason)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self._digests).encode()).hexdigest()[:16]

    @property
    def file_names(self) -> dict[str, str]:
        """Names of the video files that are not named by their id, without extensions, by id."""
        return {video_id: name for file in self.files for video_id, name in file.file_names.items()}

    def relative(self, path: Path) -> str:
        """Return a path relative to the folder, or unchanged if it lies elsewhere."""
        return str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)

    def read(self, path: Path) -> list[AnnotationFile]:
        """Read an annotation file; if it groups its records by split, return an `AnnotationFile` for each group.

        Raises:
            UnknownFormatError: the file is not an annotation file of this benchmark.
            ValueError: the file is an annotation file of this benchmark, and is invalid.
        """
        repeated_keys: list[str] = []
        try:
            with open(path, "rb") as file:
                start = file.read(4096)
                if _is_pickle(start):
                    file.seek(0)
                    text, groups = "", _parse_tree(_unpickle(path, file))
                elif b"\0" in start:
                    if any(self._id_in(start.decode(codec, "replace")) for codec in ("utf-16-le", "utf-16-be")):
                        raise ValueError(f"{path} is encoded as UTF-16; save the file as UTF-8")
                    raise UnknownFormatError("neither text in UTF-8 nor a pickle")
                else:
                    # A byte that is not UTF-8 is an error only if the file belongs to the benchmark.
                    text = (start + file.read()).decode("utf-8-sig", "surrogateescape")
                    groups = _parse_text(path, text, repeated_keys)
        except OSError as error:
            raise UnknownFormatError(f"cannot be read: {error.strerror}") from error
        for group, content in groups.items():
            content.path, content.group = path, group
            self._check_ids(content, text)
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
        return list(groups.values())

    def open(self, name: str | os.PathLike, split: str) -> AnnotationFile:
        """Read the list of a split from a file.

        Args:
            name (`str` or `os.PathLike`): path relative to the folder of the annotations or to the working directory;
                or the end of the path of one file in the folder, such as its name.
            split (`str`): the split; selects the group of a file that groups its records by split.

        Raises:
            ValueError: there is no such file, or several, or it is not an annotation file of this benchmark.
        """
        path = self._find(name)
        try:
            groups = self.read(path)
        except UnknownFormatError as reason:
            raise ValueError(f"`lists` names {str(path)!r}, which is no list of {self.title}: {reason}") from reason
        of_split = groups if len(groups) == 1 else [group for group in groups if group.split_in_name == split]
        if len(of_split) != 1:
            names = ", ".join(group.group for group in groups)
            raise ValueError(f"`lists` names {str(path)!r} for {split}, which holds {names}; name a list of one split")
        return of_split[0]

    def missing_error(self, what: str) -> ValueError:
        """Return the error that the folder lacks `what`, with the files that were read, damaged and ignored."""
        files = ", ".join(self.relative(file.path) for file in self.files) or "none"
        damaged = "".join(f" Damaged: {name} ({file.reason}); get it again." for name, file in self.damaged.items())
        ignored = "; ".join(f"{name} ({reason})" for name, reason in list(self.ignored.items())[:8])
        ignored += f"; and {len(self.ignored) - 8} more" if len(self.ignored) > 8 else ""
        return ValueError(
            f"{str(self.folder)!r} holds no {what}.{damaged} Files of {self.title} in it: {files}. Ignored: "
            f"{ignored or 'none'}"
        )

    def _find(self, name: str | os.PathLike) -> Path:
        given = Path(name).expanduser()
        if (inside := self.folder / given).is_file():
            return inside
        if given.is_file():
            return given
        length = len(given.parts)
        found = [path for path in _visible_files(self.folder) if length and path.parts[-length:] == given.parts]
        if not found:
            raise ValueError(
                f"`lists` names {str(name)!r}, which is no file, nor is it in {str(self.folder)!r} or its subfolders"
            )
        if len(found) > 1:
            names = ", ".join(map(repr, map(self.relative, found)))
            raise ValueError(f"`lists` names {str(name)!r}, which are several files; name one of {names}")
        return found[0]

    def _id_in(self, text: str) -> bool:
        return any(map(self._id_pattern.fullmatch, re.split(r"[^\w@.-]", text, flags=re.ASCII)))

    def _first_ids(self, path: Path) -> set[str]:
        """Return the ids of the benchmark in the first mebibyte of a file of JSON or a pickle."""
        with open(path, "rb") as file:
            return {match[0] for match in self._stored_id.finditer(file.read(1 << 20).decode("latin-1"))}

    def _check_ids(self, content: AnnotationFile, text: str) -> None:
        """Check the ids of a file, remove extensions of video files and repetitions from them."""
        if not content.ids:
            raise UnknownFormatError("holds no video ids")
        unique = {video_id: self._without_extension(video_id) for video_id in content.ids}
        invalid = [video_id for video_id, base in unique.items() if not self._id_pattern.fullmatch(base)]
        if invalid:
            problem = f"{_short(invalid[0])} is no id of {self.title}, such as {self.example!r}"
            if 2 * len(invalid) > len(unique):
                is_table = any(delimiter in invalid[0] for delimiter in ",;\t")
                raise UnknownFormatError(problem + f"; {_ACCEPTED_KEYS}" * is_table)
            raise ValueError(f"{_locate(content.path, text, invalid[0])}: {problem}; correct it")
        if content.is_list:
            content.repeated = len(content.ids) - len(unique)
        content.ids = list(dict.fromkeys(unique.values()))
        content.captions = [(unique[video_id], caption) for video_id, caption in content.captions]
        content.choices = {unique[video_id]: choice for video_id, choice in content.choices.items()}

    def _without_extension(self, video_id: str) -> str:
        base, extension = os.path.splitext(video_id)
        is_file = extension.lower() in VIDEO_EXTENSIONS and not self._id_pattern.fullmatch(video_id)
        return base if is_file else video_id


def clean_caption(caption: str) -> str:
    """Collapse white space in a caption, and replace lone surrogates, which UTF-8 cannot encode."""
    return " ".join(caption.encode("utf-8", "replace").decode().split())


def _split_in(name: str) -> str | None:
    """Return the split that a name mentions; `None` if it mentions none or several."""
    starts = {"train": "train", "val": "validation", "test": "test"}
    words = re.findall("[a-z]+", name.lower())
    found = {split for word in words for start, split in starts.items() if word.startswith(start)}
    return found.pop() if len(found) == 1 else None


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


def _parse_text(path: Path, text: str, repeated_keys: list[str]) -> dict[str, AnnotationFile]:
    """Parse a text file into its groups; append the keys that are repeated within a JSON object to `repeated_keys`."""
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
            return {"": _parse_table(path, text, delimiter, columns)}
    matches = [_ID_AND_CAPTION.fullmatch(line) for line in lines]
    if any(matches):
        # Prose may precede the first pair.
        start = next(number for number, match in enumerate(matches) if match)
        for line, match in zip(lines[start:], matches[start:], strict=True):
            if not match:
                raise ValueError(f"{_locate(path, text, line)}: {_short(line)} is not an id, a space and a caption")
        pairs = [(match[1], match[2]) for match in matches if match]
        ids = [video_id for video_id, _ in pairs]
        if all(_FILE_NAME.fullmatch(name) for _, name in pairs):
            return {"": AnnotationFile(ids, file_names=dict(pairs))}
        return {"": AnnotationFile(ids, pairs)}
    return {"": AnnotationFile(lines)}


def _parse_table(path: Path, text: str, delimiter: str, columns: list[str]) -> AnnotationFile:
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
        return AnnotationFile([record[columns[0]].strip() for record in records])
    elif not any(key in columns for key in _CAPTION_KEYS):
        raise UnknownFormatError(f"a table without captions: its columns are {', '.join(columns)}; {_ACCEPTED_KEYS}")
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
            raise DamagedFileError(f"broken JSON at line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise UnknownFormatError("JSON nested too deeply") from error
    records = []
    for number, line in lines:
        try:
            records.append(json.loads(line, object_pairs_hook=to_dict))
        except json.JSONDecodeError as error:
            raise DamagedFileError(f"broken JSON at line {number}: {error.msg}") from error
    return records


class _RefusedClassError(pickle.UnpicklingError):
    """A pickle holds another class or function than plain values."""


class _PlainUnpickler(pickle.Unpickler):
    """Read lists, tuples, dicts, strings and numbers; refuse all other classes and functions."""

    def find_class(self, module: str, name: str) -> Any:
        raise _RefusedClassError(f"it holds {module}.{name}")


def _unpickle(path: Path, file: BinaryIO) -> Any:
    try:
        return _PlainUnpickler(file, encoding="utf-8").load()
    except Exception as error:  # a damaged pickle can raise anything
        if not isinstance(error, _RefusedClassError):
            raise DamagedFileError(f"a broken pickle: {error}") from error
        raise UnknownFormatError(
            f"a pickle, of which only lists, tuples, dicts, strings and numbers are read: {error}; if you trust its "
            f'origin, convert it: python -c "import json, pickle; json.dump(pickle.load(open({path.name!r}, '
            f"'rb')), open({path.stem + '.json'!r}, 'w'))\""
        ) from error


def _parse_tree(tree: Any) -> dict[str, AnnotationFile]:
    """Parse JSON or a pickle into its groups: one per split if it groups its records by split, else one named `""`."""
    if isinstance(tree, dict):
        # the JSON of MSR-VTT, and of COCO
        tree = next((tree[key] for key in ("sentences", "annotations") if isinstance(tree.get(key), list)), tree)
    if isinstance(tree, dict) and tree and all(_split_in(str(key)) and isinstance(tree[key], list) for key in tree):
        groups = {str(key): _parse_values(records) for key, records in tree.items() if records}
        return groups or {"": AnnotationFile([])}
    return {"": _parse_values(tree)}


def _parse_values(tree: Any) -> AnnotationFile:
    if isinstance(tree, dict) and tree and all(type(value) is int for value in tree.values()):
        return AnnotationFile(list(map(str, tree)), choices={str(key): value for key, value in tree.items()})
    if isinstance(tree, dict):
        return _parse_records({"video_id": key, "caption": value} for key, value in tree.items())
    if isinstance(tree, (list, tuple)) and all(isinstance(item, str) for item in tree):
        return AnnotationFile([item.strip() for item in tree])
    if isinstance(tree, (list, tuple)) and all(isinstance(item, dict) for item in tree):
        return _parse_records({str(key).lower(): value for key, value in item.items()} for item in tree)
    raise UnknownFormatError("JSON of no known structure")


def _parse_records(records: Iterable[dict[str, Any]]) -> AnnotationFile:
    parsed = AnnotationFile([])
    known: set[int] = set()  # hashes of whole records
    last_numbers: dict[str, int] = {}  # by video id
    keys = ""
    for record in records:
        keys = ", ".join(record)
        id_key = next((key for key in _ID_KEYS if key in record), None)
        if id_key is None:
            raise UnknownFormatError(f"records without a video id: their keys are {keys}; {_ACCEPTED_KEYS}")
        video_id = str(record[id_key]).strip()
        parsed.ids.append(video_id)
        start = len(parsed.captions)
        captions, is_tokenized = _captions_of(record)
        parsed.captions += [(video_id, caption) for caption in captions]
        parsed.is_tokenized |= is_tokenized
        if (whole := hash(repr(record))) in known:
            parsed.repeats.update(range(start, len(parsed.captions)))
        known.add(whole)
        number = next((record[key] for key in _NUMBER_KEYS if isinstance(record.get(key), int)), 0)
        parsed.is_ordered &= last_numbers.get(video_id, number) <= number
        last_numbers[video_id] = number
    if parsed.ids and not parsed.captions:
        raise UnknownFormatError(f"records without captions: their keys are {keys}; {_ACCEPTED_KEYS}")
    return parsed


def _captions_of(record: dict[str, Any]) -> tuple[list[str], bool]:
    """Return the captions of a record, and whether they are lists of words.

    The captions are a string, a list of strings or of lists of words, or a dict of these.
    """
    key = next((key for key in _CAPTION_KEYS if key in record), None)
    value = None if key is None else record[key]
    if isinstance(value, dict):
        return _captions_of({str(key).lower(): item for key, item in value.items()})
    if isinstance(value, str):
        return [value], False
    if value is None:
        return ([""] if key is not None else []), False
    if not isinstance(value, (list, tuple)):
        raise UnknownFormatError(f"a caption that is a {type(value).__name__}, not text")
    is_tokenized = any(isinstance(item, (list, tuple)) for item in value)
    captions = [" ".join(map(str, item)) if isinstance(item, (list, tuple)) else item for item in value]
    wrong = [caption for caption in captions if not isinstance(caption, str | None)]
    if wrong:
        raise UnknownFormatError(f"a caption that is a {type(wrong[0]).__name__}, not text")
    return [caption or "" for caption in captions], is_tokenized
