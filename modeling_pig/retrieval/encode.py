"""Files -> embeddings: loads a model's half, encodes texts, and encodes videos batch by batch while threads decode."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from modeling_pig import PigForRetrieval, PigProcessor, PigTextModel, PigVideoModel

from ..video_decoding_pig import VideoDecodingError, decode_video


VIDEO_EXTENSIONS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}


class VideoSegment(NamedTuple):
    """A part of a video file: from `start` to before `end`, in seconds after its first frame."""

    path: str
    start: float | None = None
    end: float | None = None


@dataclass
class EncodedVideos:
    """One batch: `embeds` (B, D) float32, normalised, on the CPU - or (B, S, D) context tokens, not normalised, of a
    `single_tower` model - with each video's path, the duration of its file in seconds (`None` where the file does not
    tell), and its position among all videos that were to be encoded: those that cannot be decoded leave gaps."""

    paths: list[str]
    embeds: torch.Tensor
    durations: list[float | None]
    positions: list[int]


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
    except (OSError, ValueError, StrictDataclassError, SafetensorError, httpx.HTTPError) as error:
        raise ValueError(f"The model {name_or_folder} cannot be loaded: {_one_line(error)}") from error
    try:
        processor = PigProcessor.from_pretrained(name_or_folder)
    except (OSError, ValueError, KeyError, TypeError, httpx.HTTPError) as error:
        raise ValueError(
            f"{name_or_folder} has a model but no processor that can be loaded ({_one_line(error)}): save one there "
            "with PigProcessor.save_pretrained."
        ) from error
    return model.eval(), processor


def _one_line(error: Exception) -> str:
    """The first two lines of a message: transformers says in the second what to do."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


def model_fingerprint(name_or_folder: str) -> str:
    """16 hexadecimal digits that tell a model's weights from any other's, without reading all of them.

    Hashes each safetensors file's size, its header and 64 samples spread over it: two trainings differ in all of these
    samples, a copy of a model in none.
    """
    digest = hashlib.sha256()
    for shard in _weight_files(name_or_folder):
        size = os.path.getsize(shard)
        digest.update(str(size).encode())
        with open(shard, "rb") as file:
            for position in range(0, size, max(size // 64, 1)):
                file.seek(position)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


def _weight_files(name_or_folder: str) -> list[str]:
    weights = cached_file(name_or_folder, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if weights:
        return [weights]
    try:  # large models are saved in several files, which an index names
        index = cached_file(name_or_folder, SAFE_WEIGHTS_INDEX_NAME)
    except OSError as error:
        raise ValueError(
            f"{name_or_folder} has no weights that can be read (model.safetensors; PIG reads no other format): "
            f"{_one_line(error)}"
        ) from error
    return get_checkpoint_shard_files(name_or_folder, index)[0]


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


@torch.inference_mode()
def encode_videos(
    model: PigVideoModel | PigForRetrieval,
    processor: PigProcessor,
    videos: Iterable[str | VideoSegment],
    failures: list[VideoDecodingError],
    batch_size: int = 16,
    num_threads: int | None = None,
) -> Iterator[EncodedVideos]:
    """Encodes videos in order, a batch at a time, in bounded memory.

    Args:
        videos (`Iterable[str | VideoSegment]`): video files, folders of frames, or parts of files.
        failures (`list[VideoDecodingError]`): gets one entry for each video that cannot be decoded; the rest goes on.
        batch_size (`int`): videos a forward pass.
        num_threads (`int`, *optional*): files decoded at a time, while the model works; by default one a core.
    """
    decoded = _decoded(videos, processor, 2 * batch_size, num_threads or os.cpu_count() or 1)
    readable = (video for video in decoded if not _set_aside(video, failures))
    while batch := list(islice(readable, batch_size)):
        positions, paths, clips, durations = map(list, zip(*batch, strict=True))
        pixels = torch.cat(clips)  # (B, T, 3, height, width)
        features = model.get_video_features(pixels.to(model.device, model.dtype))
        if model.config.framework == "single_tower":
            embeds = features.context_embeds.float()
        else:
            embeds = torch.nn.functional.normalize(features.pooler_output.float(), dim=-1)
        yield EncodedVideos(paths, embeds.cpu(), durations, positions)


def _decoded(
    videos: Iterable[str | VideoSegment], processor: PigProcessor, ahead: int, num_threads: int
) -> Iterator[Any]:
    """(position, path, pixels (1, T, 3, height, width), duration) of each video in order, or the error that stood in
    the way.

    Threads, not processes: decoding and resizing work outside the interpreter's lock, and what has been opened before
    (an index, a GPU, a tokenizer) need not survive a fork. At most `ahead` videos are held in memory.
    """

    def decode(position: int, video: str | VideoSegment):
        path, start, end = video if isinstance(video, VideoSegment) else VideoSegment(video)
        try:
            frames, metadata = decode_video(path, processor.video_processor.num_frames, start=start, end=end)
        except VideoDecodingError as error:
            return error
        inputs = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
        return position, path, inputs["pixel_values_videos"], metadata.duration

    remaining = enumerate(videos)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            pending = deque(pool.submit(decode, *video) for video in islice(remaining, ahead))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(decode, *video) for video in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _set_aside(video: Any, failures: list[VideoDecodingError]) -> bool:
    if isinstance(video, VideoDecodingError):
        failures.append(video)
        return True
    return False


__all__ = [
    "EncodedVideos",
    "VideoSegment",
    "encode_texts",
    "encode_videos",
    "find_videos",
    "load_pretrained",
    "model_fingerprint",
]
