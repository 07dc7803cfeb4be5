"""Find the annotated videos of a benchmark and check by decoding that each can be read."""

import os
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers.video_utils import VideoMetadata

from ..video_decoding_pig import VideoDecodingError, decode_video, list_frames
from . import create_builder
from .video_files import VideoFiles


NUM_PROBE_FRAMES = 8  # decoded of every segment, evenly spaced


@dataclass
class AnnotatedVideo:
    """
    A video that a benchmark annotates.

    Attributes:
        video_id (`str`): id of the video.
        source (`str`, *optional*): absolute path of its file or folder of frames; `None` if there is none.
        splits (`list[str]`): splits that hold the video.
        segments (`list[tuple]`): distinct annotated segments as (start, end) in seconds; (None, None): the whole
            video.
    """

    video_id: str
    source: str | None
    splits: list[str] = field(default_factory=list)
    segments: list[tuple[float | None, float | None]] = field(default_factory=list)


class FileStamp(NamedTuple):
    """Size and modification time of a file; of a folder of frames, the sum and the latest over its frames."""

    num_bytes: int
    mtime_ns: int


def find_annotated_videos(
    name: str, videos: str | os.PathLike, cache_dir: str | os.PathLike, options: dict[str, Any]
) -> dict[str, AnnotatedVideo]:
    """
    Return the videos of all splits of a benchmark by id, sorted by id.

    Args:
        name (`str`): name of the benchmark.
        videos (`str` or `os.PathLike`): folder of the videos.
        cache_dir (`str` or `os.PathLike`): folder for the benchmark's table.
        options (`dict[str, Any]`): other options of [`load_benchmark`].

    Raises:
        ValueError: see [`load_benchmark`].
    """
    builder = create_builder(name, videos=videos, **{"cache_dir": cache_dir, **options})
    builder.download_and_prepare()
    files = getattr(builder, "video_files", None) or VideoFiles(videos)
    annotated: dict[str, AnnotatedVideo] = {}
    for split, rows in builder.as_dataset().items():
        nothing = [None] * len(rows)
        starts, ends = (rows[column] if column in rows.column_names else nothing for column in ("start", "end"))
        for row_id, path, start, end in zip(rows["video_id"], rows["video"], starts, ends, strict=True):
            video_id = row_id.partition("#t=")[0]  # segments of one file are one video
            # A benchmark has no path for files that do not open: here they are checked too, to report the reason.
            source = path or files.find(video_id)
            video = annotated.setdefault(video_id, AnnotatedVideo(video_id, source and os.path.abspath(source)))
            if split not in video.splits:
                video.splits.append(split)
            if (start, end) not in video.segments:
                video.segments.append((start, end))
    return dict(sorted(annotated.items()))


def probe_video(path: str, segments: list[tuple[float | None, float | None]]) -> tuple[VideoMetadata, float]:
    """
    Decode `NUM_PROBE_FRAMES` frames of each segment of a video.

    Returns:
        `tuple[VideoMetadata, float]`: the metadata of the video, and the seconds of CPU time that decoding took.

    Raises:
        VideoDecodingError: the video cannot be decoded.
    """
    before = time.thread_time()
    for start, end in segments:
        _, metadata = decode_video(path, NUM_PROBE_FRAMES, start=start, end=end)
    return metadata, time.thread_time() - before


def stamp_file(path: str) -> FileStamp:
    """
    Return size and modification time of a file, or of a folder of frames.

    Raises:
        VideoDecodingError: the file does not exist or cannot be read.
    """
    try:
        states = [os.stat(os.path.join(path, name)) for name in list_frames(path)] or [os.stat(path)]
    except OSError as error:
        raise VideoDecodingError(path, f"cannot be read: {error.strerror}") from error
    return FileStamp(sum(state.st_size for state in states), max(state.st_mtime_ns for state in states))


__all__ = ["AnnotatedVideo", "FileStamp", "find_annotated_videos", "probe_video", "stamp_file"]
