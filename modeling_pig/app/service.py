"""Search by query or by video, and explain results: the app's functions without the web server.

The threads of the server share one [`SearchService`]. Searching loads the text encoder only, without torch. The whole
model is loaded once, when the first video is encoded. Videos are encoded one at a time; searches continue meanwhile.
"""

import base64
import hashlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..encoding.lazy_model import LazyEncoder
from ..encoding.video_segment import VideoSegment
from ..extras import pip_install
from ..retrieval.search import SearchOptions, VideoSearcher
from ..retrieval.segments import DEFAULT_LENGTH, Segmentation
from ..stores.conditions import And, Condition, Or
from ..stores.facets import Facet, find_facets


if TYPE_CHECKING:  # modules that import torch, which takes seconds, are imported at first use
    import torch

    from ..encoding.encoder import Encoder
    from ..stores.index import SearchResult
    from ..video_decoding_pig import VideoDecodingError
    from ..visualization.tokens import VideoExplanation


NUM_NEAREST = 5  # captions per explanation
MAX_SEGMENTS = 64  # per uploaded video
RECOUNT_AFTER = 60.0  # seconds for which the facets of an index stay that cannot tell whether it has changed

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
        searcher (`VideoSearcher`): searcher over the indexes. `searcher.name` is the model that encodes videos.
        captions (`Sequence[str]`, *optional*): sentences to rank for a video.
    """

    def __init__(self, searcher: VideoSearcher, captions: Sequence[str] = ()):
        self.searcher = searcher
        self.captions = list(captions)
        self._whole: _WholeModel | None = None
        self._encoding = threading.Lock()  # held by the thread that encodes a video
        self._counting = threading.Lock()  # held by the thread that counts the values of columns
        self._facets: list[Facet] = []
        self._facets_of: Any = None  # versions of the indexes that `_facets` were counted in

    @property
    def model_name(self) -> str:
        """Display name of the model: its name on the Hub, or the last two parts of its folder."""
        name = self.searcher.name
        return "/".join(Path(name).resolve().parts[-2:]) if Path(name).is_dir() else name

    @property
    def explains(self) -> bool:
        """Whether the model explains its results."""
        return self.searcher.indexes[0].info.kind == "pig"

    def num_clips(self) -> int:
        """Return the total number of entries over all indexes."""
        return sum(map(len, self.searcher.indexes))

    def holds(self, path: str) -> bool:
        """Return whether an index holds entries of this file now."""
        return any(index.get(path) for index in self.searcher.indexes)

    def facets(self) -> list[Facet]:
        """Return the columns by whose values a search can be narrowed; counted once per version of the indexes.

        Raises:
            OSError: an index cannot be read.
        """
        with self._counting:
            clock = int(time.monotonic() // RECOUNT_AFTER)
            versions = [clock if (v := index.data_version) is None else v for index in self.searcher.indexes]
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

    def search(self, text: str, k: int, where: str | Condition | None = None) -> "list[SearchResult]":
        """Return the `k` best files for a query.

        Raises:
            ValueError: the query is empty, or `where` is invalid.
        """
        return self.searcher.search(text, k=k, where=where, group=True)

    def like(self, video: str, k: int, where: str | Condition | None, report: Progress) -> "list[SearchResult]":
        """Return the `k` files most similar to a video file.

        A long video is split into up to `MAX_SEGMENTS` segments of 30 s (longer segments beyond 32 minutes of video).
        A result is scored by the most similar segment.

        Raises:
            VideoDecodingError: the file cannot be decoded.
            ValueError: `where` is invalid.
            OSError: the index or the model cannot be read.
        """
        with self._one_at_a_time(report):
            whole = self._load(report)
            from ..encoding.videos import encode_file

            report("Encoding the video")
            encoded = encode_file(whole.encoder, video, UploadSegmentation().split)
        options = SearchOptions(k=k, where=where, group=True)
        return self.searcher.search_embeddings(encoded.embeddings.numpy(), options, merge_queries=True)[0]

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
            `dict`: `picture` (PNG as a `data:` URL), `description` (alternative text of the picture), `score`, and
            `captions`: the captions nearest to the pseudo-query, as `text` and `score` (cosine similarity).

        Raises:
            ValueError: the query is empty, or the model is not a PIG model.
            VideoDecodingError: the file cannot be decoded.
            ImportError: matplotlib is missing.
            OSError: the model cannot be read.
        """
        if not find_spec("matplotlib"):
            raise ImportError(f"Drawing needs matplotlib: {pip_install('app')}")
        with self._encoding:
            whole = self._load()
            import torch

            from ..encoding.encoder import PigEncoder
            from ..visualization.token_figure import draw_explanation
            from ..visualization.tokens import explain_video

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
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "why.png")
            draw_explanation(explanation, file)
            picture = base64.b64encode(file.read_bytes()).decode()
        return {
            "picture": f"data:image/png;base64,{picture}",
            "description": _describe(explanation),
            "score": explanation.score,
            "captions": captions,
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
