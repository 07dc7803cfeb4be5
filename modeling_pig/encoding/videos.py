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
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from ..files import hash_file, make_content_id
from ..remote import file_state, open_source
from ..remote.errors import stopping
from ..video_decoding_pig import VideoDecodingError, decode_segments, decode_video
from .encoder import Encoder
from .shots import decode_shots
from .video_segment import ShotRule, VideoSegment


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
        content_id (`str`): identifier made from the content, see [`make_content_id`].
        context_embeds (`torch.Tensor` of shape `(N, S, embedding_dim)`, *optional*): context tokens, float16, not
            normalised, on the CPU; only if they were asked for.
    """

    segments: list[VideoSegment]
    embeddings: torch.Tensor
    duration: float | None
    size: int
    modified: int
    content_hash: str | None
    content_id: str
    context_embeds: torch.Tensor | None = None

    @property
    def path(self) -> str:
        return self.segments[0].path


@dataclass
class EncodedVideos:
    """A batch of B encoded videos.

    Attributes:
        paths (`list[str]`): files of the videos.
        embeddings (`torch.Tensor` of shape `(B, embedding_dim)`): float32, normalised, on the CPU. For `single_tower`
            models, the class token.
        durations (`list[float | None]`): durations of the files in seconds; `None` if the file does not state it.
        positions (`list[int]`): positions of the videos in the input of [`encode_videos`]. They are in order; the
            positions of failed videos are missing.
        context_embeds (`torch.Tensor` of shape `(B, S, embedding_dim)`, *optional*): context tokens of the videos,
            float32, not normalised, on the CPU; of models that can re-rank.
    """

    paths: list[str]
    embeddings: torch.Tensor
    durations: list[float | None]
    positions: list[int]
    context_embeds: torch.Tensor | None


def encode_videos(
    encoder: Encoder,
    videos: Iterable[str | VideoSegment],
    failures: list[VideoDecodingError],
    batch_size: int = 16,
    num_threads: int | None = None,
) -> Iterator[EncodedVideos]:
    """Encode videos in order, batch by batch, in bounded memory.

    Args:
        videos (`Iterable[str | VideoSegment]`): video files, folders of frames, or segments of files.
        failures (`list[VideoDecodingError]`): receives one error per video that cannot be decoded. The other videos
            are encoded.
        batch_size (`int`): videos per forward pass.
        num_threads (`int`, *optional*): videos decoded at the same time, one per core by default.
    """
    decoded = _decode_in_order(encoder, videos, failures, 2 * batch_size, num_threads or os.cpu_count() or 1)
    while batch := list(islice(decoded, batch_size)):
        embeddings, context_embeds = encoder.encode_clips([video.clip for video in batch])
        yield EncodedVideos(
            paths=[video.path for video in batch],
            embeddings=embeddings,
            durations=[video.duration for video in batch],
            positions=[video.position for video in batch],
            context_embeds=None if context_embeds is None else context_embeds.float().cpu(),
        )


class _DecodedVideo(NamedTuple):
    position: int
    path: str
    clip: Any  # inputs of the model
    duration: float | None


def _decode_in_order(
    encoder: Encoder,
    videos: Iterable[str | VideoSegment],
    failures: list[VideoDecodingError],
    ahead: int,
    num_threads: int,
) -> Iterator[_DecodedVideo]:
    """Decode videos in threads, and yield them in the order of the input. Memory holds at most `ahead` videos.

    Threads instead of processes: decoding and resizing release the interpreter lock, and open resources (an index, a
    GPU, a tokenizer) need not survive a fork.
    """

    def decode(position: int, video: str | VideoSegment) -> _DecodedVideo | VideoDecodingError:
        path, start, end = video if isinstance(video, VideoSegment) else VideoSegment(video)
        decode_clip = partial(decode_video, num_frames=encoder.num_frames, start=start, end=end)
        try:
            with open_source(path) as source:
                frames, metadata = decode_clip(source, **encoder.decoding_options)
        except VideoDecodingError as error:
            return error
        return _DecodedVideo(position, path, encoder.preprocess(frames, metadata), metadata.duration)

    remaining = enumerate(videos)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            pending = deque(pool.submit(decode, *video) for video in islice(remaining, ahead))
            while pending:
                decoded = pending.popleft().result()
                if isinstance(decoded, VideoDecodingError):
                    failures.append(decoded)
                else:
                    yield decoded
                pending.extend(pool.submit(decode, *video) for video in islice(remaining, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def encode_files(
    encoder: Encoder,
    paths: Iterable[str],
    failures: list[VideoDecodingError],
    split: Split | ShotRule = lambda duration: [(None, None)],
    with_hash: bool = False,
    batch_size: int = 16,
    num_threads: int | None = None,
    with_context: bool = False,
) -> Generator[EncodedFile, None, None]:
    """Encode video files, segment by segment; yield each file once all its segments are encoded.

    A file is decoded in one pass. Memory holds the frames of about `3 * batch_size` segments, whatever the number and
    length of the files.

    Args:
        paths (`Iterable[str]`): video files, or folders of frames.
        failures (`list[VideoDecodingError]`): receives one error per file that cannot be decoded, or that changed
            during both of two attempts to read it. The other files are encoded.
        split (`Callable` or `ShotRule`): returns the segments of a video from its duration, see
            [`Segmentation.split`]; or the lengths of the shots that are the segments. By default each video is one
            segment. Folders of frames have no times, and are not split into shots.
        with_hash (`bool`): also hash each file, see [`hash_file`].
        batch_size (`int`): segments per forward pass.
        num_threads (`int`, *optional*): files decoded at the same time, one per core by default.
        with_context (`bool`): also return context tokens.
    """
    read = partial(_read_file, encoder, split, with_hash, count())
    batch: list[tuple[int, Any]] = []  # (reading, clip) of the segments to encode next
    # Embeddings (embedding_dim,) and context tokens (S, embedding_dim) by reading, until it is complete.
    encoded: dict[int, list[tuple[torch.Tensor, torch.Tensor | None]]] = {}
    read_files: dict[int, _ReadFile] = {}  # files that are read to the end, by reading

    def encode_batch() -> None:
        embeddings, context_embeds = encoder.encode_clips([clip for _, clip in batch])
        contexts: Any = [None] * len(batch)
        if with_context and context_embeds is not None:
            contexts = context_embeds.half().cpu()
        for (reading, _), embedding, context in zip(batch, embeddings, contexts, strict=True):
            encoded[reading].append((embedding, context))
        batch.clear()

    def completed() -> Iterator[EncodedFile]:
        for reading in [r for r, file in read_files.items() if len(file.segments) == len(encoded[r])]:
            file = read_files.pop(reading)
            embeddings, contexts = zip(*encoded.pop(reading), strict=True)
            context_embeds = torch.stack(contexts) if with_context else None
            yield EncodedFile(file.segments, torch.stack(embeddings), *file[1:], context_embeds)

    with closing(_in_threads(read, paths, 2 * batch_size, num_threads or os.cpu_count() or 1)) as events:
        for reading, event in events:
            if isinstance(event, _Clip):
                encoded.setdefault(reading, [])
                batch.append((reading, event.inputs))
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
    assert not (batch or encoded or read_files), "a file was started but not completed"


def encode_file(encoder: Encoder, path: str, split: Split | ShotRule) -> EncodedFile:
    """Encode one video file, segment by segment, see [`encode_files`].

    Raises:
        VideoDecodingError: the file cannot be decoded.
    """
    failures: list[VideoDecodingError] = []
    encoded = list(encode_files(encoder, [path], failures, split, num_threads=1))
    if failures:
        raise failures[0]
    return encoded[0]


class _Clip(NamedTuple):
    """A decoded clip, as inputs of the model."""

    inputs: Any


class _ReadFile(NamedTuple):
    """A file whose segments are all decoded: [`EncodedFile`] without its embeddings."""

    segments: list[VideoSegment]
    duration: float | None
    size: int
    modified: int
    content_hash: str | None
    content_id: str


def _read_file(
    encoder: Encoder, split: Split | ShotRule, with_hash: bool, readings: Iterator[int], path: str
) -> Iterator[tuple[int, _Clip | _ReadFile | VideoDecodingError | None]]:
    """Decode a file: yield the clip of each segment, then the file's facts.

    Yields an error instead if the file cannot be decoded, and `None` if the file is going to be read a second time.
    The first element of each pair is the number of this reading, the next of `readings`.
    """
    for _ in range(2):
        reading, state = next(readings), _state(path)
        failure: VideoDecodingError | None = None
        duration = content_hash = content_id = None
        spans: list[tuple[float | None, float | None]] = []
        try:
            with open_source(path, state) as source:
                for frames, metadata, span in _decode_segments(encoder, source, split):
                    yield reading, _Clip(encoder.preprocess(frames, metadata))
                    duration = metadata.duration
                    spans.append(span)
                content_hash = hash_file(source) if with_hash else None
                content_id = make_content_id(source)
        except VideoDecodingError as error:
            failure = error
        except OSError as error:
            failure = VideoDecodingError(path, f"the file cannot be read: {error.strerror}")
        if _state(path) != state:  # replaced or still being written, which may also be the reason of a failure
            yield reading, None
        elif failure is not None or state is None or content_id is None:
            yield reading, failure
            return
        else:
            if isinstance(split, ShotRule) and len(spans) == 1:
                spans = [(None, None)]
            segments = [VideoSegment(path, *span) for span in spans]
            yield reading, _ReadFile(segments, duration, state[0], state[1], content_hash, content_id)
            return
    yield reading, VideoDecodingError(path, "changed while it was read; run again")


def _decode_segments(
    encoder: Encoder, source: str | BinaryIO, split: Split | ShotRule
) -> Iterator[tuple[np.ndarray, VideoMetadata, tuple[float | None, float | None]]]:
    """Decode the clip of each segment of a file; yield its frames, metadata of the file, start and end."""
    if isinstance(split, ShotRule) and not (isinstance(source, str) and os.path.isdir(source)):
        yield from decode_shots(source, encoder.num_frames, split, **encoder.decoding_options)
        return
    spans: list[tuple[float | None, float | None]] = []

    def split_once(duration: float | None) -> list[tuple[float | None, float | None]]:
        spans[:] = [(None, None)] if isinstance(split, ShotRule) else split(duration)
        return spans

    clips = decode_segments(source, encoder.num_frames, split_once, **encoder.decoding_options)
    for number, (frames, metadata) in enumerate(clips):
        yield frames, metadata, spans[number]


def _state(path: str) -> tuple[int, ...] | None:
    try:
        return file_state(path)
    except OSError:
        return None  # opening the file will report the reason


def _in_threads(
    read: Callable[[str], Iterator[Any]], paths: Iterable[str], ahead: int, num_threads: int
) -> Generator[Any, None, None]:
    """Read files in threads, and yield their events as they come; the events of one file are in order.

    Unlike in [`_decode_in_order`], a file need not fit into memory. The threads pause while `ahead` events wait to be
    consumed. Closing the generator ends the threads.

    Args:
        read (`Callable`): yields the events of one file.
        paths (`Iterable[str]`): files.
    """
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
        except Exception as error:  # a bug: raised again in the consuming thread
            put(error)
        finally:
            put(None)  # this thread ends

    with ThreadPoolExecutor(num_threads, initializer=stopping.set, initargs=(stop,)) as pool:
        try:
            for _ in range(num_threads):
                pool.submit(work)
            num_working = num_threads
            while num_working:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    num_working -= 1
                else:
                    yield event
        finally:
            stop.set()


__all__ = ["EncodedFile", "EncodedVideos", "encode_file", "encode_files", "encode_videos"]
