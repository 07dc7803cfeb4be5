"""Find files that show the same video: copies in another container, size or encoding, or with a part cut off."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..stores.index import VideoIndex
from ..stores.records import read_embeddings
from ..stores.results import SearchResult


MIN_COSINE = 0.98  # chosen on validation by `examples/measure_duplicates.py`
MAX_CUT = 0.2  # share of the longer file that the shorter one may lack
_NUM_SHIFTS = 9  # positions of the shorter file within the longer one that are tried
_READ_AHEAD = 64  # files whose embeddings are read at a time
_COLUMNS = ["path", "start", "end", "duration", "embedding"]


class StoredFile(NamedTuple):
    """The S segments of a file, in order of time.

    Attributes:
        duration (`float`): duration in seconds; 0 if it is unknown.
        spans (`np.ndarray` of shape `(S, 2)`): start and end of each segment in seconds; `(0, duration)` for a whole
            file.
        embeddings (`np.ndarray` of shape `(S, D)`): float32, normalised.
    """

    duration: float
    spans: np.ndarray
    embeddings: np.ndarray


def similarity(first: StoredFile, second: StoredFile) -> float:
    """Return the cosine of two files: of their embeddings, or the mean over their segments.

    The shorter file is laid along the longer one at several times. At each time, a segment of the file with fewer
    segments is compared with the mean of the segments of the other file that it overlaps, weighted by the seconds that
    they share. The similarity is the mean of these cosines, weighted likewise, at the best time. It is -1 if the
    shorter file lacks more than `MAX_CUT` of the longer one.
    """
    longer, shorter = (first, second) if first.duration >= second.duration else (second, first)
    cut = longer.duration - shorter.duration if shorter.duration else 0.0
    if cut > MAX_CUT * longer.duration:
        return -1.0
    if len(first.embeddings) == len(second.embeddings) == 1:
        return float(first.embeddings[0] @ second.embeddings[0])
    best = -1.0
    for shift in np.linspace(0.0, cut, _NUM_SHIFTS if cut else 1):
        moved = shorter._replace(spans=shorter.spans + shift)
        few, many = (longer, moved) if len(longer.spans) < len(moved.spans) else (moved, longer)
        starts = np.maximum(few.spans[:, None, 0], many.spans[None, :, 0])
        ends = np.minimum(few.spans[:, None, 1], many.spans[None, :, 1])
        shared = (ends - starts).clip(min=0)  # seconds, (segments of few, segments of many)
        means = shared @ many.embeddings  # (segments of few, D)
        dots = np.einsum("sd,sd->s", means, few.embeddings)
        cosines = dots / np.linalg.norm(means, axis=1).clip(min=1e-9)
        best = max(best, float(cosines @ shared.sum(axis=1) / shared.sum().clip(min=1e-9)))
    return best


class DuplicateFinder:
    """Decide by the stored embeddings which results show the same video. For one search: it reads a file once.

    Args:
        indexes (`Sequence[VideoIndex]`): indexes that are searched; of a file in several, the first counts.
        min_cosine (`float`): smallest [`similarity`] of two files that show the same video.
    """

    def __init__(self, indexes: Sequence[VideoIndex], min_cosine: float):
        self._indexes, self._min_cosine = indexes, min_cosine
        self._files: dict[str, StoredFile | None] = {}
        self._verdicts: dict[tuple[str, str], bool] = {}

    def collapse(self, ranked: Sequence[SearchResult], count: int, by_file: bool = False) -> list[SearchResult]:
        """Leave out the results that show the same video as a better one, which names their paths.

        A segment of a file stands for a segment of another file if the files show the same video and the segments
        overlap in time.

        Args:
            ranked (`Sequence[SearchResult]`): results, best first.
            count (`int`): number of videos. The result that begins the last of them is the last result.
            by_file (`bool`): a file stands for all segments of another file; its own segments stay.

        Returns:
            `list[SearchResult]`: results, best first, with `rank` and `duplicates`.
        """
        kept: list[SearchResult] = []
        videos: list[tuple[SearchResult, dict[str, None]]] = []  # the best result of each, and its duplicates
        for position, result in enumerate(ranked):
            if result.path not in self._files:
                self._read([ahead.path for ahead in ranked[position : position + _READ_AHEAD]])
            if by_file and any(best.path == result.path for best, _ in videos):
                kept.append(result)
                continue
            for best, duplicates in videos:
                if self._are_duplicates(best.path, result.path) and (by_file or _overlap(best, result)):
                    duplicates[result.path] = None
                    break
            else:
                videos.append((result, {}))
                kept.append(result)
                if len(videos) == count:
                    break
        names = {id(best): tuple(duplicates) for best, duplicates in videos}
        return [
            replace(result, rank=rank, duplicates=names.get(id(result), ()))
            for rank, result in enumerate(kept, start=1)
        ]

    def _are_duplicates(self, first: str, second: str) -> bool:
        if first == second:
            return False
        pair = (first, second) if first < second else (second, first)
        if pair not in self._verdicts:
            one, other = self._files[first], self._files[second]
            if one is None or other is None:  # deleted since the search
                return False
            self._verdicts[pair] = similarity(one, other) >= self._min_cosine
        return self._verdicts[pair]

    def _read(self, paths: Iterable[str]) -> None:
        missing = [path for path in dict.fromkeys(paths) if path not in self._files]
        for index in self._indexes:
            found = read_files(index, missing)
            self._files |= found
            missing = [path for path in missing if path not in found]
        self._files |= dict.fromkeys(missing)


def _overlap(first: SearchResult, second: SearchResult) -> bool:
    """Return whether segments of two files that show the same video share half of the shorter one, or may."""
    if first.start is None or first.end is None or second.start is None or second.end is None:
        return True
    cut = abs((first.duration or 0.0) - (second.duration or 0.0))
    shared = min(first.end, second.end + cut) - max(first.start, second.start - cut)
    return shared >= min(first.end - first.start, second.end - second.start) / 2


def read_files(index: VideoIndex, paths: Sequence[str]) -> dict[str, StoredFile]:
    """Return the segments of files by path, without files that the index does not hold.

    Raises:
        OSError: the index cannot be read.
    """
    rows = index.rows_of(paths, _COLUMNS)
    if not len(rows):
        return {}
    embeddings = read_embeddings(rows).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    positions: dict[str, list[int]] = {}
    for position, path in enumerate(rows["path"].to_pylist()):
        positions.setdefault(path, []).append(position)
    starts, ends, durations = (rows[name].to_pylist() for name in ("start", "end", "duration"))
    files = {}
    for path, of_file in positions.items():
        of_file.sort(key=lambda position: starts[position] or 0.0)
        duration = next((durations[position] for position in of_file if durations[position]), 0.0)
        spans = [(starts[p] or 0.0, duration if ends[p] is None else ends[p]) for p in of_file]
        files[path] = StoredFile(duration, np.array(spans), embeddings[of_file])
    return files


__all__ = ["MAX_CUT", "MIN_COSINE", "DuplicateFinder", "StoredFile", "read_files", "similarity"]
