"""Files -> embeddings: loads a model's half, encodes texts, and encodes videos batch by batch while threads decode."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from queue import Full, Queue
from threading import Event, Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx
from safetensors import SafetensorError
from transformers import PreTrainedModel

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigTextModel, PigVideoModel

from ..video_decoding_pig import VideoDecodingError, decode_video, decode_windows, list_frames
from .index import VideoEntry
from .model_files import check_model_name
from .segments import Segmentation
from .text_encoder import check_sentences


class VideoSegment(NamedTuple):
    """A part of a video file: from `start` to before `end`, in seconds after its first frame."""

    path: str
    start: float | None = None
    end: float | None = None


class EncodedFile(NamedTuple):
    """A video file as [`VideoIndex.upsert`] takes it: N entries, one for the whole or one a window, and `embeds`
    (N, D) float32, normalised, on the CPU."""

    entries: list[VideoEntry]
    embeds: torch.Tensor


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
    check_model_name(name_or_folder)
    config_class: Any = model_class.config_class
    try:
        kind = config_class.get_config_dict(name_or_folder)[0].get("model_type")
        if kind not in (PigConfig.model_type, config_class.model_type):  # transformers would fill in random weights
            raise ValueError(
                f"it is no PIG model (model_type is {kind!r}). hub_scripts/init_from_clip.py makes one from CLIP's"
            )
        loaded: Any = model_class.from_pretrained(name_or_folder, output_loading_info=True)
        model, info = loaded
        if missing := info["missing_keys"]:
            raise ValueError(f"it lacks {len(missing)} of the weights, such as {min(missing)}")
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
    check_sentences(texts)
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
        yield EncodedVideos(paths, _embed(model, clips), durations, positions)


def _embed(model: PigVideoModel | PigForRetrieval, clips: list[torch.Tensor]) -> torch.Tensor:
    """Clips, each (1, T, 3, height, width), -> the embeddings of [`EncodedVideos`]."""
    pixels = torch.cat(clips)  # (B, T, 3, height, width)
    features = model.get_video_features(pixels.to(model.device, model.dtype))
    if model.config.framework == "single_tower":
        return features.context_embeds.float().cpu()
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=-1).cpu()


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
        return position, path, _pixels(processor, frames), metadata.duration

    remaining = enumerate(videos)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            pending = deque(pool.submit(decode, *video) for video in islice(remaining, ahead))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(decode, *video) for video in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _pixels(processor: PigProcessor, frames: np.ndarray) -> torch.Tensor:
    """Decoded frames (T, height, width, 3) -> what the model reads, (1, T, 3, height, width)."""
    return processor(videos=frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]


def _set_aside(video: Any, failures: list[VideoDecodingError]) -> bool:
    if isinstance(video, VideoDecodingError):
        failures.append(video)
        return True
    return False


@torch.inference_mode()
def encode_files(
    model: PigVideoModel | PigForRetrieval,
    processor: PigProcessor,
    paths: Iterable[str],
    failures: list[VideoDecodingError],
    segmentation: Segmentation | None = None,
    with_hash: bool = False,
    batch_size: int = 16,
    num_threads: int | None = None,
) -> Generator[EncodedFile, None, None]:
    """Encodes video files for an index, long ones in windows: each file comes as soon as all of it is done.

    A file is decoded in one pass, and however many and however long the files are, the frames of some `3 * batch_size`
    windows are in memory. Not for `single_tower` models, which have no one vector a video.

    Args:
        paths (`Iterable[str]`): video files, or folders of frames.
        failures (`list[VideoDecodingError]`): gets one entry for each file that cannot be decoded, or that changed
            while it was read and did so again when it was read once more; the rest goes on.
        segmentation (`Segmentation`, *optional*): what makes windows of long videos.
        with_hash (`bool`): compute the hash of each file, see [`file_hash`].
        batch_size (`int`): windows a forward pass.
        num_threads (`int`, *optional*): files decoded at a time, while the model works; by default one a core.
    """
    read = partial(_read_file, processor, segmentation or Segmentation(), with_hash, count())
    batch: list[tuple[int, torch.Tensor]] = []  # windows to encode next, each with the number of its reading
    encoded: dict[int, list[torch.Tensor]] = {}  # the embeddings (D,) of each reading that goes on
    entries_of: dict[int, list[VideoEntry]] = {}  # of readings that have come to their end

    def encode_batch() -> None:
        embeds = _embed(model, [clip for _, clip in batch])
        for (reading, _), embed in zip(batch, embeds, strict=True):
            encoded[reading].append(embed)
        batch.clear()

    def finished() -> Iterator[EncodedFile]:
        for reading in [r for r, entries in entries_of.items() if len(entries) == len(encoded[r])]:
            yield EncodedFile(entries_of.pop(reading), torch.stack(encoded.pop(reading)))

    with closing(_in_threads(read, paths, 2 * batch_size, num_threads or os.cpu_count() or 1)) as events:
        for reading, event in events:
            if isinstance(event, torch.Tensor):
                encoded.setdefault(reading, [])
                batch.append((reading, event))
                if len(batch) == batch_size:
                    encode_batch()
            elif isinstance(event, list):
                entries_of[reading] = event
            else:  # what came of this reading is void
                encoded.pop(reading, None)
                batch[:] = [window for window in batch if window[0] != reading]
                failures += [] if event is None else [event]
            yield from finished()
    if batch:
        encode_batch()
        yield from finished()
    assert not (batch or encoded or entries_of), "a file was begun and not finished"


def _read_file(
    processor: PigProcessor, segmentation: Segmentation, with_hash: bool, readings: Iterator[int], path: str
) -> Iterator[tuple[int, torch.Tensor | list[VideoEntry] | VideoDecodingError | None]]:
    """Decodes a file: the pixels (1, T, 3, height, width) of each window, then the entries of all; or an error, or
    `None` where the file is going to be read again. Each comes with the number of this reading, next of `readings`."""
    num_frames = processor.video_processor.num_frames
    for _ in range(2):
        reading, state = next(readings), _state(path)
        problem: VideoDecodingError | None = None
        duration = content_hash = None
        try:
            for frames, metadata in decode_windows(path, num_frames, segmentation.windows):
                yield reading, _pixels(processor, frames)
                duration = metadata.duration
            content_hash = file_hash(path) if with_hash else None
        except VideoDecodingError as error:
            problem = error
        if _state(path) != state:  # replaced or still being written: then a problem means nothing either
            yield reading, None
        elif problem is not None or state is None:
            yield reading, problem
            return
        else:
            windows = segmentation.windows(duration)
            yield reading, [VideoEntry(path, *window, duration, *state[:2], content_hash) for window in windows]
            return
    yield reading, VideoDecodingError(path, "changed while it was read; run again")


def _state(path: str) -> tuple[int, int, int] | None:
    """Size, time of the last change in ns and number of a file: one that is written or replaced has another."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


