"""Files -> embeddings: loads a model's half, encodes texts, and encodes videos batch by batch while workers decode."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel
from transformers.utils import cached_file

from modeling_pig import PigForRetrieval, PigProcessor, PigTextModel, PigVideoModel

from ..video_decoding_pig import VideoDecodingError, decode_video


VIDEO_EXTENSIONS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}


@dataclass
class EncodedVideos:
    """One batch: `embeds` (B, D) float32, normalised, on the CPU - or (B, S, D) context tokens, not normalised, of a
    `single_tower` model - with each video's path and duration in seconds (`None` where the file does not tell)."""

    paths: list[str]
    embeds: torch.Tensor
    durations: list[float | None]


def load_pretrained(model_class: type[PreTrainedModel], name_or_folder: str) -> tuple[Any, PigProcessor]:
    """A model's half and its processor: `(model in evaluation mode, PigProcessor)`.

    Args:
        model_class (`type`): [`PigTextModel`], [`PigVideoModel`] or [`PigForRetrieval`].
        name_or_folder (`str`): a model on the Hub, or a folder that `save_pretrained` wrote.

    Raises:
        ValueError: one line on what is missing: the folder, the model in it, or its processor.
    """
    folder = Path(name_or_folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{name_or_folder} holds no model (no config.json): give the folder that training wrote.")
    if not folder.is_dir() and (folder.is_absolute() or name_or_folder.count("/") != 1 or folder.parent.exists()):
        raise ValueError(f"There is no model folder {name_or_folder}: train one, or give the name of one on the Hub.")
    try:
        model = model_class.from_pretrained(name_or_folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"The model {name_or_folder} cannot be loaded: {_first_line(error)}") from error
    try:
        processor = PigProcessor.from_pretrained(name_or_folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{name_or_folder} has a model but no processor that can be loaded ({_first_line(error)}): save one there "
            "with PigProcessor.save_pretrained."
        ) from error
    return model.eval(), processor


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def model_fingerprint(name_or_folder: str) -> str:
    """16 hexadecimal digits that tell a model's weights from any other's, without reading all of them.

    Hashes each safetensors file's size, its header and 64 samples spread over it: two trainings differ in all of these
    samples, a copy of a model in none.
    """
    digest = hashlib.sha256()
    weights = cached_file(name_or_folder, "model.safetensors", _raise_exceptions_for_missing_entries=False)
    # A sharded model's index names its shards; hashing it and the first shard is enough to tell models apart.
    shards = [weights] if weights else sorted(Path(name_or_folder).glob("model-*.safetensors"))
    if not shards:
        raise ValueError(f"{name_or_folder} holds no model.safetensors: PIG reads no other format.")
    for shard in shards:
        size = os.path.getsize(shard)
        digest.update(str(size).encode())
        with open(shard, "rb") as file:
            for position in range(0, size, max(size // 64, 1)):
                file.seek(position)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


def find_videos(folder: str | os.PathLike) -> list[str]:
    """Absolute paths of the video files in a folder and its subfolders (or of one file), in order of name.

    A file counts by its extension; hidden files and folders do not.

    Raises:
        ValueError: no such folder, or one without videos.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        return [str(folder.resolve())]
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    videos = []
    for parent, folders, files in os.walk(folder.resolve()):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in [*folders, *files] if not name.startswith("."))
        videos += [os.path.join(parent, name) for name in names if Path(name).suffix.lower() in VIDEO_EXTENSIONS]
    if not videos:
        known = ", ".join(sorted(VIDEO_EXTENSIONS))
        raise ValueError(f"{folder} holds no videos (files named {known}), nor do its subfolders.")
    return sorted(videos)


@torch.inference_mode()
def encode_texts(
    model: PigTextModel | PigForRetrieval,
    processor: PigProcessor,
    texts: Sequence[str],
    max_tokens: int | None = None,
    batch_size: int = 256,
) -> torch.Tensor:
    """Normalised embeddings of sentences, (Q, D) float32 on the CPU.

    Args:
        texts (`Sequence[str]`): sentences.
        max_tokens (`int`, *optional*): cut longer ones here, as a benchmark's protocol may ask; by default at the
            tokenizer's own limit, with a warning.
        batch_size (`int`): sentences a forward pass.

    Raises:
        ValueError: an empty sentence.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"Sentence {number + 1} of {len(texts)} is empty: say what to look for.")
    embeds = []
    for start in range(0, len(texts), batch_size):
        batch = list(texts[start : start + batch_size])
        inputs = processor(text=batch, text_kwargs={"max_length": max_tokens}, return_tensors="pt").to(model.device)
        embeds.append(model.get_text_features(**inputs).pooler_output.float().cpu())
    return torch.nn.functional.normalize(torch.cat(embeds), dim=-1)


class _VideoFiles(Dataset):
    """Paths -> decoded frames, or what stood in the way; runs in the workers."""

    def __init__(self, paths: Sequence[str], processor: PigProcessor):
        self.paths = paths
        self.processor = processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        path = self.paths[index]
        try:
            frames, metadata = decode_video(path, self.processor.video_processor.num_frames)
        except VideoDecodingError as error:
            return path, error, None
        return path, frames, metadata.duration

    def collate(self, items: list[tuple]) -> tuple[list, torch.Tensor | None, list[VideoDecodingError]]:
        decoded = [item for item in items if not isinstance(item[1], VideoDecodingError)]
        errors = [item[1] for item in items if isinstance(item[1], VideoDecodingError)]
        pixels = None
        if decoded:
            frames = [frames for _, frames, _ in decoded]
            inputs = self.processor(videos=frames, do_sample_frames=False, return_tensors="pt")
            pixels = inputs["pixel_values_videos"]
        return [(path, duration) for path, _, duration in decoded], pixels, errors


@torch.inference_mode()
def encode_videos(
    model: PigVideoModel | PigForRetrieval,
    processor: PigProcessor,
    paths: Sequence[str],
    failures: list[VideoDecodingError],
    batch_size: int = 16,
    num_workers: int | None = None,
) -> Iterator[EncodedVideos]:
    """Encodes video files in order, a batch at a time, in bounded memory.

    Args:
        paths (`Sequence[str]`): video files.
        failures (`list[VideoDecodingError]`): gets one entry for each file that cannot be decoded; the rest goes on.
        batch_size (`int`): videos a forward pass.
        num_workers (`int`, *optional*): decoding processes beside this one; by default a few, none for a few files.
    """
    if num_workers is None:
        num_workers = min(4, os.cpu_count() or 1) if len(paths) > 2 * batch_size else 0
    files = _VideoFiles(paths, processor)
    loader = DataLoader(files, batch_size=batch_size, num_workers=num_workers, collate_fn=files.collate)
    for videos, pixels, errors in loader:
        failures += errors
        if not videos:
            continue
        features = model.get_video_features(pixels.to(model.device, model.dtype))
        if model.config.framework == "single_tower":
            embeds = features.context_embeds.float()
        else:
            embeds = torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)
        yield EncodedVideos([path for path, _ in videos], embeds.cpu(), [duration for _, duration in videos])


__all__ = [
    "EncodedVideos",
    "encode_texts",
    "encode_videos",
    "find_videos",
    "load_pretrained",
    "model_fingerprint",
]
