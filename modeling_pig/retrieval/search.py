"""A sentence's, or a video's, way to a ranked list of videos."""

import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..encoding.model_files import model_fingerprint
from ..encoding.text_encoder import TextEncoder
from ..stores.conditions import And, Comparison, Condition, parse_where
from ..stores.index import EmbeddedEntry, IndexInfo, SearchResult, VideoIndex
from .segments import Segmentation


if TYPE_CHECKING:
    from .indexing import IndexingReport


MAX_FETCHED = 10_000  # entries of an index that one query looks at, to make files of them
# Held while a model is loaded, which imports transformers: of threads that do so at the same time, one may find its
# modules half made. What needs transformers is imported after that.
IMPORTING = threading.Lock()


@dataclass(frozen=True)
class FileResult(SearchResult):
    """A file as one answer: the fields are those of its best window, and `rank` counts files. `others` are its further
    windows that were found, best first: those that rank before the first window of a file that is no answer, and among
    the 10,000 best entries of an index."""

    others: tuple[SearchResult, ...] = ()


class VideoSearcher:
    """Answers sentences, and videos, from indexes. Only the text half of the model is loaded, and without torch, which
    an index in a folder imports when it searches more than 20,000 entries; the video half follows when a video that is
    not in an index is searched for or added.

    Threads may share one, to search while others add.

    Args:
        name (`str`): the model's name or folder.
        text_encoder (`TextEncoder`): its text half.
        indexes (`Sequence[VideoIndex]`): of that model; they are searched as one.

    Example:

    ```python
    >>> from modeling_pig import VideoSearcher

    >>> searcher = VideoSearcher.from_pretrained("runs/demo/model", "videos.lance")
    >>> for result in searcher.search("a red circle moves left", k=5):
    ...     print(result.rank, round(result.score, 3), result.path)
    ```"""

    def __init__(self, name: str, text_encoder: TextEncoder, indexes: Sequence[VideoIndex]):
        self.name = name
        self.text_encoder = text_encoder
        self.indexes = list(indexes)
        self._video_half: tuple[Any, Any] | None = None

    @classmethod
    def from_pretrained(
        cls, model: str | None, index: str | os.PathLike | Sequence[str | os.PathLike]
    ) -> "VideoSearcher":
        """Opens indexes and loads the text half of the model that searches them.

        Args:
            model (`str` or `None`): the model's name or folder; `None` takes the one that made the (first) index.
            index (`str`, `os.PathLike` or several): an index's URI; several are searched as one.

        Raises:
            FileNotFoundError: no such index.
            ValueError: no such model, or not the one that made the index; indexes of different models.
        """
        uris = [index] if isinstance(index, (str, os.PathLike)) else list(index)
        if not uris:
            raise ValueError("There is no index to search: give one or more.")
        indexes = [VideoIndex(uri) for uri in uris]
        made_by = indexes[0].info
        for other in indexes[1:]:
            other.refuse_other_model(made_by)
        name = model or made_by.model
        text_encoder = TextEncoder(name)
        indexes[0].refuse_other_model(IndexInfo(name, model_fingerprint(name), text_encoder.embedding_dim))
        return cls(name, text_encoder, indexes)

    def search(
        self,
        texts: str | Iterable[str],
        k: int = 10,
        where: str | None = None,
        min_score: float | None = None,
        group: bool = False,
    ) -> list[Any]:
        """The k best videos, or windows of long ones, for a sentence, as a list of [`SearchResult`], best first; for a
        list of sentences, a list of such lists.

        Args:
            texts (`str` or `Iterable[str]`): a sentence or several.
            k (`int`): 1 or more.
            where (`str`, *optional*): search only what this holds for, `"duration < 60"`: see [`parse_where`].
            min_score (`float`, *optional*): leave out answers whose cosine is less.
            group (`bool`): k files, each with the windows of it that were found: lists of [`FileResult`]. Fewer where
                the 10,000 best entries of an index are windows of fewer files.

        Raises:
            ValueError: an empty sentence, k under 1, a `where` that is none.
        """
        if isinstance(texts, str):
            return self.search([texts], k, where, min_score, group)[0]
        texts = list(texts)
        return self.search_embeds(self.text_encoder(texts), k, where, min_score, group) if texts else []

    def search_like(
        self,
        video: str | os.PathLike,
        k: int = 10,
        where: str | None = None,
        min_score: float | None = None,
        group: bool = False,
    ) -> list[Any]:
        """The k videos, or windows of long ones, that are most like a video: a list as for a sentence.

        A file that is in an index is searched for with what is stored, and left out of its own answers; another is
        encoded. Where it has several windows, an answer counts by the one that it is most like.

        Args:
            video (`str` or `os.PathLike`): a video file. The rest is as for a sentence.

        Raises:
            VideoDecodingError: a file that is not in an index and cannot be decoded.
            ValueError: k under 1, a `where` that is none.
        """
        path = os.fspath(video)
        if stored := self._stored(path):
            embeds = np.stack([embedding for _, embedding in stored])
            return self.search_embeds(embeds, k, where, min_score, group, together=True, without=stored[0][0].path)[0]
        model, processor = self._load_video_half()
        from ..encoding.videos import encode_files

        failures: list = []
        encoded = list(encode_files(model, processor, [path], failures, Segmentation().split))
        if failures:
            raise failures[0]
        return self.search_embeds(encoded[0].embeddings.numpy(), k, where, min_score, group, together=True)[0]

    def add(self, paths: str | os.PathLike | Iterable[str | os.PathLike]) -> "IndexingReport":
        """Encodes videos that the index does not hold, or holds in another state, and adds them.

        Args:
            paths (`str`, `os.PathLike` or several): files, folders or patterns, as [`find_videos`] takes them.

        Returns:
            [`IndexingReport`]: how many are new, changed, unchanged, and the files that were set aside, with reasons.

        Raises:
            ValueError: a place without videos; a searcher of several indexes.
            OSError: the index cannot be written.
        """
        if len(self.indexes) != 1:
            raise ValueError(f"Videos are added to one index; this searcher has {len(self.indexes)}: open one alone.")
        model, processor = self._load_video_half()
        from .indexing import index_videos

        return index_videos(model, processor, self.indexes[0], paths)

    def _stored(self, path: str) -> list[EmbeddedEntry]:
        """Entries of a file in the indexes, which may know it by the name of a link or by its own."""
        folder, name = os.path.split(os.path.abspath(path))
        known_as = [os.path.join(os.path.realpath(folder), name), os.path.realpath(path), os.path.abspath(path)]
        for candidate in dict.fromkeys(known_as):
            for index in self.indexes:
                if stored := index.get(candidate):
                    return stored
        return []

    def _load_video_half(self) -> tuple[Any, Any]:
        with IMPORTING:
            if self._video_half is None:
                from modeling_pig import PigVideoModel

                from ..encoding.loading import load_pretrained

                self._video_half = load_pretrained(PigVideoModel, self.name)
            return self._video_half

    def search_embeds(
        self,
        embeds: np.ndarray,
        k: int = 10,
        where: str | None = None,
        min_score: float | None = None,
        group: bool = False,
        together: bool = False,
        without: str | None = None,
    ) -> list[list[SearchResult]]:
        """The k best videos, or windows of long ones, for each of some embeddings, a list for each.

        Args:
            embeds (`np.ndarray` of shape `(Q, D)`): of sentences or videos, by this model.
            together (`bool`): one list for all of them, in which an answer counts by the one that it is nearest to.
            without (`str`, *optional*): leave out this file. The rest is as for a sentence.

        Raises:
            ValueError: k under 1, a `where` that is none, embeddings that cannot be.
        """
        if min_score is not None and not math.isfinite(min_score):
            raise ValueError(f"min_score is {min_score}; scores are cosines, from -1 to 1.")
        condition = _condition(where, without)
        fetch, most = k, max(k, MAX_FETCHED)
        while True:
            found = [index.search(embeds, fetch, condition) for index in self.indexes]  # by index, then by query
            queries = [[lists for index in found for lists in index]] if together else list(zip(*found, strict=True))
            answers, complete = [], True
            for lists in queries:
                # What scores less than the last that one of the indexes gave may have rivals that it did not give.
                floor = max((results[-1].score for results in lists if len(results) == fetch), default=-math.inf)
                lowest = floor if min_score is None else max(floor, min_score)
                ranked = _merge((r for results in lists for r in results), lowest)
                answer = _group(ranked, k + 1) if group else ranked
                # A file is complete when the next has begun.
                complete &= len(answer) >= k + group or lowest > floor or floor == -math.inf
                answers.append(answer[:k])
            if complete or fetch == most:
                return answers
            fetch = min(4 * fetch, most)


def _condition(where: str | None, without: str | None) -> Condition | None:
    condition = None if where is None else parse_where(where)
    if without is None:
        return condition
    another = Comparison("path", "!=", without)
    return another if condition is None else And((condition, another))


def _merge(results: Iterable[SearchResult], lowest: float) -> list[SearchResult]:
    """One ranking of several: no entry twice, with its best score."""
    ordered = sorted(results, key=lambda result: (-result.score, result.path, result.start or 0.0))
    best: dict[tuple, SearchResult] = {}
    for result in ordered:
        if result.score >= lowest:
            best.setdefault((result.path, result.start, result.end), result)
    return [replace(result, rank=rank) for rank, result in enumerate(best.values(), start=1)]


def _group(ranked: Sequence[SearchResult], num_files: int) -> list[SearchResult]:
    """Windows of a file together, in the place of the best of them; up to the first window of the last file wanted."""
    files: dict[str, list[SearchResult]] = {}
    for result in ranked:
        files.setdefault(result.path, []).append(result)
        if len(files) == num_files:
            break
    return [
        FileResult(**{**asdict(best), "rank": rank}, others=tuple(others))
        for rank, (best, *others) in enumerate(files.values(), start=1)
    ]


__all__ = ["FileResult", "VideoSearcher"]
