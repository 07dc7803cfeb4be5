"""A sentence's way to a ranked list of videos."""

from collections.abc import Sequence
from typing import Any

from modeling_pig import PigProcessor, PigTextModel

from .encode import encode_texts, load_pretrained, model_fingerprint
from .index import IndexInfo, VideoIndex


class VideoSearcher:
    """Answers sentences from an index. Only the text half of the model is loaded.

    Example:

    ```python
    >>> from modeling_pig import VideoSearcher

    >>> searcher = VideoSearcher.from_pretrained("runs/demo/model", "videos.lance")
    >>> for result in searcher.search("a red circle moves left", k=5):
    ...     print(result.rank, round(result.score, 3), result.path)
    ```"""

    def __init__(self, model: PigTextModel, processor: PigProcessor, index: VideoIndex):
        self.model = model
        self.processor = processor
        self.index = index

    @classmethod
    def from_pretrained(cls, model: str | None, index: str) -> "VideoSearcher":
        """Opens an index and loads the model that searches it.

        Args:
            model (`str` or `None`): the model's name or folder; `None` takes the one that made the index.
            index (`str`): the index's folder.

        Raises:
            FileNotFoundError: no such index.
            ValueError: no such model, or not the one that made the index.
        """
        video_index = VideoIndex(index)
        name = model or video_index.info.model
        text_model, processor = load_pretrained(PigTextModel, name)
        video_index.refuse_other_model(IndexInfo(name, model_fingerprint(name), text_model.config.projection_dim))
        return cls(text_model, processor, video_index)

    def search(self, texts: str | Sequence[str], k: int = 10) -> list[Any]:
        """The k best videos for a sentence, as a list of [`SearchResult`], best first - or, for a list of sentences, a
        list of such lists.

        Raises:
            ValueError: an empty sentence, or k under 1.
        """
        if isinstance(texts, str):
            return self.search([texts], k)[0]
        return self.index.search(encode_texts(self.model, self.processor, texts), k)


__all__ = ["VideoSearcher"]
