"""Collate rows of videos with captions into inputs of the model, for `transformers.Trainer`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from modeling_pig import PigProcessor

from ..video_decoding_pig import VideoDecodingError, decode_video
from .data import caption_id


logger = logging.getLogger(__name__)


class PigDataCollator:
    """
    Read the videos of rows, draw a caption of each, and return a batch with which [`PigForRetrieval`] computes its
    loss. With `transformers.Trainer`, set `remove_unused_columns=False`.

    Args:
        processor (`PigProcessor`): processes frames and captions.
        max_text_tokens (`int`): longer captions are cut.

    Raises:
        ValueError: none of the videos of a batch can be decoded. One that cannot is left out, with a warning.

    Example:

    ```python
    >>> from transformers import Trainer, TrainingArguments
    >>> from modeling_pig import PigDataCollator, PigForRetrieval, PigProcessor, load_benchmark

    >>> rows = load_benchmark("videofolder", videos="VIDEOS", annotations="captions.csv")
    >>> model, processor = (kind.from_pretrained("start") for kind in (PigForRetrieval, PigProcessor))
    >>> arguments = TrainingArguments("run", remove_unused_columns=False, per_device_train_batch_size=32)
    >>> Trainer(model, arguments, PigDataCollator(processor), rows["train"], rows["validation"]).train()
    ```
    """

    def __init__(self, processor: PigProcessor, max_text_tokens: int = 77):
        self.processor = processor
        self.text_kwargs = {"max_length": max_text_tokens}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows with `video` (path), `captions`, and optionally `start` and `end` in seconds.

        Returns:
            `dict` with `input_ids` and `attention_mask` (B, tokens), `pixel_values_videos` (B, T, 3, height, width),
            `caption_ids` (B,), equal for equal captions, and `return_loss`.
        """
        video_processor, videos, captions, problem = self.processor.video_processor, [], [], None
        for row in rows:
            try:
                frames, _ = decode_video(
                    row["video"],
                    video_processor.num_frames,
                    start=row.get("start"),
                    end=row.get("end"),
                    **video_processor.decoding_options,
                )
            except VideoDecodingError as error:
                logger.warning(f"{error}: left out of the batch")
                problem = error
                continue
            videos.append(frames)
            captions.append(row["captions"][torch.randint(len(row["captions"]), ()).item()])
        if not videos:
            raise ValueError(f"None of the {len(rows)} videos of a batch can be decoded. The last: {problem}")
        batch = self.processor(
            text=captions,
            videos=videos,
            do_sample_frames=False,
            text_kwargs=self.text_kwargs,
            return_tensors="pt",
        )
        return {
            **batch,
            "caption_ids": torch.tensor([caption_id(caption) for caption in captions]),
            "return_loss": True,
        }


__all__ = ["PigDataCollator"]
