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
"""PIG processor: converts queries and videos to inputs of the models."""

from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .configuration_pig import PigConfig
from .video_processing_pig import PigVideoProcessor


logger = logging.get_logger(__name__)


class PigProcessorKwargs(ProcessingKwargs, total=False):
    """Type the options of [`PigProcessor`]; hold their defaults where every transformers 5 reads them."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}  # type: ignore[misc]


class PigProcessor(ProcessorMixin):
    """Process queries with the tokenizer of CLIP or MetaCLIP 2 and videos with a [`PigVideoProcessor`].

    Texts are padded to the longest text of the batch and truncated, with a warning, to the tokenizer's
    `model_max_length` (77 tokens for CLIP).

    Example:

    ```python
    >>> processor = PigProcessor.from_pretrained("runs/demo/model")
    >>> inputs = processor(text="a red circle moves left", videos="video.mp4", return_tensors="pt")
    >>> inputs["pixel_values_videos"].shape
    torch.Size([1, 12, 3, 224, 224])
    ```"""

    valid_processor_kwargs = PigProcessorKwargs

    def __init__(self, video_processor=None, tokenizer=None, **kwargs):
        super().__init__(video_processor, tokenizer, **kwargs)

    @classmethod
    def from_clip(cls, clip_name_or_folder: str, config: PigConfig) -> "PigProcessor":
        """Create the processor of a model that starts from a CLIP or MetaCLIP 2 checkpoint.

        Args:
            clip_name_or_folder (`str`): checkpoint with its tokenizer, on the Hub or in a folder.
            config (`PigConfig`): configuration of the model, which determines number and size of frames.

        Returns:
            [`PigProcessor`].

        Raises:
            ValueError: the checkpoint has no tokenizer, or its tokenizer does not match the configuration.
        """
        text: Any = config.text_config
        vision: Any = config.vision_config
        tokenizer: Any = AutoTokenizer.from_pretrained(clip_name_or_folder)
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        is_empty = len(tokenizer) == len(tokenizer.all_special_ids)  # if the files are missing
        if is_empty or ends != (text.bos_token_id, text.eos_token_id):
            raise ValueError(
                f"{clip_name_or_folder} has no tokenizer that fits the configuration: it has {len(tokenizer)} tokens, "
                f"with {ends[0]} and {ends[1]} for start and end, expected {text.bos_token_id} and "
                f"{text.eos_token_id}. Add the tokenizer files of this CLIP model to the checkpoint."
            )
        tokenizer.model_max_length = min(tokenizer.model_max_length, text.max_position_embeddings)
        return cls(PigVideoProcessor.from_config(vision), tokenizer)

    def __call__(self, text=None, videos=None, **kwargs: Unpack[PigProcessorKwargs]) -> BatchFeature:
        r"""Convert queries and videos to model inputs.

        Args:
            text (`str` or `list[str]`, *optional*): queries.
            videos (*optional*): video or list of videos, in any form that [`PigVideoProcessor`] accepts.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask`, `(Q, tokens)` each, if `text` is given;
            `pixel_values_videos`, `(B, T, 3, height, width)`, if `videos` are given.

        Raises:
            ValueError: neither text nor videos are given, or `videos` holds another type of object.
            VideoDecodingError: a file cannot be decoded.
        """
        inputs = super().__call__(text=text, videos=videos, **kwargs)
        if text is not None:
            self._warn_of_truncation([text] if isinstance(text, str) else text, inputs["input_ids"])
        return inputs

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save the processor, without the truncation and padding that earlier calls requested."""
        # A fast tokenizer stores these settings of the last call, and its file would make them the defaults.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _warn_of_truncation(self, texts: list[str], input_ids) -> None:
        max_tokens = max(len(ids) for ids in input_ids)
        if max_tokens < self.tokenizer.model_max_length:
            return  # no text was truncated: do not tokenize twice
        for text, ids in zip(texts, self.tokenizer(texts, verbose=False)["input_ids"], strict=True):
            if len(ids) > max_tokens:
                logger.warning(
                    f"A text of {len(ids)} tokens was cut to the first {max_tokens} tokens: {text[:60]!r}..."
                )


__all__ = ["PigProcessor"]
