"""Your own videos with captions: a table beside a folder of videos, the VideoFolder layout, or a data set."""

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError

from ..files import hash_file, replace_file
from ..tables import TABLE_SUFFIXES, Row, read_rows
from . import benchmark_title
from .builder import SPLITS, TableBuilder, TableConfig
from .caption_tables import CaptionedVideo, Columns, join_captions, split_named
from .video_files import VideoFiles


HUB_PREFIX = "hf://"
_METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass
class VideoFolderConfig(TableConfig):
    """Configuration of one's own videos: the arguments of `TableConfig`, and these.

    `annotations` is a table (CSV, JSON, JSONL, Parquet) with a row per caption or per video, or a data set: a folder
    that `datasets` saved, or `hf://org/name`. By default the folder of the videos holds it: files `metadata.csv`,
    `metadata.jsonl` or `metadata.parquet` with paths relative to their own folder. `videos` is the folder to which
    the paths are relative, or a data set with a column of videos.

    Args:
        title (`str`): name of the data, in records and on the model card; by default that of the folder or data set.
        path_column (`str`, *optional*): column of the paths, by default `file_name`, `video`, `path`, `video_path` or
            `file`.
        caption_column (`str`, *optional*): column of a caption or of a list of captions, by default `caption`,
            `captions`, `text` or `sentence`.
        group_column (`str`, *optional*): column whose values name the recording that a video comes from; videos of one
            recording stay in one split. By default `group`, if there is one.
        validation, test (`float` or `int`): share (below 1) or number of the videos that are drawn for the split if
            neither a column `split` nor folders with the names of splits say more; 0: no such split.
        seed (`int`): seed of this draw.
    """

    name: str = "videofolder"
    title: str = ""
    path_column: str | None = None
    caption_column: str | None = None
    group_column: str | None = None
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("validation", "test"):
            size = getattr(self, option)
            if isinstance(size, bool) or not isinstance(size, int | float) or size < 0 or (size > 1 and size % 1):
                raise ValueError(f"`{option}` is {size!r}; it is a share below 1, or a number of videos")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"`seed` is {self.seed!r}; it is a whole number")


