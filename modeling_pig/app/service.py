"""Search by query or by video, and explain results: the app's functions without the web server.

The threads of the server share one [`SearchService`]. Searching loads the text encoder only, without torch. The whole
model is loaded once, when the first video is encoded. Videos are encoded one at a time; searches continue meanwhile.
"""

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..encoding.lazy_model import LazyEncoder
from ..encoding.video_segment import VideoSegment
from ..retrieval.search import VideoSearcher
from ..retrieval.search_options import SearchKeywords, SearchOptions
from ..retrieval.segments import DEFAULT_LENGTH, Segmentation
from ..stores.conditions import And, Condition, Or
from ..stores.facets import Facet, find_facets
from ..stores.index import VideoIndex
from .errors import UNREADABLE, USER_ERRORS, UnavailableError


if TYPE_CHECKING:  # modules that import torch, which takes seconds, are imported at first use
    import torch

    from ..encoding.encoder import Encoder
    from ..stores.results import SearchResult
    from ..video_decoding_pig import VideoDecodingError
    from ..visualization.tokens import VideoExplanation


CHECK_AFTER = 2.0  # seconds after which an index is checked for having been replaced
NUM_NEAREST = 5  # captions per explanation
MAX_SEGMENTS = 64  # per uploaded video
RECOUNT_AFTER = 60.0  # seconds for which the facets of an index stay that cannot tell whether it has changed

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]  # called with the name of each stage as it starts


class UploadSegmentation(Segmentation):
    """Split a video into the default segments of an index, but into at most `MAX_SEGMENTS`.

    Segments of longer videos are longer, so that the cost of encoding is bounded.
    """

    def split(self, duration: float | None) -> list[tuple[float | None, float | None]]:
        if duration is None or duration <= MAX_SEGMENTS * DEFAULT_LENGTH:
            return super().split(duration)
        return Segmentation(duration / MAX_SEGMENTS).split(duration)


@dataclass
class _WholeModel:
    encoder: "Encoder"
    caption_embeds: "torch.Tensor | None" = None  # (captions, embedding_dim), normalised; encoded at first use


