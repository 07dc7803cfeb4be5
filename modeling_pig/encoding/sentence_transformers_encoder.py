"""Embed videos with models of `sentence-transformers` that take video, or images, and text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers.video_utils import VideoMetadata

from .encoder import DEFAULT_NUM_FRAMES, EncodedClips, Encoder
from .text_encoder import check_sentences


_TEXTS_PER_BATCH = 32


class SentenceTransformersEncoder(Encoder):
    """A model of `sentence-transformers`: texts are queries and clips are documents, each with the model's prompt.

    A model that takes video embeds the frames of a clip together. For a model that takes images only, the embedding of
    a clip is the mean of the normalised embeddings of its frames.

    Args:
        name (`str`): model on the Hub, or folder of the model.
        num_frames (`int`, *optional*): frames per clip, by default 12.
        trust_remote_code (`bool`): run code of the model's repository.

    Raises:
        ValueError: the model takes neither video nor images, or no text.
    """

    def __init__(self, name: str, num_frames: int | None = None, trust_remote_code: bool = False):
        model = SentenceTransformer(
            name, device="cpu", trust_remote_code=trust_remote_code, model_kwargs={"use_safetensors": True}
        )
        modalities = [modality for modality in ("text", "video", "image") if model.supports(modality)]
        if "text" not in modalities or len(modalities) < 2:
            raise ValueError(f"it takes {', '.join(modalities) or 'nothing'}, and must take text and video or images")
        super().__init__(model)
        self.takes_video = "video" in modalities
        self.kind = "sentence-transformers, " + ("video" if self.takes_video else "mean of frames")
        self.name = name
        self.num_frames = num_frames or DEFAULT_NUM_FRAMES
        video_processor = getattr(getattr(model[0], "processor", None), "video_processor", None)
        if video_processor is not None:
            video_processor.do_sample_frames = False  # the frames of a clip are sampled when it is decoded
        self.embedding_dim = self.encode_texts(["a video"]).shape[1]

    def preprocess(self, frames: np.ndarray, metadata: VideoMetadata | None = None) -> list[Any]:
        """Return the documents of a clip: one video, or its T frames."""
        if not self.takes_video:
            return [Image.fromarray(frame) for frame in frames]
        video: dict[str, Any] = {"array": frames, "video_metadata": None}
        if metadata is not None and metadata.fps and metadata.frames_indices is not None:
            # Qwen3-VL writes the time of each frame into its prompt: that after the start of the clip.
            numbers = [int(number) - int(metadata.frames_indices[0]) for number in metadata.frames_indices]
            video["video_metadata"] = {
                "total_num_frames": numbers[-1] + 1,
                "fps": metadata.fps,
                "frames_indices": numbers,
            }
        return [{"video": video}]

    @torch.inference_mode()
    def _encode_part(self, clips: Sequence[list[Any]]) -> EncodedClips:
        documents = [document for clip in clips for document in clip]
        found = self.model.encode_document(documents, convert_to_tensor=True, show_progress_bar=False)
        by_clip = normalize(found.float(), dim=-1).unflatten(0, (len(clips), -1))  # (B, 1 or T, D)
        return EncodedClips(normalize(by_clip.mean(dim=1), dim=-1).cpu())

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], max_tokens: int | None = None) -> torch.Tensor:
        check_sentences(texts)
        limit, self.model.max_seq_length = self.model.max_seq_length, max_tokens or self.model.max_seq_length
        try:
            found = self.model.encode_query(
                list(texts), batch_size=_TEXTS_PER_BATCH, convert_to_tensor=True, show_progress_bar=False
            )
        finally:
            self.model.max_seq_length = limit
        return normalize(found.float(), dim=-1).cpu()


__all__ = ["SentenceTransformersEncoder"]
