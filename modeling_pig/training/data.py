"""Training samples: one random caption and jittered frames of each video, the same for the same seed and epoch."""

import numpy as np
from torch.utils.data import Dataset
from transformers.feature_extraction_utils import BatchFeature

from modeling_pig import PigProcessor

from ..video_decoding_pig import decode_video


class VideoTextDataset(Dataset):
    """Rows of a split -> (frames, caption). A video is one sample an epoch, whatever its number of captions.

    Which caption and which frames depends on seed, epoch and row alone, not on workers or processes.
    """

    def __init__(self, rows, num_frames: int, seed: int):
        self.rows = rows
        self.num_frames = num_frames
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        row = self.rows[index]
        caption = row["captions"][rng.integers(len(row["captions"]))]
        frames, _ = decode_video(row["video"], self.num_frames, rng)
        return frames, caption


class TrainingCollator:
    """Samples -> one batch of the model's inputs; runs in the workers."""

    def __init__(self, processor: PigProcessor, max_text_tokens: int):
        self.processor = processor
        self.text_kwargs = {"max_length": max_text_tokens}

    def __call__(self, samples: list[tuple[np.ndarray, str]]) -> BatchFeature:
        videos, captions = zip(*samples, strict=True)
        return self.processor(
            text=list(captions),
            videos=list(videos),
            do_sample_frames=False,
            text_kwargs=self.text_kwargs,
            return_tensors="pt",
        )


__all__ = ["TrainingCollator", "VideoTextDataset"]
