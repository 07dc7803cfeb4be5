"""What the app's page asks for, without the web: searches by sentence and by video, and why a video was found.

Objects are shared by the threads of the server. Searching loads the text half of the model only, without torch; the
whole model is loaded, once, when the first video is looked at. One video is looked at at a time; searches go on
meanwhile.
"""

import base64
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..encoding.lazy_model import LazyModel
from ..encoding.video_segment import VideoSegment
from ..retrieval.search import SearchOptions, VideoSearcher
from ..retrieval.segments import DEFAULT_LENGTH, Segmentation


if TYPE_CHECKING:  # what looks at videos is imported when it is needed, as torch takes its time
    import torch

    from modeling_pig import PigForRetrieval, PigProcessor

    from ..stores.index import SearchResult
    from ..video_decoding_pig import VideoDecodingError
    from ..visualization.tokens import VideoExplanation


NUM_NEAREST = 5  # captions beside an explanation
MAX_WINDOWS = 64  # of an uploaded video

Progress = Callable[[str], None]  # is told in words what is being done


class UploadSegmentation(Segmentation):
    """The windows that an index has by default, but at most `MAX_WINDOWS` of a video: they are longer where that is
    long, so that the work does not grow with it."""

    def split(self, duration: float | None) -> list[tuple[float | None, float | None]]:
        if duration is None or duration <= MAX_WINDOWS * DEFAULT_LENGTH:
            return super().split(duration)
        return Segmentation(duration / MAX_WINDOWS).split(duration)


@dataclass
class _WholeModel:
    model: "PigForRetrieval"
    processor: "PigProcessor"
    caption_embeds: "torch.Tensor | None" = None  # (captions, D), normalised, once they have been asked for