class VideoFolder(TableBuilder):
    """
    Builder of one's own videos with captions. Each row is a video, or a segment of one; see [`load_benchmark`].

    Raises:
        ValueError: the table or the videos are missing, a value is invalid, or a video is in two splits: under one
            path, as copies of one file, or as parts of one recording.
    """

    BUILDER_CONFIG_CLASS = VideoFolderConfig

    def __init__(
        self, cache_dir: str | None = None, *, annotations: str = "", videos: str = "", **kwargs: Any
    ) -> None:
        self.TITLE = benchmark_title({"benchmark": "videofolder", "videos": videos, "options": kwargs})
        self._source = annotations or videos
        self._data = _load_data(self._source)
        self._tables = [] if self._data is not None else _find_tables(annotations, videos)
        self._written = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / "videos"
        self._files = None if _is_data(videos) else VideoFiles(videos)
        self._paths: dict[str, str] = {}  # of videos that a data set holds, by the path that it gives them
        inputs = [videos, annotations] if self._files is None else [self._files.fingerprint, self._files.folder]
        if self._data is None:
            inputs += [f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in self._tables]
        else:
            inputs += [f"{split} {rows._fingerprint}" for split, rows in self._data.items()]
        self.video_files = self
        super().__init__(cache_dir, inputs, annotations=annotations, videos=videos, **kwargs)

    def find(self, video_id: str) -> str | None:
        """Return the absolute path of the file of a video; `None` if there is none."""
        path = video_id.rpartition("#t=")[0] or video_id
        if path in self._paths or self._files is None:
            return self._paths.get(path)
        if os.path.isabs(path):
            return path if os.path.exists(path) else None
        return self._files.find(path)

    def segment_of(self, video_id: str, path: str) -> tuple[float | None, float | None]:
        return self._segments[video_id]

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        self._is_cached = False
        columns = Columns(self.config.path_column, self.config.caption_column, self.config.group_column)
        videos = self._read(columns)
        if not videos:
            raise ValueError(f"{self.TITLE}: {self._source!r} holds no rows; expected a row per caption or per video")
        if silent := [video for video in videos if not video.captions]:
            raise ValueError(
                f"{self.TITLE}: {len(silent):,} videos have no caption, such as {silent[0].video_id!r} "
                f"({silent[0].place}); add one, or remove these rows"
            )
        self._segments = {video.video_id: (video.start, video.end) for video in videos}
        notes: list[str] = []
        copies = self._find_copies(videos)
        how = self._assign_splits(videos, copies)
        self._refuse_shared(videos, copies)
        captions = {
            split: {v.video_id: list(dict.fromkeys(v.captions)) for v in videos if v.split == split}
            for split in self.config.splits
        }
        if missing := [split for split in self.config.splits if not captions[split]]:
            if set(self.config.splits) != set(SPLITS) or len(missing) == len(SPLITS):
                raise ValueError(f"{self.TITLE} has no videos of the split {missing[0]}; {how}")
            captions = {split: of_split for split, of_split in captions.items() if of_split}
        if num_empty := sum(video.num_empty for video in videos):
            notes.append(f"{num_empty:,} empty captions were left out.")
        if num_repeated := sum(len(video.captions) - len(set(video.captions)) for video in videos):
            notes.append(f"{num_repeated:,} captions that repeat another one of their video were left out.")
        paths = self._find_videos({split: list(of_split) for split, of_split in captions.items()}, notes)
        if not paths:
            raise ValueError(
                f"{self.TITLE}: none of {len(videos):,} videos was found and opens, such as {videos[0].path!r} "
                f"({videos[0].place}); give the folder to which the paths are relative as `videos`"
            )
        counts = ", ".join(
            f"{split} {len(of_split):,} videos with {sum(map(len, of_split.values())):,} captions"
            for split, of_split in captions.items()
        )
        read = ", ".join(path.name for path in self._tables) or self._source.removeprefix(HUB_PREFIX)
        protocol = "every caption of a test video is a query."
        self.info.description = "\n".join([f"{self.TITLE}: {protocol} Read: {counts} ({read}); {how}", *notes])
        return [
            datasets.SplitGenerator(split, gen_kwargs={"captions": of_split, "paths": paths})
            for split, of_split in captions.items()
        ]

    # Rows

    def _read(self, columns: Columns) -> list[CaptionedVideo]:
        if self._data is not None:
            return join_captions(self._rows_of_data(columns), columns, self._source)
        rows = (row for table in self._tables for row in self._rows_of_table(table, columns))
        return join_captions(rows, columns, ", ".join(map(str, self._tables)))

    def _rows_of_table(self, table: Path, columns: Columns) -> Iterator[Row]:
        """Yield the rows of a table, with paths relative to the folder of the videos."""
        column = columns.path or "file_name"
        folder = ""
        if table.name in _METADATA_FILES and self._files and table.is_relative_to(self._files.folder):
            folder = table.parent.relative_to(self._files.folder).as_posix()
        for row in read_rows(table):
            path = row.values.get(column)
            values = dict(row.values)
            if folder not in ("", ".") and isinstance(path, str):
                values[column] = f"{folder}/{path}"
            yield Row(row.place, values)

    def _rows_of_data(self, columns: Columns) -> Iterator[Row]:
        """Yield the rows of a data set; videos that it holds as bytes are written to the cache."""
        assert self._data is not None
        has_splits = len(self._data) > 1
        for name, rows in self._data.items():
            of_videos = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Video)]
            if columns.path:
                of_videos = [column for column in of_videos if column == columns.path]
            if len(of_videos) > 1 or (not of_videos and self._files is None):
                found = " and ".join(of_videos) or "none"
                raise ValueError(
                    f"{self._source} must have one column of videos, and has {found}; its columns are "
                    f"{', '.join(rows.column_names)}: choose one by the option path_column, or give the folder of the "
                    "videos as `videos`"
                )
            for column in of_videos:
                rows = rows.cast_column(column, datasets.Video(decode=False))
            if has_splits and split_named(name) is None:
                raise ValueError(f"{self._source} has the split {name!r}; expected train, validation and test")
            for number, values in enumerate(rows):
                if of_videos:
                    path = self._store(values[of_videos[0]] or {}, f"{name}/{number:06d}")
                    kept = {key: value for key, value in values.items() if key not in of_videos}
                    values = {**kept, (columns.path or "file_name"): path}
                if has_splits:
                    values = {**values, "split": name}
                yield Row(f"{self._source}, {name}, row {number + 1}", values)

    def _store(self, video: dict[str, Any], name: str) -> str:
        """Return the name of a video of a data set; write its bytes to the cache, or take its own path."""
        content, path = video.get("bytes"), video.get("path") or ""
        if content is None:
            if path and os.path.isabs(path) and os.path.exists(path):
                self._paths[name] = path
            return name
        digest = hashlib.sha256(content).hexdigest()[:32]
        name = f"{name}{os.path.splitext(path)[1].lower()}"
        file = self._written / f"{digest}{os.path.splitext(path)[1].lower()}"
        if not file.exists() or file.stat().st_size != len(content):
            self._written.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as partial:
                partial.write_bytes(content)
        self._paths[name] = str(file.absolute())
        return name

    # Splits

    def _find_copies(self, videos: Sequence[CaptionedVideo]) -> dict[str, str]:
        """Return the hash of each file that has the size of another one, by path in the table."""
        sizes = {}
        for path in dict.fromkeys(video.path for video in videos):
            file = self.find(path)
            if file is not None and os.path.isfile(file):
                sizes[path] = (os.path.getsize(file), file)
        counts = Counter(size for size, _ in sizes.values())
        hashes = {path: hash_file(file) for path, (size, file) in sizes.items() if counts[size] > 1}
        repeated = Counter(hashes.values())
        return {path: digest for path, digest in hashes.items() if repeated[digest] > 1}

    def _assign_splits(self, videos: Sequence[CaptionedVideo], copies: dict[str, str]) -> str:
        """Set the split of each video, and return how it was found."""
        how = "the table gives the splits."
        if not any(video.split for video in videos):
            for video in videos:
                named = (split_named(part) for part in Path(video.path).parent.parts)
                video.split = next(filter(None, named), None)
            how = "the names of the folders give the splits."
        without = next((video for video in videos if video.split is None), None)
        if without is None:
            return how
        if given := next((video for video in videos if video.split), None):
            raise ValueError(
                f"{self.TITLE}: {without.video_id!r} ({without.place}) has no split, and {given.video_id!r} has "
                f"{given.split}; give every row a split, or none"
            )
        self._draw_splits(videos, copies)
        return f"the splits were drawn by video with seed {self.config.seed}."

    def _draw_splits(self, videos: Sequence[CaptionedVideo], copies: dict[str, str]) -> None:
        """Draw the splits: segments of a file, copies of it and videos of a recording stay together."""
        parts = _connected([_keys(video, copies) for video in videos])
        members: dict[int, list[CaptionedVideo]] = {}
        for video, number in zip(videos, parts, strict=True):
            members.setdefault(number, []).append(video)
        order = sorted(members.values(), key=lambda part: min(video.video_id for video in part))
        random.Random(self.config.seed).shuffle(order)
        wanted = {}
        for split in ("test", "validation"):
            size = getattr(self.config, split)
            wanted[split] = int(size) if size >= 1 else max(1, round(size * len(videos))) if size else 0
        if sum(wanted.values()) >= len(videos):
            raise ValueError(
                f"{self.TITLE}: {wanted['validation']} videos for validation and {wanted['test']} for test leave none "
                f"of {len(videos)} for training; give smaller `validation` and `test`"
            )
        for split, size in wanted.items():
            taken = 0
            while taken < size:
                # A recording that is larger than the rest of the split stays in the training split.
                part = next((part for part in order if len(part) <= size - taken), None)
                if part is None:
                    break
                order.remove(part)
                taken += len(part)
                for video in part:
                    video.split = split
        for part in order:
            for video in part:
                video.split = "train"

    def _refuse_shared(self, videos: Sequence[CaptionedVideo], copies: dict[str, str]) -> None:
        """Raise a `ValueError` if two splits hold one file, copies of it, or parts of one recording."""
        seen: dict[str, CaptionedVideo] = {}
        names = {"path": "are one file", "copy": "are copies of one file", "group": "come from one recording"}
        for video in videos:
            for key in _keys(video, copies):
                other = seen.setdefault(key, video)
                if other.split != video.split:
                    raise ValueError(
                        f"{self.TITLE}: {other.video_id!r} ({other.split}, {other.place}) and {video.video_id!r} "
                        f"({video.split}, {video.place}) {names[key.partition(' ')[0]]}; no video of one split may be "
                        "in another: remove one of them, or move both to one split"
                    )