def file_hash(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal; of a folder of frames, that of the list of their hashes and names.

    Raises:
        VideoDecodingError: a file that cannot be read.
    """
    if names := list_frames(path):
        lines = [f"{file_hash(os.path.join(path, name))}  {name}\n" for name in names]
        return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise VideoDecodingError(path, f"the file cannot be read: {error.strerror}") from error


def _in_threads(
    read: Callable[[str], Iterator[Any]], paths: Iterable[str], ahead: int, num_threads: int
) -> Generator[Any, None, None]:
    """What `read` yields for each path, in the order in which it comes from the threads; they wait when they are
    `ahead` of it. Threads for the reasons that [`_decoded`] gives; here a file need not be in memory as a whole."""
    events: Queue = Queue(ahead)
    stop = Event()
    remaining, lock = iter(paths), Lock()

    def put(event: Any) -> None:
        while not stop.is_set():
            try:
                return events.put(event, timeout=0.1)
            except Full:
                pass

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    path = next(remaining, None)
                if path is None:
                    return
                for event in read(path):
                    put(event)
                    if stop.is_set():
                        return
        except Exception as error:  # a fault of ours: for the thread that waits
            put(error)
        finally:
            put(None)

    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for _ in range(num_threads):
                pool.submit(work)
            while num_threads:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    num_threads -= 1
                else:
                    yield event
        finally:
            stop.set()


__all__ = [
    "EncodedFile",
    "EncodedVideos",
    "VideoSegment",
    "encode_files",
    "encode_texts",
    "encode_videos",
    "file_hash",
    "load_pretrained",
]
