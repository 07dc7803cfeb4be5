"""Training batches: split rows among processes, draw a caption and jittered frames per row, replace failed videos.

Batches depend on seed and epoch only, not on the number of workers and processes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers.feature_extraction_utils import BatchFeature

from modeling_pig import PigProcessor, PigVideoProcessor

from ..video_decoding_pig import VideoDecodingError, decode_video, sample_frame_indices
from .frame_cache import FrameCache


class BatchItem(NamedTuple):
    """
    Request for the sample at one position of a batch.

    Attributes:
        epoch (`int`): current epoch. Persistent workers do not learn of a new epoch otherwise.
        rows (`tuple[int, ...]`): rows of the batch of all processes together, so that the replacement of a failed
            video is not in the batch already.
        position (`int`): index into `rows`: the sample is read from `rows[position]`.
    """

    epoch: int
    rows: tuple[int, ...]
    position: int


class Sample(NamedTuple):
    """
    Frames of a video with one or more of its captions.

    Attributes:
        frames (`torch.Tensor` of shape `(T, 3, height, width)`): uint8, in the size that the model reads.
        captions (`list[str]`): randomly chosen captions.
        video_id (`str`): identifier of the video.
        failures (`list[tuple[str, str]]`): (video_id, reason) of each failed video that this sample replaces.
    """

    frames: torch.Tensor
    captions: list[str]
    video_id: str
    failures: list[tuple[str, str]]


class GlobalBatchSampler(Sampler[list[BatchItem]]):
    """Shuffle the rows in each epoch, and yield this process's share of every batch.

    It is the `batch_sampler` of a `DataLoader` of a [`VideoTextDataset`]. The batches of all processes together do not
    depend on the number of processes.

    Args:
        num_rows (`int`): rows of the dataset.
        batch_size (`int`): rows per step of all processes together; their shares differ by one row at most.
        seed (`int`): determines the order of the rows, together with the epoch.
        rank (`int`): index of this process.
        world_size (`int`): number of processes.
        drop_last (`bool`): leave out the rows that do not fill a batch. Otherwise they form a smaller last batch,
            which is left out only if it has fewer rows than there are processes.

    Attributes:
        steps_per_epoch (`int`): number of batches per epoch.

    Raises:
        ValueError: a batch has no row for each process, or the rows do not fill one batch.
    """

    def __init__(
        self, num_rows: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool = True
    ):
        if batch_size < world_size:
            raise ValueError(
                f"A batch of {batch_size} has no row for each of {world_size} processes: give a larger batch size."
            )
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.rank, self.world_size = rank, world_size
        full, rest = divmod(num_rows, batch_size)
        self.steps_per_epoch = full + (not drop_last and rest >= world_size)
        if self.steps_per_epoch == 0:
            raise ValueError(f"{num_rows} training videos do not fill one batch of {batch_size}: reduce it.")
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Set the epoch, which determines the order of the rows, and its first step.

        Raises:
            ValueError: the epoch has fewer steps.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"An epoch has {self.steps_per_epoch} steps, it cannot resume from step {start_step}.")
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        """Return the number of remaining batches of the epoch."""
        return self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[BatchItem]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_rows)
        for step in range(self.start_step, self.steps_per_epoch):
            rows = tuple(order[step * self.batch_size : (step + 1) * self.batch_size].tolist())
            first, stop = (len(rows) * rank // self.world_size for rank in (self.rank, self.rank + 1))
            yield [BatchItem(self.epoch, rows, position) for position in range(first, stop)]


class VideoTextDataset(Dataset[Sample]):
    """Read frames and captions of videos. A video is one sample per epoch, whatever its number of captions.

    The captions and the frames depend only on seed, epoch and row. A video that cannot be decoded is replaced by a
    video from outside the batch, which depends only on the batch and the position. Positions share no candidates:
    no video occurs twice, though processes do not know each other's replacements. If none of a position's candidates
    can be decoded, as may happen in a dataset of one or two batches, another sample of the batch is repeated, with the
    same captions and thus the same `caption_ids`.

    Args:
        rows (`datasets.Dataset` or `Sequence[dict]`): rows with `video_id`, `video` (path; empty if there is no file),
            `captions`, and optionally `start` and `end` of a segment of the file in seconds.
        video_processor (`PigVideoProcessor`): number of frames, T, and their size.
        seed (`int`): seed of all random choices.
        frame_cache (`FrameCache`, *optional*): cache of decoded frames. Frames are then drawn from the few cached
            frames of a video, not from all its frames.
        captions_per_video (`int`): captions of each sample, M: distinct ones if the video has enough.

    Attributes:
        num_missing (`int`): number of rows without a file; they are left out.
    """

    def __init__(
        self,
        rows,
        video_processor: PigVideoProcessor,
        seed: int,
        frame_cache: FrameCache | None = None,
        captions_per_video: int = 1,
    ):
        # Reading one column of a table is much faster than reading whole rows.
        videos = rows["video"] if hasattr(rows, "column_names") else [row["video"] for row in rows]
        self.rows = rows
        self.present = [index for index, video in enumerate(videos) if video]
        self.num_missing = len(rows) - len(self.present)
        self.video_processor = video_processor
        self.seed = seed
        self.frame_cache = frame_cache
        self.captions_per_video = captions_per_video

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, item: BatchItem) -> Sample:
        """Read the sample at a position of a batch.

        Raises:
            ValueError: neither the video nor any of its replacements can be decoded.
        """
        failures = []
        for index in chain([item.rows[item.position]], self._replacements(item)):
            row = self.rows[self.present[index]]
            try:
                frames, captions = self._read(row, np.random.default_rng([self.seed, item.epoch, index]))
            except VideoDecodingError as error:
                failures.append((row["video_id"], str(error)))
            else:
                return Sample(frames, captions, row["video_id"], failures)
        raise ValueError(
            f"{len(failures)} videos in a row cannot be decoded, and no other video is left: check the video "
            f"files. The last: {failures[-1][1]}"
        )

    def _replacements(self, item: BatchItem) -> Iterator[int]:
        """Yield replacements of a failed video; those from outside the batch belong to this position only."""
        rng = np.random.default_rng([self.seed, item.epoch, item.rows[0], 1])  # the same for all positions
        others = rng.permutation(len(self))
        others = others[~np.isin(others, item.rows)]
        yield from others[item.position :: len(item.rows)].tolist()
        yield from item.rows[item.position + 1 :] + item.rows[: item.position]

    def _read(self, row: dict, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
        path, start, end, captions = row["video"], row.get("start"), row.get("end"), row["captions"]
        if not captions:
            raise VideoDecodingError(path, "the video has no captions")
        count = self.captions_per_video
        if count == 1:
            chosen = [captions[rng.integers(len(captions))]]
        else:
            chosen = [captions[index] for index in rng.choice(len(captions), count, replace=len(captions) < count)]
        num_frames = self.video_processor.num_frames
        if self.frame_cache is None:
            frames, _ = decode_video(path, num_frames, rng, start, end, **self.video_processor.decoding_options)
            return torch.from_numpy(frames).permute(0, 3, 1, 2), chosen
        kept = self.frame_cache.load(path, start, end)
        return torch.from_numpy(kept[sample_frame_indices(len(kept), num_frames, rng)]), chosen


class TrainingCollator:
    """Collate samples into one batch, within the workers.

    Args:
        processor (`PigProcessor`): tokenizes the captions.
        max_text_tokens (`int`): maximum number of tokens per caption; longer captions are truncated.

    Returns:
        `BatchFeature` with `input_ids` and `attention_mask` (B, tokens), or (B, M, tokens) if samples have M > 1
        captions; `frames` (B, T, 3, height, width) uint8, for [`normalise_frames`]; `caption_ids` (B,) or (B, M)
        int64, equal for captions that differ only in case and white space; `video_ids` (`list[str]`); and `failures`
        (`list[tuple[str, str]]`), video_id and reason of each failed video that was replaced.
    """

    def __init__(self, processor: PigProcessor, max_text_tokens: int):
        self.processor = processor
        self.text_kwargs = {"max_length": max_text_tokens}

    def __call__(self, samples: list[Sample]) -> BatchFeature:
        captions = [caption for sample in samples for caption in sample.captions]
        batch = self.processor(text=captions, text_kwargs=self.text_kwargs, return_tensors="pt")
        batch["frames"] = torch.stack([sample.frames for sample in samples])
        batch["caption_ids"] = torch.tensor([caption_id(caption) for caption in captions])
        if (count := len(samples[0].captions)) > 1:
            for name in ("input_ids", "attention_mask", "caption_ids"):
                batch[name] = batch[name].unflatten(0, (-1, count))
        batch["video_ids"] = [sample.video_id for sample in samples]
        batch["failures"] = [failure for sample in samples for failure in sample.failures]
        return batch


def normalise_frames(frames: torch.Tensor, video_processor: PigVideoProcessor) -> torch.Tensor:
    """Convert uint8 frames (B, T, 3, height, width) to normalised `pixel_values_videos`, on their device."""
    return video_processor.rescale_and_normalize(
        frames,
        video_processor.do_rescale,
        video_processor.rescale_factor,
        video_processor.do_normalize,
        video_processor.image_mean,
        video_processor.image_std,
    )


def caption_id(caption: str) -> int:
    """Return a 63-bit hash of a caption, the same in every process and run; case and white space do not count."""
    words = " ".join(caption.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1


class FailureLog:
    """Collect failed videos, each once, and stop a run in which too many fail.

    Args:
        limit_share (`float`): share of the videos that may fail, from 0 to 1.
        num_videos (`int`): number of videos that the run reads.

    Attributes:
        reasons (`dict[str, str]`): `video_id` -> reason of the failure.
    """

    def __init__(self, limit_share: float, num_videos: int):
        self.limit_share, self.num_videos = limit_share, num_videos
        self.reasons: dict[str, str] = {}

    def add(self, failures: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Add failures as (video_id, reason); return those of videos that had not failed before.

        Raises:
            ValueError: the share of failed videos exceeds the limit.
        """
        new = {video_id: reason for video_id, reason in failures if video_id not in self.reasons}
        self.reasons |= new
        share = len(self.reasons) / self.num_videos
        if share > self.limit_share:
            names, more = ", ".join(list(self.reasons)[:5]), ", ..." if len(self.reasons) > 5 else ""
            raise ValueError(
                f"{len(self.reasons)} of {self.num_videos} videos ({share:.1%}) cannot be decoded, and at most "
                f"{self.limit_share:.1%} may: {names}{more}. The first: {next(iter(self.reasons.values()))}"
            )
        return list(new.items())


__all__ = [
    "BatchItem",
    "FailureLog",
    "GlobalBatchSampler",
    "Sample",
    "TrainingCollator",
    "VideoTextDataset",
    "caption_id",
    "normalise_frames",
]