def _keys(video: CaptionedVideo, copies: dict[str, str]) -> list[str]:
    """Return what a video may share with another one: its path, the hash of its file, its recording."""
    keys = [f"path {video.path}"]
    if video.path in copies:
        keys.append(f"copy {copies[video.path]}")
    if video.group is not None:
        keys.append(f"group {video.group}")
    return keys


def _connected(keys: Sequence[Sequence[str]]) -> list[int]:
    """Return a number for each item; items that share a key, directly or through others, have the same number."""
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    first: dict[str, int] = {}
    for item, of_item in enumerate(keys):
        for key in of_item:
            parent[root(item)] = root(first.setdefault(key, item))
    return [root(item) for item in range(len(keys))]


def _is_data(source: str) -> bool:
    """Return whether a source is a data set: on the Hub, or saved in a folder by `datasets`."""
    if source.startswith(HUB_PREFIX):
        return True
    folder = Path(source).expanduser()
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")) or any(
        folder.glob("data/*.parquet")
    )


def _load_data(source: str) -> datasets.DatasetDict | None:
    """Load a data set; return `None` if the source is none."""
    if not _is_data(source):
        return None
    name = source.removeprefix(HUB_PREFIX).removeprefix("datasets/")
    try:
        if source.startswith(HUB_PREFIX) or any(Path(source).expanduser().glob("data/*.parquet")):
            loaded = datasets.load_dataset(os.path.expanduser(name))
        else:
            loaded = datasets.load_from_disk(os.path.expanduser(source))
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"the data set {source} cannot be loaded: {str(error).splitlines()[0]}") from error
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded)


def _find_tables(annotations: str, videos: str) -> list[Path]:
    """Return the table that `annotations` names, or the metadata files in the folder of the videos."""
    if annotations:
        path = Path(annotations).expanduser()
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise ValueError(f"`annotations` is {annotations!r}, which does not exist: give a table of captions")
    else:
        path = Path(os.path.abspath(os.path.expanduser(videos)))
        if not path.is_dir():
            raise ValueError(f"there is no folder {videos!r}; give the folder that holds the videos")
    found = sorted(file for file in path.rglob("metadata.*") if file.name in _METADATA_FILES)
    if not annotations and not found:
        raise ValueError(
            f"{videos!r} has no {' or '.join(_METADATA_FILES)}: give the table of captions as `annotations` "
            f"({', '.join(TABLE_SUFFIXES)})"
        )
    if annotations and not found:
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise ValueError(f"`annotations` is the folder {annotations!r} with the tables {names}: name one file")
    for first, second in combinations(found, 2):
        if first.parent == second.parent:
            raise ValueError(f"{first} and {second} are two tables of one folder: remove one")
    return found


__all__ = ["VideoFolder", "VideoFolderConfig"]
