"""Base builders: the table of videos with captions, and the benchmarks with annotation files."""

import csv
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..files import write_text
from .annotations import AnnotationFile, Annotations, clean_caption
from .video_files import VideoFiles, find_unreadable


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
NO_FILE = "no file"  # reason in the report for a missing video


@dataclass
class TableConfig(datasets.BuilderConfig):
    """Configuration of a table of videos with captions.

    Args:
        annotations (`str`): folder of the annotation files, in any format in which they circulate.
        videos (`str`): folder of the video files.
        splits (`tuple[str, ...]`, *optional*): splits to load; by default all.
        strict (`bool`, *optional*, defaults to `False`): whether a video that is missing or does not open is an error.
    """

    annotations: str = ""
    videos: str = ""
    splits: tuple[str, ...] = SPLITS
    strict: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.splits = (self.splits,) if isinstance(self.splits, str) else self.splits
        if not isinstance(self.splits, Iterable) or not all(isinstance(split, str) for split in self.splits):
            raise ValueError(f"`splits` is {self.splits!r}; it is a list of {', '.join(SPLITS)}")
        self.splits = tuple(dict.fromkeys(self.splits))
        _check_splits("splits", self.splits)
        if not self.splits:
            raise ValueError(f"`splits` is empty; choose from {', '.join(SPLITS)}")


@dataclass
class BenchmarkConfig(TableConfig):
    """Configuration of a benchmark: the arguments of `TableConfig`, and `lists`.

    Args:
        lists (`dict[str, str]`, *optional*): file of ids for a split, which replaces the list that would be found,
            such as `{"test": "my_list.txt"}`. A path relative to the folder of the annotations or to the working
            directory; or the name of a file in a subfolder of the annotations, if only one file has the name.
    """

    lists: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lists(self.lists)
        _check_splits("lists", self.lists)


@dataclass
class SplitIds:
    """Video ids of a split, a description of their source, the number of repeated ids in it, and a remark."""

    ids: list[str]
    source: str
    repeated: int = 0
    note: str = ""


