"""Prepare the videos of a benchmark: check each one, re-encode it smaller on request, list all in a manifest."""

import csv
import io
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from ..files import PARTIAL_SUFFIX, hash_file, write_text
from ..video_decoding_pig import VideoDecodingError
from .check_videos import AnnotatedVideo, find_annotated_videos, probe_video, stamp_file
from .reencode import CRF, encode_video, shrink_frames


MANIFEST, PARTIAL_MANIFEST, PROBLEMS = "manifest.jsonl", "manifest.jsonl.partial", "problems.csv"

# Names that are options of a command which also takes options of a benchmark.
_COMMAND_OPTIONS = {
    *("name", "videos", "annotations", "cache_dir", "output"),
    *("short_side", "fps", "crf", "num_threads", "progress"),
    *("with_videos", "license"),
}


class EncodingSettings(BaseModel):
    """Options of [`encode_video`]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    short_side: int | None
    fps: int | float | None
    crf: int


class ManifestEntry(BaseModel):
    """
    One line of the manifest: a video.

    Attributes:
        video_id (`str`): id of the video.
        splits (`list[str]`): splits that hold the video.
        video (`str`, *optional*): path of the prepared video: relative to the manifest's folder if it was
            re-encoded, else absolute; `None` if the video failed.
        source (`str`, *optional*): absolute path of the original; `None` if there is none.
        source_bytes, source_mtime_ns (`int`, *optional*): size and modification time of the original.
        settings (`EncodingSettings`, *optional*): settings of the re-encoding; `None` without re-encoding.
        bytes, sha256 (`int`, `str`, *optional*): size and SHA-256 of `video`; of a folder of frames, over all frames.
        duration, fps (`float`, *optional*): seconds, and average frames per second.
        num_frames, width, height (`int`, *optional*): number of frames, and their size in pixels.
        problem (`str`, *optional*): why the video failed.
    """

    model_config = ConfigDict(extra="forbid")

    video_id: str
    splits: list[str]
    video: str | None = None
    source: str | None = None
    source_bytes: int | None = None
    source_mtime_ns: int | None = None
    settings: EncodingSettings | None = None
    bytes: int | None = None
    sha256: str | None = None
    duration: float | None = None
    fps: float | None = None
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    problem: str | None = None

    def to_line(self) -> str:
        """Return the entry as a line of JSON, in ASCII."""
        return json.dumps(self.model_dump()) + "\n"


class DecodingTimes(NamedTuple):
    """Seconds of CPU time for decoding the same number of frames before and after re-encoding."""

    before: float = 0.0
    after: float = 0.0


@dataclass
class Preparation:
    """
    Result of [`prepare_benchmark`].

    Attributes:
        entries (`list[ManifestEntry]`): the manifest, sorted by id.
        decoding_time_ratio (`float`, *optional*): CPU time for decoding the re-encoded videos, divided by that for
            the same number of frames of the originals; `None` if this run re-encoded no video.
    """

    entries: list[ManifestEntry]
    decoding_time_ratio: float | None

    @property
    def good(self) -> list[ManifestEntry]:
        """Entries of the videos that can be decoded."""
        return [entry for entry in self.entries if entry.problem is None]

    @property
    def failed(self) -> list[ManifestEntry]:
        """Entries of the videos that cannot be decoded."""
        return [entry for entry in self.entries if entry.problem is not None]

    def summary(self) -> str:
        """Return one line: number of videos, seconds, megabytes before and after, relative decoding time."""
        good = self.good
        before, after = (sum(getattr(entry, name) for entry in good) / 1e6 for name in ("source_bytes", "bytes"))
        sizes = f"{before:.1f} -> {after:.1f} MB" if any(entry.settings for entry in good) else f"{before:.1f} MB"
        seconds = sum(entry.duration or 0 for entry in good)
        text = f"prepared {len(good)} of {len(self.entries)} videos, {seconds:.0f} s of video, {sizes}"
        if self.decoding_time_ratio is not None:
            text += f", decoding takes {self.decoding_time_ratio:.2f} x the time"
        return text


def parse_options(assignments: list[str]) -> dict[str, Any]:
    """
    Parse options of [`load_benchmark`] from a command line.

    Args:
        assignments (`list[str]`): options as `key=value`, with the value in YAML.

    Raises:
        ValueError: an assignment has another form, or its key is an option of the command.
    """
    options = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"{assignment!r} is not of the form key=value: write, for example, seed=1")
        if key in _COMMAND_OPTIONS:
            raise ValueError(
                f"{key!r} is no option of a benchmark: leave out {assignment!r}, and see --help for the options of "
                "the command"
            )
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"the value in {assignment!r} is not YAML: put it in quotes") from error
    return options


def prepare_benchmark(
    name: str,
    *,
    videos: str | os.PathLike,
    output: str | os.PathLike,
    short_side: int | None = None,
    fps: float | None = None,
    crf: int = CRF,
    num_threads: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Preparation:
    """
    Check every annotated video by decoding some of its frames, and re-encode it smaller on request.

    The output folder holds `manifest.jsonl`, with one [`ManifestEntry`] per line; `problems.csv`, with the failed
    videos; and, with `short_side` or `fps`, the re-encoded videos as `videos/<video_id>.mp4`, which
    [`load_benchmark`] reads if this folder is its `videos`. The originals are never changed. An interrupted run
    resumes when it is started again, and a later run repeats only the videos that have changed since.

    Args:
        name (`str`): name of the benchmark.
        videos (`str` or `os.PathLike`): folder of the videos.
        output (`str` or `os.PathLike`): folder to write to: a new one, or the output of an earlier run.
        short_side (`int`, *optional*): scale larger videos down to this many pixels, see [`encode_video`].
        fps (`float`, *optional*): reduce faster videos to this many frames per second.
        crf (`int`, *optional*, defaults to 20): quality of x264; a lower value is better and larger.
        num_threads (`int`, *optional*): number of videos that are processed at a time; by default one per core.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar on standard error.
        **options: other options of [`load_benchmark`], such as `annotations`.

    Returns:
        [`Preparation`].

    Raises:
        ValueError: an option is invalid; or the output folder lies in the folder of the videos, contains it, or
            holds other files.
        OSError: the output cannot be written.
    """
    output = os.path.abspath(os.path.expanduser(output))
    settings = None
    if short_side is not None or fps is not None:
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"fps={fps} is invalid: give a finite number greater than 0")
        if short_side is not None and short_side < 16 or not 0 <= crf <= 51:
            raise ValueError(
                f"short_side={short_side} or crf={crf} is invalid: give a short side of at least 16 pixels and a crf "
                "from 0 to 51"
            )
        settings = EncodingSettings(short_side=short_side, fps=fps, crf=crf)
    _ensure_apart(output, os.path.expanduser(videos))
    known = _read_manifests(output)
    cache_dir = os.path.join(output, ".datasets")  # not in the folder of the videos, which is never written to
    annotated = find_annotated_videos(name, videos, cache_dir, options)
    if known and known.keys().isdisjoint(annotated):
        raise ValueError(f"the output {output} holds the videos of another benchmark: give each a separate folder")
    for video in annotated.values():
        if video.source is not None and _is_inside(video.source, output):
            raise ValueError(f"{video.source} is a link into the output {output}, which would overwrite it")

    entries = {
        video_id: known[video_id].model_copy(update={"splits": video.splits})
        for video_id, video in annotated.items()
        if video_id in known and _is_done(known[video_id], video, settings, output)
    }
    waiting = [video for video_id, video in annotated.items() if video_id not in entries]
    os.makedirs(output, exist_ok=True)
    _remove_partial_videos(output)
    times: list[DecodingTimes] = []
    with (
        open(os.path.join(output, PARTIAL_MANIFEST), "a", encoding="utf-8") as partial,
        # Threads are enough: FFmpeg works outside the interpreter's lock.
        ThreadPoolExecutor(num_threads or os.cpu_count()) as pool,
        tqdm(desc="preparing", total=len(annotated), initial=len(entries), unit="video", disable=not progress) as bar,
    ):
        try:
            futures = [pool.submit(_prepare_video, video, settings, output) for video in waiting]
            partial.write("\n")  # The last line is incomplete if an earlier run was killed.
            for future in as_completed(futures):
                entry, decoding_times = future.result()
                entries[entry.video_id] = entry
                times.append(decoding_times)
                partial.write(entry.to_line())
                partial.flush()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Waits for the videos that are being processed.
            raise
    seconds_after = sum(seconds.after for seconds in times)
    result = Preparation(
        [entries[video_id] for video_id in sorted(entries)],
        seconds_after / sum(seconds.before for seconds in times) if seconds_after else None,
    )
    _write_results(output, result)
    return result


def _prepare_video(
    video: AnnotatedVideo, settings: EncodingSettings | None, output: str
) -> tuple[ManifestEntry, DecodingTimes]:
    entry = ManifestEntry(video_id=video.video_id, splits=video.splits, source=video.source, settings=settings)
    times = DecodingTimes()
    try:
        if video.source is None:
            raise VideoDecodingError(video.video_id, "no file of this name in the folder of the videos")
        path = video.source
        entry.source_bytes, entry.source_mtime_ns = stamp_file(path)
        metadata, seconds_before = probe_video(path, video.segments)
        entry.video = path
        if settings is not None:
            entry.video = _reencode(video.source, video.video_id, settings, output)
            path = os.path.join(output, entry.video)
            metadata, seconds_after = probe_video(path, video.segments)
            times = DecodingTimes(seconds_before, seconds_after)
        entry.bytes, entry.sha256 = stamp_file(path).num_bytes, hash_file(path)
        entry.duration, entry.fps, entry.num_frames = metadata.duration, metadata.fps, metadata.total_num_frames
        entry.width, entry.height = metadata.width, metadata.height
    except VideoDecodingError as error:
        entry.video, entry.problem = None, error.reason
    return entry, times


def _reencode(source: str, video_id: str, settings: EncodingSettings, output: str) -> str:
    """Re-encode a video file or a folder of frames; return the path of the result relative to `output`."""
    if os.path.isabs(video_id) or any(part.startswith(".") or not part for part in video_id.split("/")):
        raise VideoDecodingError(source, f"the id {video_id!r} cannot be the name of a file")
    path = os.path.join("videos", video_id)
    os.makedirs(os.path.join(output, os.path.dirname(path)), exist_ok=True)
    if os.path.isdir(source):
        shrink_frames(source, os.path.join(output, path), settings.short_side)
        return path
    encode_video(source, os.path.join(output, f"{path}.mp4"), settings.short_side, settings.fps, settings.crf)
    return f"{path}.mp4"


def _is_done(entry: ManifestEntry, video: AnnotatedVideo, settings: EncodingSettings | None, output: str) -> bool:
    """Return whether an earlier run prepared this video, with these settings, and neither file has changed since."""
    if entry.problem is not None or entry.video is None or (entry.source, entry.settings) != (video.source, settings):
        return False
    try:
        is_same = stamp_file(entry.source or "") == (entry.source_bytes, entry.source_mtime_ns)
        return is_same and stamp_file(os.path.join(output, entry.video)).num_bytes == entry.bytes
    except VideoDecodingError:
        return False


def _is_inside(path: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([folder, os.path.realpath(path)]) == folder


def _ensure_apart(output: str, videos: str) -> None:
    """Raise a `ValueError` if writing to `output` could change the videos or files of something else."""
    if _is_inside(output, videos) or _is_inside(videos, output):
        raise ValueError(
            f"the output {output} and the videos {videos} lie one in the other: give an output folder apart from the "
            "videos"
        )
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"the output {output} is a file: give a folder")
    names = [name for name in os.listdir(output) if not name.startswith(".")] if os.path.isdir(output) else []
    if names and not {MANIFEST, PARTIAL_MANIFEST} & set(names):
        raise ValueError(f"the output {output} holds other files, such as {min(names)}: give a new folder")


def _remove_partial_videos(output: str) -> None:
    """Remove the unfinished videos of a killed run."""
    for path in list(Path(output, "videos").rglob(f".*{PARTIAL_SUFFIX}")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _read_manifests(output: str) -> dict[str, ManifestEntry]:
    """Return the entries of earlier runs, finished or interrupted, by video id."""
    entries = {}
    for name in (MANIFEST, PARTIAL_MANIFEST):
        path = os.path.join(output, name)
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        for line in lines:
            try:
                entry = ManifestEntry.model_validate(json.loads(line))
            except (json.JSONDecodeError, ValidationError):
                continue  # incomplete, or of another version: the video is prepared again
            entries[entry.video_id] = entry
    return entries


def _write_results(output: str, result: Preparation) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["video_id", "split", "reason"])
    writer.writerows([entry.video_id, split, entry.problem] for entry in result.failed for split in entry.splits)
    write_text(os.path.join(output, PROBLEMS), table.getvalue(), errors="backslashreplace")
    write_text(os.path.join(output, MANIFEST), "".join(entry.to_line() for entry in result.entries))
    os.remove(os.path.join(output, PARTIAL_MANIFEST))


__all__ = [
    "MANIFEST",
    "PROBLEMS",
    "EncodingSettings",
    "ManifestEntry",
    "Preparation",
    "parse_options",
    "prepare_benchmark",
]
