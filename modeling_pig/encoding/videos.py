"""Encode videos into normalised embeddings, batch by batch while threads decode."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from queue import Full, Queue
from threading import Event, Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from modeling_pig import PigForRetrieval, PigProcessor, PigVideoModel

from ..files import hash_file
from ..video_decoding_pig import VideoDecodingError, decode_segments, decode_video
from .video_segment import VideoSegment


# Duration of a video in seconds, or `None` if unknown -> (start, end) of each segment; `(None, None)` is the whole.
Split: TypeAlias = Callable[[float | None], list[tuple[float | None, float | None]]]


class EncodedFile(NamedTuple):
    """The embeddings of one video file.

    Attributes:
        segments (`list[VideoSegment]`): the N segments of the file, in order of time.
        embeddings (`torch.Tensor` of shape `(N, embedding_dim)`): float32, normalised, on the CPU.
        duration (`float`, *optional*): of the file in seconds; `None` if the file does not state it.
        size, modified (`int`): of the file, in bytes and in ns since 1970.
        content_hash (`str`, *optional*): SHA-256 of the file, see [`hash_file`].
    """

    segments: list[VideoSegment]
    embeddings: torch.Tensor
    duration: float | None
    size: int
    modified: int
    content_hash: str | None

    @property
    def path(self) -> str:
        return self.segments[0].path


@dataclass
class EncodedVideos:
    """One batch: `embeddings` (B, D) float32, normalised, on the CPU - or (B, S, D) context tokens, not normalised, of a
    `single_tower` model - with each video's path, the duration of its file in seconds (`None` where the file does not
    tell), and its position among all videos that were to be encoded: those that cannot be decoded leave gaps."""

    paths: list[str]
    embeddings: torch.Tensor
    durations: list[float | None]
    positions: list[int]


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
    readable = (video for video in decoded if not _is_failure(video, failures))
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
        return position, path, _pixel_values(processor, frames), metadata.duration

    remaining = enumerate(videos)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            pending = deque(pool.submit(decode, *video) for video in islice(remaining, ahead))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(decode, *video) for video in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _pixel_values(processor: PigProcessor, frames: np.ndarray) -> torch.Tensor:
    """Decoded frames (T, height, width, 3) -> what the model reads, (1, T, 3, height, width)."""
    return processor(videos=frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]


def _is_failure(video: Any, failures: list[VideoDecodingError]) -> bool:
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
    split: Split = lambda duration: [(None, None)],
    with_hash: bool = False,
    batch_size: int = 16,
    num_threads: int | None = None,
) -> Generator[EncodedFile, None, None]:
    """Encode video files, segment by segment; yield each file once all its segments are encoded.

    A file is decoded in one pass. Memory holds the frames of about `3 * batch_size` segments, whatever the number and
    length of the files. `single_tower` models are not supported: they have no single vector per video.

    Args:
        paths (`Iterable[str]`): video files, or folders of frames.
        failures (`list[VideoDecodingError]`): receives one error per file that cannot be decoded, or that changed
            during both of two attempts to read it. The other files are encoded.
        split (`Callable`): returns the segments of a video from its duration, see [`Segmentation.split`]. By default
            each video is one segment.
        with_hash (`bool`): also hash each file, see [`hash_file`].
        batch_size (`int`): segments per forward pass.
        num_threads (`int`, *optional*): files decoded at the same time, one per core by default.
    """
    read = partial(_read_file, processor, split, with_hash, count())
    batch: list[tuple[int, torch.Tensor]] = []  # (reading, clip) of the segments to encode next
    encoded: dict[int, list[torch.Tensor]] = {}  # embeddings (embedding_dim,) by reading, until it is complete
    read_files: dict[int, _ReadFile] = {}  # files that are read to the end, by reading

    def encode_batch() -> None:
        embeddings = _embed(model, [clip for _, clip in batch])
        for (reading, _), embedding in zip(batch, embeddings, strict=True):
            encoded[reading].append(embedding)
        batch.clear()

    def completed() -> Iterator[EncodedFile]:
        for reading in [r for r, file in read_files.items() if len(file.segments) == len(encoded[r])]:
            file = read_files.pop(reading)
            yield EncodedFile(file.segments, torch.stack(encoded.pop(reading)), *file[1:])

    with closing(_in_threads(read, paths, 2 * batch_size, num_threads or os.cpu_count() or 1)) as events:
        for reading, event in events:
            if isinstance(event, torch.Tensor):
                encoded.setdefault(reading, [])
                batch.append((reading, event))
                if len(batch) == batch_size:
                    encode_batch()
            elif isinstance(event, _ReadFile):
                read_files[reading] = event
            else:  # discard this reading
                encoded.pop(reading, None)
                batch[:] = [item for item in batch if item[0] != reading]
                failures += [] if event is None else [event]
            yield from completed()
    if batch:
        encode_batch()
        yield from completed()
    assert not (batch or encoded or read_files), "a file was started and not finished"


class _ReadFile(NamedTuple):
    """A file whose segments are all decoded: [`EncodedFile`] without its embeddings."""

    segments: list[VideoSegment]
    duration: float | None
    size: int
    modified: int
    content_hash: str | None


def _read_file(
    processor: PigProcessor, split: Split, with_hash: bool, readings: Iterator[int], path: str
) -> Iterator[tuple[int, torch.Tensor | _ReadFile | VideoDecodingError | None]]:
    """Decode a file: yield `pixel_values_videos` (1, T, 3, height, width) of each segment, then the file's facts.

    Yields an error instead if the file cannot be decoded, and `None` if the file is going to be read a second time.
    The first element of each pair is the number of this reading, the next of `readings`.
    """
    num_frames = processor.video_processor.num_frames
    for _ in range(2):
        reading, state = next(readings), _state(path)
        failure: VideoDecodingError | None = None
        duration = content_hash = None
        try:
            for frames, metadata in decode_segments(path, num_frames, split):
                yield reading, _pixel_values(processor, frames)
                duration = metadata.duration
            content_hash = _hash(path) if with_hash else None
        except VideoDecodingError as error:
            failure = error
        if _state(path) != state:  # replaced or still being written: the failure, too, may be of that moment only
            yield reading, None
        elif failure is not None or state is None:
            yield reading, failure
            return
        else:
            segments = [VideoSegment(path, start, end) for start, end in split(duration)]
            yield reading, _ReadFile(segments, duration, *state[:2], content_hash)
            return
    yield reading, VideoDecodingError(path, "changed while it was read; run again")


def _hash(path: str) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise VideoDecodingError(path, f"the file cannot be read: {error.strerror}") from error


def _state(path: str) -> tuple[int, int, int] | None:
    """Size, time of the last change in ns and number of a file: one that is written or replaced has another."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


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


__all__ = ["EncodedFile", "EncodedVideos", "encode_files", "encode_videos"]
