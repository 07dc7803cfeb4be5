"""DiDeMo: the first 30 seconds of Flickr videos; all descriptions of a video are joined to one paragraph.

Hendricks et al., "Localizing Moments in Video with Natural Language", ICCV 2017.

Some videos are annotated under two file names that differ in the extension. Published figures use the descriptions of
the listed name only (`merge="list"`); `merge="base_id"` joins the descriptions of both names.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

from .annotations import AnnotationFile
from .builder import AnnotatedBenchmark, BenchmarkConfig


CLIP_SECONDS = 30.0


@dataclass
class DidemoConfig(BenchmarkConfig):
    """Configuration of DiDeMo: the arguments of `BenchmarkConfig`, and `merge`.

    Args:
        merge (`str`, *optional*, defaults to `"list"`): `"list"`: the videos of the lists, with the descriptions of
            exactly the listed names. `"base_id"`: all videos of the data files, with the descriptions of all names.
    """

    name: str = "didemo"
    merge: str = "list"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge not in ("list", "base_id"):
            raise ValueError(f"`merge` is {self.merge!r}; it is 'list' or 'base_id'")


class Didemo(AnnotatedBenchmark):
    """Builder of DiDeMo."""

    BUILDER_CONFIG_CLASS = DidemoConfig
    TITLE = "DiDeMo"
    ID_PATTERN = r"\d+@N\d+_\d+_[0-9a-f]+(\.\w*)?"
    EXAMPLE = "10015567@N08_3655084291_d8b58466fa.mov"

    def __init__(self, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(cache_dir, **kwargs)
        self._kept: list[str] = []  # per split: number of descriptions in the paragraphs, in words
        self.annotations.files = [_without_repeats(file) for file in self.annotations.files]
        if self.config.merge == "base_id":
            self.annotations.files = [_with_base_ids(file) for file in self.annotations.files]
            self.lists = {split: _with_base_ids(file) for split, file in self.lists.items()}

    def protocol(self) -> str:
        names = "of exactly the listed name" if self.config.merge == "list" else "of all names of a video"
        return (
            f"the query of a test video is its paragraph, the descriptions {names} joined in file order "
            f"({', '.join(self._kept)}); of a video the first {CLIP_SECONDS:.0f} s are read."
        )

    def expected(self, split: str) -> tuple[int, int | None]:
        train = 8392 if self.config.merge == "list" else 8395
        videos = {"train": train, "validation": 1065, "test": 1004}[split]
        return videos, videos

    def candidates(self, split: str) -> list[AnnotationFile]:
        by_list = self.config.merge == "list"
        return [file for file in self.annotations.files if file.split_in_name == split and file.is_list == by_list]

    def captions_of(self, split: str, ids: list[str]) -> dict[str, list[str]]:
        captions = super().captions_of(split, ids)
        files = [file for file in self.annotations.files if not file.captions_by_id.keys().isdisjoint(ids)]
        total = max((len(file.captions) for file in files), default=0)
        self._kept.append(f"{split}: {sum(map(len, captions.values())):,} of {total:,}")
        return captions

    def merge_captions(self, captions: list[str]) -> list[str]:
        return [" ".join(captions)]

    def video_key(self, video_id: str) -> str:
        return _base_id(video_id)

    def _find_videos(self, splits: dict[str, list[str]], notes: list[str]) -> dict[str, str]:
        paths = super()._find_videos(splits, notes)
        for split, ids in splits.items():
            if folders := sum(os.path.isdir(paths[video_id]) for video_id in ids if video_id in paths):
                counted = "1 video is a folder" if folders == 1 else f"{folders:,} videos are folders"
                notes.append(f"{split}: {counted} of frames, of which all are read.")
        return paths

    def segment_of(self, video_id: str, path: str) -> tuple[float | None, float | None]:
        # A folder of frames has no frame rate, so that a time in seconds cannot be found in it.
        return (None, None) if os.path.isdir(path) else (0.0, CLIP_SECONDS)


def _base_id(name: str) -> str:
    """Return the id of a video without the extension: `a.mov` and `a.` are the video `a`."""
    return name.rpartition(".")[0] or name


def _without_repeats(file: AnnotationFile) -> AnnotationFile:
    captions = [pair for number, pair in enumerate(file.captions) if number not in file.repeats]
    return replace(file, captions=captions, repeats=set())


def _with_base_ids(file: AnnotationFile) -> AnnotationFile:
    ids = list(dict.fromkeys(map(_base_id, file.ids)))
    return replace(file, ids=ids, captions=[(_base_id(name), caption) for name, caption in file.captions])
