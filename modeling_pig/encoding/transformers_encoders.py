"""Embed videos with image-text and video-text models of `transformers`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, AutoVideoProcessor
from transformers.video_utils import VideoMetadata

from ..weights_pig import safetensors_revision
from .encoder import DEFAULT_NUM_FRAMES, EncodedClips, Encoder
from .text_encoder import check_sentences


IMAGE_TEXT = ("clip", "siglip", "siglip2", "metaclip_2", "chinese_clip", "altclip", "tipsv2", "aimv2")
VIDEO_TEXT = ("videoprism", "xclip", "pe_video")
_PADDED_TO_THE_LIMIT = ("siglip", "siglip2", "tipsv2", "videoprism")  # as in training: their texts have no mask
_POSITIONS_AFTER_PADDING = ("altclip",)  # as in RoBERTa: the first token has the position behind the padding's id
_TEXTS_PER_BATCH = 256
_UNUSED_WEIGHTS = ("logit_scale", "logit_bias")  # they do not change an embedding


class TransformersEncoder(Encoder):
    """A model of `transformers` with separate towers for texts and for images or videos.

    Args:
        name (`str`): model on the Hub, or folder of the model.
        num_frames (`int`, *optional*): frames per clip, by default those of the model's configuration, or 12.
        trust_remote_code (`bool`): run code of the model's repository.

    Raises:
        ValueError: the model lacks weights, or has them in pickle files only.
        OSError: a file of the model is missing or cannot be read.
    """

    def __init__(self, name: str, num_frames: int | None = None, trust_remote_code: bool = False):
        model, info = AutoModel.from_pretrained(
            name,
            revision=safetensors_revision(name),
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
        missing = [weight for weight in info["missing_keys"] if weight.split(".")[-1] not in _UNUSED_WEIGHTS]
        if missing:
            raise ValueError(f"it lacks {len(missing)} of the weights, such as {min(missing)}. Download it again")
        super().__init__(model)
        self.name = name
        config = model.config
        self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        text_config = config.get_text_config()
        num_positions = getattr(text_config, "max_position_embeddings", None)
        if config.model_type in _POSITIONS_AFTER_PADDING:
            num_positions -= text_config.pad_token_id + 1
        self._max_tokens = min(limit for limit in (self._tokenizer.model_max_length, num_positions) if limit)
        self._padding = "max_length" if config.model_type in _PADDED_TO_THE_LIMIT else True
        vision_config = getattr(config, "vision_config", None)
        self.num_frames = num_frames or getattr(vision_config, "num_frames", None) or DEFAULT_NUM_FRAMES
        self.embedding_dim = self.encode_texts(["a video"]).shape[1]  # configurations have several names for it

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], max_tokens: int | None = None) -> torch.Tensor:
        check_sentences(texts)
        embeddings = []
        for start in range(0, len(texts), _TEXTS_PER_BATCH):
            inputs = self._tokenizer(
                list(texts[start : start + _TEXTS_PER_BATCH]),
                padding=self._padding,
                truncation=True,
                max_length=min(max_tokens or self._max_tokens, self._max_tokens),
                return_tensors="pt",
            ).to(self.device)
            embeddings.append(normalize(self._embed_texts(**inputs).float(), dim=-1).cpu())
        return torch.cat(embeddings)

    def _embed_texts(self, **inputs: torch.Tensor) -> torch.Tensor:
        if self.model.config.model_type == "pe_video":
            # transformers defines get_text_features and get_video_features inside __init__, where they are lost; this
            # is what its forward computes.
            states = self.model.text_model(**inputs, output_hidden_states=True).hidden_states[-1]
            return self.model.text_video_head(states[:, 0])
        return self.model.get_text_features(**inputs).pooler_output

    def _to_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: values.to(self.device, self.dtype if values.is_floating_point() else None)
            for name, values in inputs.items()
        }


class ImageTextEncoder(TransformersEncoder):
    """An image-text model: the embedding of a clip is the mean of the normalised embeddings of its frames.

    This is the mean pooling of CLIP4Clip (Luo et al., 2021, section 3.3).
    """

    kind = "mean of frames"

    def __init__(self, name: str, num_frames: int | None = None, trust_remote_code: bool = False):
        super().__init__(name, num_frames, trust_remote_code)
        self._image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
        self._has_masks = self.model.config.model_type == "siglip2"  # its inputs are patches with a mask and a shape

    @property
    def decoding_options(self) -> dict[str, Any]:
        options = super().decoding_options
        if self._has_masks:
            return options
        return {**options, "transform": self._preprocess_frame}  # one by one, so that memory holds no large frames

    def _preprocess_frame(self, frame: np.ndarray) -> np.ndarray:
        return self._image_processor(images=frame, return_tensors="pt")["pixel_values"][0].numpy()

    def preprocess(self, frames: np.ndarray, metadata: VideoMetadata | None = None) -> dict[str, torch.Tensor]:
        """Return the inputs of the model for the T frames of a clip."""
        if self._has_masks:
            return dict(self._image_processor(images=list(frames), return_tensors="pt"))
        return {"pixel_values": torch.from_numpy(frames)}

    @torch.inference_mode()
    def _encode_part(self, clips: Sequence[dict[str, torch.Tensor]]) -> EncodedClips:
        inputs = {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}  # (B * T, ...)
        frames = self.model.get_image_features(**self._to_device(inputs)).pooler_output  # (B * T, D)
        frames = normalize(frames.float(), dim=-1).unflatten(0, (len(clips), -1))
        return EncodedClips(normalize(frames.mean(dim=1), dim=-1).cpu())


class VideoTextEncoder(TransformersEncoder):
    """A video-text model: it embeds the frames of a clip together."""

    kind = "video"

    def __init__(self, name: str, num_frames: int | None = None, trust_remote_code: bool = False):
        super().__init__(name, num_frames, trust_remote_code)
        if self.model.config.model_type == "xclip":  # an image processor processes its frames
            processor: Any = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
            self._process_clip = partial(processor, return_tensors="pt")
        else:
            processor = AutoVideoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
            self._process_clip = partial(processor, do_sample_frames=False, return_tensors="pt")
        self._input_name = processor.model_input_names[0]

    @property
    def decoding_options(self) -> dict[str, Any]:
        return {**super().decoding_options, "transform": self._preprocess_frame}  # see `ImageTextEncoder`

    def _preprocess_frame(self, frame: np.ndarray) -> np.ndarray:
        return self._process_clip([frame[None]])[self._input_name][0, 0].numpy()

    def preprocess(self, frames: np.ndarray, metadata: VideoMetadata | None = None) -> dict[str, torch.Tensor]:
        """Return the input of the model for a clip, `(1, T, 3, height, width)`."""
        return {self._input_name: torch.from_numpy(frames)[None]}

    @torch.inference_mode()
    def _encode_part(self, clips: Sequence[dict[str, torch.Tensor]]) -> EncodedClips:
        inputs = {name: torch.cat([clip[name] for clip in clips]) for name in clips[0]}  # (B, T, ...)
        embeddings = self._embed_videos(**self._to_device(inputs)).reshape(len(clips), -1)
        return EncodedClips(normalize(embeddings.float(), dim=-1).cpu())

    def _embed_videos(self, **inputs: torch.Tensor) -> torch.Tensor:
        if self.model.config.model_type == "pe_video":  # see `_embed_texts`
            return self.model.video_head(self.model.video_encoder(**inputs).pooler_output)
        return self.model.get_video_features(**inputs).pooler_output


__all__ = ["IMAGE_TEXT", "VIDEO_TEXT", "ImageTextEncoder", "VideoTextEncoder"]