class SearchService:
    """Search by query and by video, and explain results.

    Args:
        searcher (`VideoSearcher`, *optional*): searcher over the indexes. `searcher.name` is the model that encodes
            videos.
        captions (`Sequence[str]`, *optional*): sentences to rank for a video.
        open_searcher (`Callable`, *optional*): opens the searcher once there is an index, if `searcher` is not given.
    """

    def __init__(
        self,
        searcher: VideoSearcher | None,
        captions: Sequence[str] = (),
        open_searcher: Callable[[], VideoSearcher] | None = None,
    ):
        assert searcher or open_searcher
        self._searcher = searcher
        self._open_searcher = open_searcher
        self._checking = threading.Lock()  # held by the thread that opens or checks the indexes
        self._checked = -math.inf
        self._checked_versions: list[Any] = [None] * len(searcher.indexes if searcher else ())
        self._problem: UnavailableError | None = None
        self.captions = list(captions)
        self._whole: _WholeModel | None = None
        self._encoding = threading.Lock()  # held by the thread that encodes a video
        self._counting = threading.Lock()  # held by the thread that counts the values of columns
        self._facets: list[Facet] = []
        self._facets_of: Any = None  # versions of the indexes that `_facets` were counted in

    @property
    def searcher(self) -> VideoSearcher:
        """Searcher over the indexes as they are now.

        An index that was replaced by one of the same model is opened again.

        Raises:
            UnavailableError: there is no index yet, it was replaced by one of another model, or it cannot be opened.
        """
        if time.monotonic() - self._checked > CHECK_AFTER and self._checking.acquire(blocking=self._searcher is None):
            try:
                if time.monotonic() - self._checked > CHECK_AFTER:
                    self._problem = self._open() if self._searcher is None else self._reopen(self._searcher)
                    self._checked = time.monotonic()
            finally:
                self._checking.release()
        if self._problem is not None:
            raise self._problem
        assert self._searcher is not None
        return self._searcher

    def _open(self) -> UnavailableError | None:
        """Open the searcher; return the reason if that fails."""
        assert self._open_searcher is not None
        try:
            self._searcher = self._open_searcher()
            self._checked_versions = [None] * len(self._searcher.indexes)
        except FileNotFoundError:
            return UnavailableError("no_index", "There is no index yet: create it with `pig index`.")
        except USER_ERRORS as error:
            logger.error("%s", error)
            return UnavailableError("unreadable", UNREADABLE)
        return None

    def _reopen(self, searcher: VideoSearcher) -> UnavailableError | None:
        """Open indexes again that were replaced; return the reason if they cannot be searched.

        Indexes that cannot tell whether they have changed, on a Milvus server, are not checked.
        """
        for number, index in enumerate(searcher.indexes):
            try:
                version: Any = "unreadable"
                with suppress(OSError):  # of an index that was deleted
                    version = index.data_version
                if version is None or version == self._checked_versions[number]:
                    continue
                current = VideoIndex(index.uri)
            except FileNotFoundError:
                return UnavailableError("no_index", "The index was deleted: create it again with `pig index`.")
            except (OSError, ValueError):
                continue  # while it is being replaced; a search reports what stays wrong
            if current.info != index.info:
                try:
                    index.refuse_other_model(current.info)
                except ValueError as error:
                    logger.error("%s", error)
                    return UnavailableError(
                        "other_model", "The index was replaced by one of another model: restart the app to search it."
                    )
                searcher.indexes[number] = current
            self._checked_versions[number] = version
        return None

    @property
    def model_name(self) -> str:
        """Display name of the model: its name on the Hub, or the last two parts of its folder."""
        name = self.searcher.name
        return "/".join(Path(name).resolve().parts[-2:]) if Path(name).is_dir() else name

    @property
    def explains(self) -> bool:
        """Whether the model explains its results."""
        return self.searcher.indexes[0].info.kind == "pig"

    def columns(self) -> dict[str, str]:
        """Return the owner's columns of all indexes, name -> type."""
        return {name: kind for index in self.searcher.indexes for name, kind in index.columns.items()}

    def num_clips(self) -> int:
        """Return the total number of entries over all indexes."""
        return sum(map(len, self.searcher.indexes))

    def holds(self, path: str) -> bool:
        """Return whether an index holds entries of this file now."""
        return any(index.get(path) for index in self.searcher.indexes)

    def versions(self) -> list[Any]:
        """Return values that change with every write to the indexes; those that cannot tell change every minute.

        Raises:
            OSError: an index cannot be read.
        """
        clock = int(time.monotonic() // RECOUNT_AFTER)
        return [clock if (v := index.data_version) is None else v for index in self.searcher.indexes]

    def facets(self) -> list[Facet]:
        """Return the columns by whose values a search can be narrowed; counted once per version of the indexes.

        Raises:
            OSError: an index cannot be read.
        """
        with self._counting:
            versions = self.versions()
            if versions != self._facets_of:
                self._facets, self._facets_of = find_facets(self.searcher.indexes), versions
            return self._facets

    def narrow(self, where: str | None, chosen: Sequence[str]) -> str | Condition | None:
        """Add the chosen values of facets to a condition: any of the values of a column, for all columns.

        The values never become text of a condition.

        Args:
            where (`str`, *optional*): condition on the results.
            chosen (`Sequence[str]`): ids of the values, see [`facet_id`].

        Raises:
            ValueError: `where` is invalid, or the indexes hold no value with such an id.
            OSError: an index cannot be read.
        """
        if not chosen:
            return where
        conditions: dict[str, list[Condition]] = {}
        known = {facet_id(facet, value): (facet, value) for facet in self.facets() for value in facet.counts}
        for value_id in chosen:
            if value_id not in known:
                raise ValueError("A chosen value is no longer in the index: choose again.")
            facet, value = known[value_id]
            conditions.setdefault(facet.column, []).append(facet.condition(value))
        all_of = [Or(tuple(any_of)) if len(any_of) > 1 else any_of[0] for any_of in conditions.values()]
        parsed = {index.parse_where(where) for index in self.searcher.indexes}
        if len(parsed) > 1:
            raise ValueError("The indexes hold a column of the filter with different types: search them one by one.")
        all_of += [condition for condition in parsed if condition is not None]
        return And(tuple(all_of)) if len(all_of) > 1 else all_of[0]

    def search(self, text: str, **options: Unpack[SearchKeywords]) -> "list[SearchResult]":
        """Return the best results for a query; `options` are fields of [`SearchOptions`].

        Raises:
            ValueError: the query is empty, or an option is invalid.
            OSError: the index cannot be read.
        """
        return self.searcher.search(text, **options)

    def more_like(self, segment: VideoSegment, **options: Unpack[SearchKeywords]) -> "list[SearchResult]":
        """Return the results most similar to a segment, or to a whole file, without those of the same file.

        Raises:
            ValueError: no index holds the segment, or an option is invalid.
            OSError: the index cannot be read.
        """
        stored = next(filter(None, (index.get(segment.path) for index in self.searcher.indexes)), [])
        span = segment[1:]
        queries = [found for found in stored if span in ((None, None), (found.entry.start, found.entry.end))]
        if not queries:
            raise ValueError("This video is no longer in the index: search again.")
        embeddings = np.stack([found.embedding for found in queries])
        checked = SearchOptions(**options)
        return self.searcher.search_embeddings(embeddings, checked, merge_queries=True, exclude=segment.path)[0]

    def like(self, video: str, report: Progress, **options: Unpack[SearchKeywords]) -> "list[SearchResult]":
        """Return the results most similar to a video file; `options` are fields of [`SearchOptions`].

        A long video is split into up to `MAX_SEGMENTS` segments of 30 s (longer segments beyond 32 minutes of video).
        A result is scored by the most similar segment.

        Raises:
            VideoDecodingError: the file cannot be decoded.
            ValueError: an option is invalid.
            OSError: the index or the model cannot be read.
        """
        checked = SearchOptions(**options)
        with self._one_at_a_time(report):
            whole = self._load(report)
            from ..encoding.videos import encode_file

            report("Encoding the video")
            encoded = encode_file(whole.encoder, video, UploadSegmentation().split)
        return self.searcher.search_embeddings(encoded.embeddings.numpy(), checked, merge_queries=True)[0]

    def add(self, path: str) -> bool:
        """Encode a video file and add it to the index; return whether the index did not hold it as it is.

        Raises:
            VideoDecodingError: the file cannot be decoded.
            ValueError: the path is not that of a video, or there are several indexes.
            OSError: the index cannot be written, or the model cannot be read.
        """
        if len(self.searcher.indexes) > 1:
            raise ValueError("Videos are added to one index, and this server has several: serve one.")
        with self._one_at_a_time(lambda stage: None):
            whole = self._load()
            from ..retrieval.indexing import index_videos

            report = index_videos(whole.encoder, self.searcher.indexes[0], path)
        if report.failures:
            raise report.failures[0]
        return not report.unchanged

    def fitting_captions(self, video: str, k: int, report: Progress) -> list[dict[str, Any]]:
        """Return the `k` captions that fit a video file best, as `text` and `score` (cosine similarity).

        Raises:
            ValueError: the service has no captions.
            VideoDecodingError: the file cannot be decoded.
            OSError: the model cannot be read.
        """
        if not self.captions:
            raise ValueError("The app has no captions to rank: restart it with --captions FILE.")
        with self._one_at_a_time(report):
            whole = self._load(report)
            from ..encoding.videos import encode_videos

            report("Encoding the video")
            failures: list[VideoDecodingError] = []
            batches = list(encode_videos(whole.encoder, [video], failures, batch_size=1, num_threads=1))
            if failures:
                raise failures[0]
            return self._nearest_captions(whole, batches[0].embeddings[0], k, report)

    def explain(self, segment: VideoSegment, text: str) -> dict[str, Any]:
        """Explain why a query found a segment.

        Returns:
            `dict`: `score`; `description`, a text for those who do not see the frames; `captions`: the captions
            nearest to the pseudo-query, as `text` and `score` (cosine similarity); `times`, see [`score_times`], not
            of a single-tower; and the frames with the selected patches, see [`describe_explanation`].

        Raises:
            ValueError: the query is empty, or the model is not a PIG model.
            VideoDecodingError: the file cannot be decoded.
            OSError: the model cannot be read.
        """
        with self._encoding:
            whole = self._load()
            import torch

            from ..encoding.encoder import PigEncoder
            from ..visualization.tokens import explain_video
            from .explanation import describe_explanation, score_times

            encoder = whole.encoder
            if not isinstance(encoder, PigEncoder):
                raise ValueError(f"{self.model_name} is not a PIG model: only PIG models explain their results.")
            explanation = explain_video(
                encoder.model, encoder.processor, segment.path, text, start=segment.start, end=segment.end
            )
            captions = []
            if self.captions and explanation.pseudo_query is not None:
                # `explain_video` would encode all captions again.
                captions = self._nearest_captions(whole, torch.from_numpy(explanation.pseudo_query), NUM_NEAREST)
            is_scored = encoder.model.config.framework != "single_tower"  # else an embedding alone has no score
            times = score_times(encoder, segment, text) if is_scored else []
        return {
            "score": explanation.score,
            "description": _describe(explanation),
            "captions": captions,
            "times": times,
            **describe_explanation(explanation),
        }

    @contextmanager
    def _one_at_a_time(self, report: Progress) -> Iterator[None]:
        if not self._encoding.acquire(blocking=False):
            report("Waiting for another video")
            self._encoding.acquire()
        try:
            yield
        finally:
            self._encoding.release()

    def _load(self, report: Progress = lambda stage: None) -> _WholeModel:
        if self._whole is None:
            report("Loading the model")
            try:
                options = self.searcher.encoder.options | {"with_texts": True}
                self._whole = _WholeModel(LazyEncoder(self.searcher.name, **options).load())
            except ValueError as error:  # the cause is the model, not the query or the upload
                raise OSError(str(error)) from error
        return self._whole

    def _nearest_captions(
        self, whole: _WholeModel, embedding: "torch.Tensor", k: int, report: Progress = lambda stage: None
    ) -> list[dict[str, Any]]:
        """Return the `k` captions nearest to a normalised `embedding` of shape `(embedding_dim,)`."""
        if whole.caption_embeds is None:
            report("Encoding the captions")
            whole.caption_embeds = whole.encoder.encode_texts(self.captions)
        best = (whole.caption_embeds @ embedding).topk(min(k, len(self.captions)))
        nearest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"text": self.captions[number], "score": cosine} for number, cosine in nearest]


def facet_id(facet: Facet, value: str | bool) -> str:
    """Return the name of a value of a facet in requests; it is the same after a restart."""
    return hashlib.blake2b(repr((facet.column, value)).encode(), digest_size=8).hexdigest()


def _describe(explanation: "VideoExplanation") -> str:
    """Return the alternative text of an explanation's picture."""
    from ..visualization.tokens import NO_PHRASE

    frames = f"{len(explanation.frames)} frames of the clip with the attention of the class token"
    if explanation.selected_patches is None or explanation.matches is None:
        return f"{frames}."
    listed = [f"{(explanation.matches == n).sum()} for “{p.text}”" for n, p in enumerate(explanation.phrases)]
    listed.append(f"{(explanation.matches == NO_PHRASE).sum()} for no phrase")
    selected = f"{len(explanation.selected_patches)} patches that the model selected"
    return f"{frames}, and the {selected}: {', '.join(listed)}."


__all__ = ["MAX_SEGMENTS", "SearchService", "UploadSegmentation", "facet_id"]
