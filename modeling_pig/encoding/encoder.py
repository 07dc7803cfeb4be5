"""One interface for the models that embed videos and texts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from modeling_pig import PigForRetrieval, PigProcessor, PigVideoModel

from ..video_torchcodec_pig import Decoder
from .activations import replace_activations
from .texts import encode_texts


DEFAULT_NUM_FRAMES = 12  # of models without a number of their own; that of CLIP4Clip and of the paper
# On a CPU, activations of more clips leave its caches: 16 clips of a ViT-B/32 in one pass take 1.1 times as long.
_CLIPS_PER_THREAD = 2


class EncodedClips(NamedTuple):
    """Embeddings of B clips.

    Attributes:
        embeddings (`torch.Tensor` of shape `(B, embedding_dim)`): float32, normalised, on the CPU.
        context_embeds (`torch.Tensor` of shape `(B, S, embedding_dim)`, *optional*): context tokens of models that can
            re-rank, not normalised, on the device of the model.
    """

    embeddings: torch.Tensor
    context_embeds: torch.Tensor | None = None


class Encoder(ABC):
    """A model that embeds videos and texts into one space, with its preprocessing; see [`load_encoder`].

    Attributes:
        kind (`str`): how the model embeds videos, as an index records it.
        name (`str`): model on the Hub, or folder of the model.
        revision (`str`, *optional*): commit of the model on the Hub.
        fingerprint (`str`): hash of the weights.
        embedding_dim (`int`): dimensions of an embedding, D.
        num_frames (`int`): frames per clip, T.
        decoding_options (`dict[str, Any]`): further arguments of [`decode_video`] by which clips are decoded.
        num_context_tokens (`int`, *optional*): context tokens per clip, S, of models that can re-rank.
        ranks_by_interaction (`bool`): whether a score is computed from a text and the context tokens of a video, so
            that embeddings alone do not rank as the model does (`single_tower`).
    """

    kind: str
    name: str
    revision: str | None = None
    fingerprint: str = ""
    embedding_dim: int
    num_frames: int
    num_context_tokens: int | None = None
    ranks_by_interaction: bool = False

    def __init__(self, model: torch.nn.Module):
        replace_activations(model)
        self.model: Any = model
        self._decoder: Decoder = "pyav"

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def decoding_options(self) -> dict[str, Any]:
        return {"sampling": "time", "decoder": self._decoder}

    def set_decoder(self, decoder: Decoder) -> None:
        """Decode videos with this library."""
        self._decoder = decoder

    @abstractmethod
    def preprocess(self, frames: np.ndarray, metadata: VideoMetadata | None = None) -> Any:
        """Convert the frames of a clip into inputs of the model. Threads may call this method at the same time.

        Args:
            frames (`np.ndarray` of shape `(T, ...)`): frames, decoded with `decoding_options`.
            metadata (`VideoMetadata`, *optional*): of the file, with the numbers of the frames, for models that read
                the times of the frames.
        """

    def encode_clips(self, clips: Sequence[Any]) -> EncodedClips:
        """Encode B clips, which [`preprocess`] returned; at least 1."""
        size = len(clips)
        if self.device.type == "cpu":
            size = _CLIPS_PER_THREAD * torch.get_num_threads()
        parts = [self._encode_part(clips[start : start + size]) for start in range(0, len(clips), size)]
        embeddings, contexts = zip(*parts, strict=True)
        return EncodedClips(torch.cat(embeddings), None if contexts[0] is None else torch.cat(contexts))

    @abstractmethod
    def _encode_part(self, clips: Sequence[Any]) -> EncodedClips:
        """Encode clips in one forward pass."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str], max_tokens: int | None = None) -> torch.Tensor:
        """Encode N texts into normalised embeddings, `(N, embedding_dim)` float32 on the CPU.

        Args:
            texts (`Sequence[str]`): queries or captions.
            max_tokens (`int`, *optional*): cut longer texts to this number of tokens; by default to the limit of the
                model.

        Raises:
            ValueError: a text is empty or not valid Unicode.
        """

    def score_context(self, text_embeds: torch.Tensor, context_embeds: torch.Tensor) -> torch.Tensor:
        """Return the cosines, `(Q, B)`, of queries and videos that are pooled for each of them.

        Args:
            text_embeds (`torch.Tensor` of shape `(Q, D)`): embeddings of queries.
            context_embeds (`torch.Tensor` of shape `(B, S, D)`): context tokens of videos.

        Raises:
            ValueError: the model cannot re-rank.
        """
        raise ValueError(f"{self.name} cannot re-rank: that needs a hybrid or single_tower PIG model.")


class PigEncoder(Encoder):
    """A PIG model and its processor.

    Args:
        model (`PigForRetrieval` or `PigVideoModel`): model. `PigVideoModel` has no texts.
        processor (`PigProcessor`): its processor.
        name (`str`, *optional*): model on the Hub, or folder of the model.
        fingerprint (`str`, *optional*): hash of the weights.
    """

    kind = "pig"

    def __init__(
        self, model: PigForRetrieval | PigVideoModel, processor: PigProcessor, name: str = "", fingerprint: str = ""
    ):
        super().__init__(model)
        self.processor, self.name, self.fingerprint = processor, name, fingerprint
        config = model.config
        self.embedding_dim = config.projection_dim
        self.num_frames = processor.video_processor.num_frames
        self.ranks_by_interaction = config.framework == "single_tower"
        if config.framework != "two_tower":
            self.num_context_tokens = config.vision_config.num_context_tokens(self.num_frames)

    @property
    def decoding_options(self) -> dict[str, Any]:
        return self.processor.video_processor.decoding_options

    def set_decoder(self, decoder: Decoder) -> None:
        self.processor.video_processor.decoder = decoder

    def preprocess(self, frames: np.ndarray, metadata: VideoMetadata | None = None) -> torch.Tensor:
        """Convert frames, `(T, height, width, 3)` uint8, into `pixel_values_videos`, `(1, T, 3, height, width)`."""
        return self.processor(videos=frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]

    @torch.inference_mode()
    def _encode_part(self, clips: Sequence[torch.Tensor]) -> EncodedClips:
        pixel_values_videos = torch.cat(list(clips)).to(self.device, self.dtype)  # (B, T, 3, height, width)
        features = self.model.get_video_features(pixel_values_videos)
        embeddings = torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)
        return EncodedClips(embeddings.cpu(), features.context_embeds)

    def encode_texts(self, texts: Sequence[str], max_tokens: int | None = None) -> torch.Tensor:
        return encode_texts(self.model, self.processor, texts, max_tokens)

    def score_context(self, text_embeds: torch.Tensor, context_embeds: torch.Tensor) -> torch.Tensor:
        return self.model.similarity(text_embeds, context_embeds)


__all__ = ["DEFAULT_NUM_FRAMES", "EncodedClips", "Encoder", "PigEncoder"]