class TableBuilder(datasets.GeneratorBasedBuilder):
    """
    Builder of a table of videos with captions: one row per video; see [`load_benchmark`].

    A subclass sets `video_files`, which finds the file of a video by its id, and implements `_split_generators`.
    """

    VERSION = datasets.Version("1.0.0")
    TITLE: str
    video_files: Any

    def __init__(self, cache_dir: str | None, inputs: Iterable[str], **kwargs: Any) -> None:
        self._report_folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser()
        _refuse_unwritable(self._report_folder)
        super().__init__(cache_dir, hash=hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16], **kwargs)

    def segment_of(self, video_id: str, path: str) -> tuple[float | None, float | None]:
        """Return the segment of a file to read, as start and end in seconds; (None, None): the whole file."""
        return None, None

    def _info(self) -> datasets.DatasetInfo:
        features = {
            "video_id": datasets.Value("string"),
            "video": datasets.Value("string"),
            "captions": [datasets.Value("string")],
            "start": datasets.Value("float64"),
            "end": datasets.Value("float64"),
        }
        return datasets.DatasetInfo(features=datasets.Features(features))

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Build the table unless it is cached; warn about differences from the published benchmark."""
        self._is_cached = True  # `_split_generators` resets it if the table is built now
        super().download_and_prepare(*args, **kwargs)
        if self._is_cached:  # The report may have been deleted, or list other videos.
            missing = {
                split: [row["video_id"] for row in rows.select_columns(["video_id", "video"]) if not row["video"]]
                for split, rows in self.as_dataset().items()
            }
            found = {video_id: self.video_files.find(video_id) for ids in missing.values() for video_id in ids}
            problems = find_unreadable([path for path in found.values() if path], progress=False)
            self._write_report(
                [
                    (split, video_id, problems.get(path, "did not open") if (path := found[video_id]) else NO_FILE)
                    for split, ids in missing.items()
                    for video_id in ids
                ]
            )
        _, _, notes = self.info.description.partition("\n")
        if notes:
            logger.warning(f"{self.TITLE}: {notes.replace(chr(10), ' ')}")

    def _generate_examples(
        self, captions: dict[str, list[str]], paths: dict[str, str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (video_id, of_video) in enumerate(captions.items()):
            path = paths.get(video_id, "")
            start, end = self.segment_of(video_id, path)
            yield number, {"video_id": video_id, "video": path, "captions": of_video, "start": start, "end": end}

    def _find_videos(self, splits: dict[str, list[str]], notes: list[str]) -> dict[str, str]:
        """Return the paths of the videos that open, by id; write the report of the other videos."""
        found = {video_id: self.video_files.find(video_id) for ids in splits.values() for video_id in ids}
        shows_progress = not datasets.are_progress_bars_disabled()
        problems = find_unreadable([path for path in found.values() if path], progress=shows_progress)
        paths = {video_id: path for video_id, path in found.items() if path and path not in problems}
        rows = [
            (split, video_id, problems.get(found[video_id] or "", NO_FILE))
            for split, ids in splits.items()
            for video_id in ids
            if video_id not in paths
        ]
        report = self._write_report(rows)
        for split, ids in splits.items():
            num_found = sum(video_id in paths for video_id in ids)
            if num_found < len(ids):
                counted = f"{num_found:,} of {len(ids):,} videos of {split} were found and open"
                notes.append(f"{counted}; the others are listed in {report}.")
        if rows and self.config.strict:
            first = ", ".join(f"{video_id} ({reason})" for _, video_id, reason in rows[:3])
            raise ValueError(
                f"{self.TITLE}: {len(rows):,} videos are missing or do not open: {first}{', ...' * (len(rows) > 3)}; "
                f"all are listed in {report}; add them to {self.config.videos!r}, or load with strict=False"
            )
        return paths

    def _write_report(self, rows: list[tuple[str, str, str]]) -> Path:
        """Write the report of missing and unreadable videos, with rows of (split, id, reason); return its path.

        Rows of splits that are not loaded now are kept.
        """
        report = self._report_folder / f"{self.config.name}-videos.csv"
        kept: list[list[str]] = []
        if report.exists():
            with open(report, encoding="utf-8", newline="") as file:
                kept = [row for row in csv.reader(file) if row[0] in SPLITS and row[0] not in self.config.splits]
        table = io.StringIO(newline="")
        csv.writer(table).writerows([("split", "video_id", "reason"), *kept, *rows])
        write_text(report, table.getvalue())
        return report


class AnnotatedBenchmark(TableBuilder):
    """
    Builder of a benchmark from annotation files. Each row is a video; see [`load_benchmark`].

    A subclass states the facts of its benchmark. An empty split, or a video without a caption, is an error. Repairs
    (repeated ids, empty captions) and differences from the published counts are reported in a warning and in
    `info.description`.

    Raises:
        ValueError: an annotation file is missing, of another benchmark, or damaged and needed; two files contradict
            each other; or a video would be in two splits.
    """

    BUILDER_CONFIG_CLASS = BenchmarkConfig

    ID_PATTERN: ClassVar[str]
    EXAMPLE: ClassVar[str]  # of a video id
    # Published number of videos and of captions (None: not compared) of each split.
    EXPECTED: ClassVar[dict[str, tuple[int, int | None]]]
    # `hash_ids` of the published test ids, and their name; only for benchmarks of which other test sets circulate.
    KNOWN_TEST: ClassVar[tuple[str, str] | None] = None
    # Splits that take their ids from files of captions if no list is found.
    SPLITS_FROM_CAPTIONS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, cache_dir: str | None = None, *, annotations: str = "", videos: str = "", **kwargs: Any
    ) -> None:
        for name, folder in {"annotations": annotations, "videos": videos}.items():
            if not folder:
                raise ValueError(f"{self.TITLE} needs `{name}`: the folder of its {name.removesuffix('s')} files")
        self.annotations = Annotations(annotations, self.TITLE, self.ID_PATTERN, self.EXAMPLE)
        self.video_files = VideoFiles(videos, self.annotations.file_names)
        lists = kwargs.get("lists", {})
        _check_lists(lists)  # The lists are read before the config is created.
        self.lists = {split: self.annotations.open(lists[split], split) for split in SPLITS if split in lists}
        # The table holds absolute paths, so that its hash includes the folder.
        inputs = (self.annotations.fingerprint, self.video_files.fingerprint, self.video_files.folder)
        super().__init__(cache_dir, inputs, annotations=os.fspath(annotations), videos=os.fspath(videos), **kwargs)

    # Methods for subclasses to override

    def protocol(self) -> str:
        """Describe the training videos and the queries in one or two sentences."""
        raise NotImplementedError

    def expected(self, split: str) -> tuple[int, int | None]:
        """Return the published number of videos and of captions (`None`: not compared) of a split."""
        return self.EXPECTED[split]

    def ids_of(self, split: str) -> SplitIds:
        """Return the video ids of a split."""
        return self.chosen_ids(split) or self.agreed_ids(split, self.candidates(split))

    def candidates(self, split: str) -> list[AnnotationFile]:
        """Return the files that hold the ids of a split: by default the files whose names mention the split."""
        named = [file for file in self.annotations.files if file.split_in_name == split]
        lists = [file for file in named if file.is_list]
        return lists or [file for file in named if file.captions and split in self.SPLITS_FROM_CAPTIONS]

    def is_published(self, split: str, ids: list[str]) -> bool:
        """Return whether ids are the published ids of a split or, if these are not known, as many."""
        if split == "test" and self.KNOWN_TEST:
            return hash_ids(ids) == self.KNOWN_TEST[0]
        return len(ids) == self.expected(split)[0]

    def captions_of(self, split: str, ids: list[str]) -> dict[str, list[str]]:
        """Return the captions of the videos of a split, by id."""
        return self.agreed_captions(ids, [file for file in self.annotations.files if file.captions])

    def merge_captions(self, captions: list[str]) -> list[str]:
        """Return the queries that the captions of one video make."""
        return captions

    def video_key(self, video_id: str) -> str:
        """Return a key that is equal for two ids of the same video."""
        return video_id

    # Ids and captions

    def chosen_ids(self, split: str) -> SplitIds | None:
        """Return the ids of the file that `lists` names for a split; `None` if it names none."""
        if split not in self.lists:
            return None
        file = self.lists[split]
        return SplitIds(file.ids, f"{file.name} (chosen by `lists`)", file.repeated)

    def agreed_ids(self, split: str, files: list[AnnotationFile]) -> SplitIds:
        """Return the ids of the first of `files`.

        If the files hold different ids, read only the files with the published ids. Raise a `ValueError` if no file
        has the published ids, or if these files differ too.
        """
        if not files:
            raise self.annotations.missing_error(f"list of the {split} videos; put it there, or name it in `lists`")
        all_files = files
        if len({frozenset(file.ids) for file in files}) > 1:
            files = [file for file in files if self.is_published(split, file.ids)] or files
        if len({frozenset(file.ids) for file in files}) > 1:
            names = [self.annotations.relative(file.path) for file in files]
            counted = " and ".join(f"{file.path} ({len(file.ids):,})" for file in files)
            choices = " or ".join(f"lists={{{split!r}: {name!r}}}" for name in names)
            raise ValueError(
                f"{counted} hold ids of the {split} split, but not the same; choose one by `lists`: {choices}"
            )
        first = files[0]
        others = ", ".join(file.name for file in all_files if set(file.ids) != set(first.ids))
        note = f"{split}: {first.name} is read, which is the published list, not {others}." if others else ""
        return SplitIds(first.ids, first.name, first.repeated, note)

    def agreed_captions(self, ids: list[str], files: list[AnnotationFile]) -> dict[str, list[str]]:
        """Return the captions of videos; raise a `ValueError` if two of `files` hold different ones of a video.

        Captions that are lists of words have lost the punctuation; they are read only for videos of which no other
        file holds captions.
        """
        found: dict[str, tuple[list[str], AnnotationFile]] = {}
        for file in sorted(files, key=lambda file: file.is_tokenized):
            for video_id in ids:
                captions = file.captions_by_id.get(video_id)
                if captions is None:
                    continue
                known, other = found.setdefault(video_id, (captions, file))
                if file.is_tokenized and not other.is_tokenized:
                    continue
                if known is not captions and sorted(map(clean_caption, known)) != sorted(map(clean_caption, captions)):
                    raise ValueError(
                        f"{other.path} and {file.path} both hold captions of {video_id!r}, but not the same; keep one "
                        "of the two in the folder"
                    )
        self._caption_files |= {file.name: None for _, file in found.values()}
        return {video_id: captions for video_id, (captions, _) in found.items()}

    def refuse_shared(self, first: str, ids: list[str], second: str, other_ids: list[str]) -> None:
        """Raise a `ValueError` if a video is in both sets of ids; `first` and `second` name the sets in messages."""
        keys = {self.video_key(video_id) for video_id in other_ids}
        shared = [video_id for video_id in ids if self.video_key(video_id) in keys]
        if shared:
            raise ValueError(
                f"{self.TITLE}: {len(shared):,} videos are both in {first} and in {second}, such as {shared[0]!r}; "
                "no video of one split may be in another: remove them from one list, or choose other lists by "
                f"`lists`{self.leak_hint(ids, other_ids)}"
            )

    def leak_hint(self, ids: list[str], other_ids: list[str]) -> str:
        """Return a likely cause of shared videos, as the end of a sentence."""
        return ""

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        self._is_cached = False
        self._caption_files: dict[str, None] = {}
        splits = {split: self.ids_of(split) for split in self.config.splits}
        for split, other in combinations(splits, 2):
            first, second = (f"{name} ({splits[name].source})" for name in (split, other))
            self.refuse_shared(first, splits[split].ids, second, splits[other].ids)
        notes = [found.note for found in splits.values() if found.note]
        captions = {split: self._clean_captions(split, found, notes) for split, found in splits.items()}
        for split, found in splits.items():
            self._compare(split, found.ids, sum(map(len, captions[split].values())), notes)
        paths = self._find_videos({split: found.ids for split, found in splits.items()}, notes)
        counts = [
            f"{split} {len(found.ids):,} videos with {sum(map(len, captions[split].values())):,} captions (ids: "
            f"{found.source}{self._known_as(split, found.ids)})"
            for split, found in splits.items()
        ]
        read = f"Read: {', '.join(counts)}; captions: {', '.join(self._caption_files)}."
        self.info.description = "\n".join([f"{self.TITLE}: {self.protocol()} {read}", *notes])
        return [
            datasets.SplitGenerator(split, gen_kwargs={"captions": captions[split], "paths": paths})
            for split in self.config.splits
        ]

    def _clean_captions(self, split: str, found: SplitIds, notes: list[str]) -> dict[str, list[str]]:
        if found.repeated:
            notes.append(f"{split}: {found.repeated:,} repeated ids of {found.source} were kept once.")
        raw = self.captions_of(split, found.ids)
        captions = {
            video_id: [caption for caption in map(clean_caption, raw.get(video_id, ())) if caption]
            for video_id in found.ids
        }
        if silent := [video_id for video_id, of_video in captions.items() if not of_video]:
            raise self.annotations.missing_error(
                f"caption of {len(silent):,} of the {len(captions):,} {split} videos, such as {silent[0]!r}; add "
                "them, or choose a list without these videos by `lists`"
            )
        if empty := sum(map(len, raw.values())) - sum(map(len, captions.values())):
            notes.append(f"{split}: {empty:,} empty captions were left out.")
        return {video_id: self.merge_captions(of_video) for video_id, of_video in captions.items()}

    def _compare(self, split: str, ids: list[str], num_captions: int, notes: list[str]) -> None:
        """Append differences from the published counts to `notes`."""
        videos, captions = self.expected(split)
        if len(ids) != videos:
            notes.append(f"{split}: {len(ids):,} videos, while {videos:,} are published.")
        elif captions is not None and num_captions != captions:
            notes.append(f"{split}: {num_captions:,} captions, while {captions:,} are published.")
        if split == "test" and self.KNOWN_TEST and len(ids) == videos and not self._known_as(split, ids):
            name = self.KNOWN_TEST[1]
            notes.append(f"test: these {len(ids):,} ids are not those of {name}: do not compare with its figures.")

    def _known_as(self, split: str, ids: list[str]) -> str:
        if split == "test" and self.KNOWN_TEST and hash_ids(ids) == self.KNOWN_TEST[0]:
            return f", which are those of {self.KNOWN_TEST[1]}"
        return ""


def _check_splits(option: str, names: Iterable[str]) -> None:
    """Raise a `ValueError` if the value of an option names something else than splits."""
    if wrong := sorted(set(names) - set(SPLITS)):
        raise ValueError(f"`{option}` names {wrong[0]!r}; the splits are {', '.join(SPLITS)}")


def _check_lists(lists: Any) -> None:
    if not isinstance(lists, dict) or not all(isinstance(path, str | os.PathLike) for path in lists.values()):
        raise ValueError(
            f"`lists` is {lists!r}; it names the file of a split, for example lists={{'test': 'test_list.txt'}}"
        )


def hash_ids(ids: list[str]) -> str:
    """Return the SHA-256 of the sorted ids, one per line."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _refuse_unwritable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to {str(folder)!r} ({error.strerror}); give a folder for the table as `cache_dir`"
        ) from error