class SearchService:
    """Searches by sentence and by video, and explains.

    Args:
        searcher (`VideoSearcher`): what searches. Its model is loaded whole, by its name, when it is needed.
        captions (`Sequence[str]`): the sentences from which those are chosen that fit a video.
    """

    def __init__(self, searcher: VideoSearcher, captions: Sequence[str] = ()):
        self.searcher = searcher
        self.captions = list(captions)
        self._whole: _WholeModel | None = None
        self._looking = threading.Lock()  # held by the one thread that looks at a video

    @property
    def model_name(self) -> str:
        """For people: the name on the Hub, or the last two parts of the folder's."""
        name = self.searcher.name
        return "/".join(Path(name).resolve().parts[-2:]) if Path(name).is_dir() else name

    def num_clips(self) -> int:
        """Of all indexes: a long video is several clips."""
        return sum(map(len, self.searcher.indexes))

    def holds(self, path: str) -> bool:
        """Whether an index holds this file, now."""
        return any(index.get(path) for index in self.searcher.indexes)

    def search(self, text: str, k: int, where: str | None = None) -> "list[SearchResult]":
        """The k best files for a sentence. Raises `ValueError` for an empty one, and for a `where` that is none."""
        return self.searcher.search(text, k=k, where=where, group=True)

    def like(self, video: str, k: int, where: str | None, tell: Progress) -> "list[SearchResult]":
        """The k files most like a video file; where it is long, most like one of its windows, of which there are up
        to `MAX_WINDOWS`, each of 30 s or, beyond 32 minutes of video, longer ones.

        Raises:
            VideoDecodingError: the file is no video.
            ValueError: a `where` that is none.
            OSError: the index or the model cannot be read.
        """
        with self._one_at_a_time(tell):
            whole = self._load(tell)
            from ..encoding.videos import encode_file

            tell("Looking at the video")
            encoded = encode_file(whole.model, whole.processor, video, UploadSegmentation().split)
        options = SearchOptions(k=k, where=where, group=True)
        return self.searcher.search_embeddings(encoded.embeddings.numpy(), options, merge_queries=True)[0]

    def fitting_captions(self, video: str, k: int, tell: Progress) -> list[dict[str, Any]]:
        """The k captions that fit a video file best: `text` and `score`, the cosine that ranks videos.

        Raises:
            ValueError: there are no captions to choose from.
            VideoDecodingError: the file is no video.
            OSError: the model cannot be read.
        """
        if not self.captions:
            raise ValueError("There are no sentences to choose from: start the app with --captions FILE.")
        with self._one_at_a_time(tell):
            whole = self._load(tell)
            from ..encoding.videos import encode_videos

            tell("Looking at the video")
            failures: list[VideoDecodingError] = []
            batches = list(encode_videos(whole.model, whole.processor, [video], failures, batch_size=1, num_threads=1))
            if failures:
                raise failures[0]
            return self._nearest_captions(whole, batches[0].embeddings[0], k, tell)

    def explain(self, clip: VideoSegment, text: str) -> dict[str, Any]:
        """Why a clip was found for a sentence.

        Returns:
            `dict`: `picture` (a `data:` address of a PNG), `description` (of it, in words), `score`, and the
            `captions` that the model expected to be asked, as `text` and `score` (cosines with the pseudo-query).

        Raises:
            ValueError: an empty sentence.
            VideoDecodingError: the file cannot be decoded any more.
            ImportError: matplotlib is missing.
            OSError: the model cannot be read.
        """
        if not find_spec("matplotlib"):
            raise ImportError('Drawing needs matplotlib: pip install "modeling-pig[app]"')
        with self._looking:
            whole = self._load()
            import torch

            from ..visualization.token_figure import draw_explanation
            from ..visualization.tokens import explain_video

            explanation = explain_video(whole.model, whole.processor, clip.path, text, start=clip.start, end=clip.end)
            captions = []
            if self.captions and explanation.pseudo_query is not None:
                # `explain_video` would encode all the captions anew.
                captions = self._nearest_captions(whole, torch.from_numpy(explanation.pseudo_query), NUM_NEAREST)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "why.png")
            draw_explanation(explanation, file)
            picture = base64.b64encode(file.read_bytes()).decode()
        return {
            "picture": f"data:image/png;base64,{picture}",
            "description": _in_words(explanation),
            "score": explanation.score,
            "captions": captions,
        }

    @contextmanager
    def _one_at_a_time(self, tell: Progress) -> Iterator[None]:
        if not self._looking.acquire(blocking=False):
            tell("Waiting for another video to be done")
            self._looking.acquire()
        try:
            yield
        finally:
            self._looking.release()

    def _load(self, tell: Progress = lambda stage: None) -> _WholeModel:
        if self._whole is None:
            tell("Loading the model")
            try:
                self._whole = _WholeModel(*LazyModel("PigForRetrieval", self.searcher.name).load())
            except ValueError as error:  # no fault of the sentence or video that was sent
                raise OSError(str(error)) from error
        return self._whole

    def _nearest_captions(
        self, whole: _WholeModel, embedding: "torch.Tensor", k: int, tell: Progress = lambda stage: None
    ) -> list[dict[str, Any]]:
        """The k captions nearest to a normalised embedding, (D,)."""
        from ..encoding.texts import encode_texts

        if whole.caption_embeds is None:
            tell("Reading the captions")
            whole.caption_embeds = encode_texts(whole.model, whole.processor, self.captions)
        best = (whole.caption_embeds @ embedding).topk(min(k, len(self.captions)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"text": self.captions[number], "score": cosine} for number, cosine in found]


def _in_words(explanation: "VideoExplanation") -> str:
    """What the picture of an explanation shows, for those who do not see it."""
    from ..visualization.tokens import NO_PHRASE

    frames = f"{len(explanation.frames)} frames of the clip with the attention of the class token"
    if explanation.selected_patches is None or explanation.matches is None:
        return f"{frames}."
    listed = [f"{(explanation.matches == n).sum()} for “{p.text}”" for n, p in enumerate(explanation.phrases)]
    listed.append(f"{(explanation.matches == NO_PHRASE).sum()} for no phrase")
    selected = f"{len(explanation.selected_patches)} patches that the model selected"
    return f"{frames}, and the {selected}: {', '.join(listed)}."


__all__ = ["MAX_WINDOWS", "SearchService", "UploadSegmentation"]
