# Copyright 2026 The PIG contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""PIG processor: sentences and videos -> the inputs of the models."""

from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .configuration_pig import PigConfig
from .video_processing_pig import PigVideoProcessor


logger = logging.get_logger(__name__)


class PigProcessor(ProcessorMixin):
    """A [`PigVideoProcessor`] and a CLIP tokenizer as one.

    Texts are padded to the longest of their batch and cut, with a warning, at the tokenizer's `model_max_length` (77
    tokens for CLIP).

    Example:

    ```python
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> inputs = processor(text="a red circle moves left", videos="video.mp4", return_tensors="pt")
    >>> inputs["pixel_values_videos"].shape
    torch.Size([1, 12, 3, 224, 224])
    ```"""

    text_kwargs = {"padding": True, "truncation": True}

    def __init__(self, video_processor=None, tokenizer=None, **kwargs):
        super().__init__(video_processor, tokenizer, **kwargs)

    @classmethod
    def from_clip(cls, clip_name_or_folder: str, config: PigConfig) -> "PigProcessor":
        """The processor of a model that starts from a CLIP checkpoint: its tokenizer, and frames of the model's size.

        Raises:
            ValueError: a checkpoint without a tokenizer, or with one that does not fit the configuration.
        """
        text: Any = config.text_config
        vision: Any = config.vision_config
        tokenizer = CLIPTokenizer.from_pretrained(clip_name_or_folder)  # an empty one where the files are missing
        if (tokenizer.bos_token_id, tokenizer.eos_token_id) != (text.bos_token_id, text.eos_token_id):
            raise ValueError(
                f"{clip_name_or_folder} has no tokenizer that fits: start and end of a text are "
                f"{tokenizer.bos_token_id} and {tokenizer.eos_token_id} there, {text.bos_token_id} and "
                f"{text.eos_token_id} in the configuration."
            )
        tokenizer.model_max_length = min(tokenizer.model_max_length, text.max_position_embeddings)
        return cls(PigVideoProcessor.from_config(vision), tokenizer)

    def __call__(self, text=None, videos=None, **kwargs: Unpack[ProcessingKwargs]) -> BatchFeature:
        r"""
        Args:
            text (`str` or `list[str]`, *optional*): sentences.
            videos (*optional*): one video or a list of them, as [`PigVideoProcessor`] takes them.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` (Q, tokens) if there is text, and
            `pixel_values_videos` (B, T, 3, height, width) if there are videos.

        Raises:
            ValueError: neither text nor videos, or something that is no video.
            VideoDecodingError: a file that cannot be decoded, with the reason.
        """
        inputs = super().__call__(text=text, videos=videos, **kwargs)
        if text is not None:
            self._warn_of_cut_texts([text] if isinstance(text, str) else text, inputs["input_ids"])
        return inputs

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As every processor's. What an earlier call asked of the tokenizer (`max_length`, padding) is not saved."""
        # It stays set in the fast tokenizer, whose file would make it the default of whoever loads it.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _warn_of_cut_texts(self, texts: list[str], input_ids) -> None:
        kept = max(len(ids) for ids in input_ids)
        if kept < self.tokenizer.model_max_length:
            return  # nothing was cut: do not tokenize twice
        for text, ids in zip(texts, self.tokenizer(texts, verbose=False)["input_ids"], strict=True):
            if len(ids) > kept:
                logger.warning(f"A text of {len(ids)} tokens was cut to the first {kept}: {text[:60]!r}...")


__all__ = ["PigProcessor"]
