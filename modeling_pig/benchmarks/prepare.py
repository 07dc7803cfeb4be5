"""A benchmark's videos made ready: each one checked, made smaller if asked for, and listed in a manifest."""

import csv
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import PIL.Image
import yaml
from tqdm import tqdm
from transformers.video_utils import VideoMetadata

from ..video_decoding_pig import (
    JPEG_FRAME,
    VideoDecodingError,
    _iterate_frames,
    _open_video,
    _read_packets,
    decode_video,
)
from . import load_benchmark
from .video_files import VideoFiles


MANIFEST, PARTIAL_MANIFEST, PROBLEMS = "manifest.jsonl", "manifest.jsonl.partial", "problems.csv"
NUM_PROBE_FRAMES = 8  # decoded of every video, evenly over the annotated part
CRF = 20
TICKS = 90_000  # a second, in the files that are written
ENCODER_OPTIONS = {
    "preset": "veryfast",  # Slower ones save few bytes at these sizes.
    "g": "30",  # A clip's frames lie far apart: decoding can start near each.
    "bf": "0",  # Without B-frames the last packet is the last frame: its duration tells where the video ends.
    "mbtree": "0",  # With macroblock trees x264 writes a slightly different file each time.
}
JPEG_QUALITY = 90


# What commands that take the options of a benchmark hand on besides, by options of their own.
_OF_COMMANDS = {
    *("name", "videos", "annotations", "cache_dir", "output"),
    *("short_side", "fps", "crf", "num_threads", "progress"),
    *("with_videos", "license"),
}


@dataclass
class ManifestEntry:
    """
    A line of the manifest: one video.

    Attributes:
        video_id (`str`): Its id.
        splits (`list[str]`): The splits that it is in.
        video (`str`, *optional*): Where it is: from the folder of the manifest if it was re-encoded, else absolute.
        source (`str`, *optional*): The original, absolute; `None` if there is none.
        source_bytes, source_mtime_ns (`int`, *optional*): Its size and modification time.
        settings (`dict`, *optional*): Those of the re-encoding, `None` if there was none.
        bytes, sha256 (`int`, `str`, *optional*): Size and hash of `video`; of a folder of frames, over all of them.
        duration, fps (`float`, *optional*): Seconds, and frames per second on average.
        num_frames, width, height (`int`, *optional*): Number of frames, and their size in pixels.
        problem (`str`, *optional*): Why the video was set aside; then only the source is known.
    """

    video_id: str
    splits: list[str]
    video: str | None = None
    source: str | None = None
    source_bytes: int | None = None
    source_mtime_ns: int | None = None
    settings: dict[str, Any] | None = None
    bytes: int | None = None
    sha256: str | None = None
    duration: float | None = None
    fps: float | None = None
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    problem: str | None = None


@dataclass
class Preparation:
    """
    What was prepared.

    Attributes:
        entries (`list[ManifestEntry]`): The manifest, in the order of the ids.
        decoding_time_ratio (`float`, *optional*): CPU time that decoding the same number of frames takes in the
            re-encoded videos, over that in the originals; `None` if none was re-encoded in this run.
    """

    entries: list[ManifestEntry]
    decoding_time_ratio: float | None

    @property
    def good(self) -> list[ManifestEntry]:
        return [entry for entry in self.entries if entry.problem is None]

    @property
    def set_aside(self) -> list[ManifestEntry]:
        return [entry for entry in self.entries if entry.problem is not None]

    def summary(self) -> str:
        """One line: how many videos, how long, how large before and after, how fast to decode."""
        good = self.good
        before, after = (sum(getattr(e, name) for e in good) / 1e6 for name in ("source_bytes", "bytes"))
        sizes = f"{before:.1f} -> {after:.1f} MB" if any(e.settings for e in good) else f"{before:.1f} MB"
        seconds = sum(entry.duration or 0 for entry in good)
        text = f"prepared {len(good)} of {len(self.entries)} videos, {seconds:.0f} s of video, {sizes}"
        if self.decoding_time_ratio is not None:
            text += f", decoding takes {self.decoding_time_ratio:.2f} x the time"
        return text


@dataclass
class _Video:
    """A video as the benchmark annotates it, with its parts as (start, end) in seconds."""

    video_id: str
    source: str | None
    splits: list[str] = field(default_factory=list)
    parts: list[tuple[float | None, float | None]] = field(default_factory=list)


def parse_options(assignments: list[str]) -> dict[str, Any]:
    """
    Options of [`load_benchmark`] from a command line, as `key=value` with the value in YAML.

    Raises:
        `ValueError`: If one is not of this form, or is not for the benchmark but for the command itself.
    """
    options = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"an option is given as key=value, like seed=1; got {assignment!r}")
        if key in _OF_COMMANDS:
            raise ValueError(
                f"{key!r} is no option of a benchmark; leave {assignment!r} out, see --help for those of the command"
            )
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"the value in {assignment!r} is not YAML; put it in quotes") from error
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
    Checks every annotated video by decoding some of its frames, and writes them smaller if asked for.

    In the output folder come `manifest.jsonl`, with a [`ManifestEntry`] a line, `problems.csv`, with the videos
    that were set aside, and with `short_side` or `fps` the videos, as `videos/<video_id>.mp4`: with the folder as
    its `videos` [`load_benchmark`] reads those. The originals are not touched. An interrupted run goes on where it
    was when it is started again, and a later one does again only what has changed since.

    Args:
        name (`str`): Name of the benchmark.
        videos (`str` or `os.PathLike`): Folder of the videos.
        output (`str` or `os.PathLike`): Folder to write to: a new one, or one that this function has written.
        short_side (`int`, *optional*): Scale larger videos down to this many pixels, see [`encode_video`].
        fps (`float`, *optional*): Thin faster videos out to this many frames per second.
        crf (`int`, *optional*, defaults to 20): Quality of x264, better and larger the lower it is.
        num_threads (`int`, *optional*): How many videos are worked on at a time; by default one a core.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar on standard error.
        **options: What [`load_benchmark`] takes besides, such as `annotations`.

    Returns:
        [`Preparation`].

    Raises:
        `ValueError`: If an option makes no sense, or the output folder lies in that of the videos, the other way
            round, or holds something else.
        `OSError`: If the output cannot be written.
    """
    output = os.path.abspath(os.path.expanduser(output))
    settings = None
    if short_side is not None or fps is not None:
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"fps={fps} was given; it is a number more than 0, and finite")
        if short_side is not None and short_side < 16 or not 0 <= crf <= 51:
            raise ValueError(
                f"short_side={short_side} and crf={crf} were given; they are at least 16, and from 0 to 51"
            )
        settings = {"short_side": short_side, "fps": fps, "crf": crf}
    _ensure_apart(output, os.path.expanduser(videos))
    known = _read_manifests(output)
    annotated = _annotated_videos(name, videos, output, options)
    if known and known.keys().isdisjoint(annotated):
        raise ValueError(f"the output {output} holds the videos of another benchmark; give each a folder of its own")
    for video in annotated.values():
        if video.source is not None and _is_inside(video.source, output):
            raise ValueError(f"{video.source} is a link into the output {output}, which would overwrite it")

    entries: dict[str, ManifestEntry] = {}
    decoding_times = np.zeros(2)  # seconds: in the originals, in what was written
    for video_id, video in annotated.items():
        if video_id in known and _is_done(known[video_id], video, settings, output):
            entries[video_id] = replace(known[video_id], splits=video.splits)
    waiting = [video for video_id, video in annotated.items() if video_id not in entries]
    os.makedirs(output, exist_ok=True)
    with (
        open(os.path.join(output, PARTIAL_MANIFEST), "a", encoding="utf-8") as partial,
        # Threads do: FFmpeg works outside the interpreter's lock.
        ThreadPoolExecutor(num_threads or os.cpu_count()) as pool,
        tqdm(desc="preparing", total=len(annotated), initial=len(entries), unit="video", disable=not progress) as bar,
    ):
        try:
            futures = [pool.submit(_prepare_video, video, settings, output) for video in waiting]
            partial.write("\n")  # The last line is torn where an earlier run was killed.
            for future in as_completed(futures):
                entry, times = future.result()
                entries[entry.video_id] = entry
                decoding_times += times
                partial.write(json.dumps(asdict(entry)) + "\n")
                partial.flush()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Those that have begun are waited for.
            raise
    result = Preparation(
        [entries[video_id] for video_id in sorted(entries)],
        decoding_times[1] / decoding_times[0] if decoding_times[1] else None,
    )
    _write_results(output, result)
    return result


def encode_video(
    source: str | os.PathLike,
    target: str | os.PathLike,
    short_side: int | None = None,
    fps: float | None = None,
    crf: int = CRF,
) -> None:
    """
    Writes a video smaller: as H.264 in an mp4 file, without sound, upright, with even numbers of pixels.

    The frames keep their times, counted from the first one. A file that is there is replaced once all is written.

    Args:
        source (`str` or `os.PathLike`): The video file.
        target (`str` or `os.PathLike`): The mp4 file to write; not `source`.
        short_side (`int`, *optional*): Pixels of the shorter side, at least 16. The longer one follows. Smaller
            videos keep their size.
        fps (`float`, *optional*): Frames per second, more than 0: of those that begin in the same 1 / `fps`
            seconds only the first is kept. Slower videos keep their frames.
        crf (`int`, *optional*, defaults to 20): Quality of x264, 0 to 51, better and larger the lower it is.

    Raises:
        `VideoDecodingError`: If the source cannot be decoded to its end.
        `OSError`: If the target cannot be written.
    """
    source, target = os.fsdecode(source), os.fsdecode(target)
    partial = _partial_path(target)
    options = {"crf": str(crf), **ENCODER_OPTIONS}
    to_yuv = av.video.reformatter.VideoReformatter()
    durations: dict[int, int] = {}  # up to the end of the video, by the times of the frames, in ticks
    stream: Any = None

    def write(packets: list) -> None:
        for packet in packets:  # Only the last one's duration counts: the others end where the next begins.
            packet.duration = durations[packet.pts]
            container.mux(packet)

    try:
        with av.open(f"file:{partial}", "w", format="mp4", options={"movflags": "faststart"}) as container:
            for seconds, rest, image in _read_frames(source, short_side, fps):
                if stream is None:  # The rate only guides the encoder: every frame has its time.
                    rate = Fraction(fps or 25).limit_denominator(1001)
                    stream = container.add_stream("libx264", rate=rate, options=options)
                    stream.height, stream.width = image.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.codec_context.time_base = Fraction(1, TICKS)
                    stream.codec_context.thread_count = 1
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame = to_yuv.reformat(frame, format="yuv420p", threads=1)
                frame.time_base = Fraction(1, TICKS)
                frame.pts = round(seconds * TICKS)
                durations[frame.pts] = max(round(rest * TICKS), 1)
                write(stream.encode(frame))
            write(stream.encode())
        os.replace(partial, target)
    except av.FFmpegError as error:  # Those of the source are VideoDecodingError.
        raise OSError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _read_frames(source: str, short_side: int | None, fps: float | None) -> Iterator[tuple[float, float, np.ndarray]]:
    """Of each frame kept: seconds from the first one, seconds to the end of the video, RGB (height, width, 3)."""
    metadata, pts, _, times = _read_packets(av, source)
    if metadata.duration is None or metadata.fps is None:
        raise VideoDecodingError(source, "the file has neither times nor a frame rate")
    to_rgb = av.video.reformatter.VideoReformatter()
    position = interval = -1  # of the last frame that was decoded, and of the last one that was kept
    size: dict[str, int] = {}
    with _open_video(av, source) as (container, stream):
        try:
            for frame in _iterate_frames(av, container, stream):
                last = position
                is_timed = len(pts) and frame.pts is not None
                position = int(np.searchsorted(pts, frame.pts, side="right")) - 1 if is_timed else last + 1
                position = min(position, len(times) - 1)
                if position <= last:
                    continue  # Not to be shown, or not in its turn.
                if fps is not None and metadata.fps > fps:
                    if int(times[position] * fps + 1e-6) == interval:
                        continue
                    interval = int(times[position] * fps + 1e-6)
                if not size:  # Size and rotation may change in the video, but not in the result.
                    size = dict(zip(("width", "height"), _scaled(frame.width, frame.height, short_side), strict=True))
                    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise
                # By way of RGB, as [`decode_video`] does, so that the colours come out the same.
                scaled = to_rgb.reformat(frame, format="rgb24", interpolation="BICUBIC", threads=1, **size)
                image = np.ascontiguousarray(np.rot90(scaled.to_ndarray(), quarter_turns))  # (height, width, 3)
                yield float(times[position]), metadata.duration - float(times[position]), image
        except av.FFmpegError as error:
            reason = f"damaged, decoding fails near frame {position + 1}: {error.strerror}"
            raise VideoDecodingError(source, reason) from error
    if not size:
        raise VideoDecodingError(source, "no frame can be decoded, the file is damaged")


def _scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Even width and height of a picture whose shorter side is scaled down to `short_side`."""
    shorter = min(width, height)
    new = min(short_side or shorter, shorter) // 2 * 2
    if new >= shorter - 1:  # at most the odd pixels go
        return width // 2 * 2, height // 2 * 2
    return round(width * new / shorter / 2) * 2, round(height * new / shorter / 2) * 2


def _shrink_frames(source: str, target: str, short_side: int | None) -> None:
    """Writes a folder of JPEGs smaller; without a frame rate, all frames are kept."""
    partial = _partial_path(target)
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    for name in _frame_names(source):
        try:
            with PIL.Image.open(os.path.join(source, name), formats=["JPEG"]) as image:
                image.load()
        except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            shutil.rmtree(partial)
            reason = f"the frame {name} cannot be read as a JPEG; extract or copy it again"
            raise VideoDecodingError(source, reason) from error
        if short_side is not None and min(image.size) > short_side:
            smaller = image.convert("RGB").resize(_scaled(*image.size, short_side), PIL.Image.Resampling.BICUBIC)
            smaller.save(os.path.join(partial, name), format="JPEG", quality=JPEG_QUALITY)
        else:
            shutil.copyfile(os.path.join(source, name), os.path.join(partial, name))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def _frame_names(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if JPEG_FRAME.fullmatch(name))


def _partial_path(target: str) -> str:
    """Where a file is written before it is moved into place: hidden, so that [`VideoFiles`] does not find it."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.part")


def _prepare_video(
    video: _Video, settings: dict[str, Any] | None, output: str
) -> tuple[ManifestEntry, tuple[float, float]]:
    """Its entry; the CPU time that decoding some frames takes before and after re-encoding, 0 if there is none."""
    entry = ManifestEntry(video.video_id, video.splits, source=video.source, settings=settings)
    times = (0.0, 0.0)
    try:
        if video.source is None:
            raise VideoDecodingError(video.video_id, "no file of this name in the folder of the videos")
        path = video.source
        entry.source_bytes, entry.source_mtime_ns = _stamp(path)
        metadata, source_time = _probe(path, video.parts)
        entry.video = path
        if settings is not None:
            entry.video = _shrink(video, settings, output)
            path = os.path.join(output, entry.video)
            metadata, time_after = _probe(path, video.parts)
            times = (source_time, time_after)
        entry.bytes, entry.sha256 = _stamp(path)[0], _sha256(path)
        entry.duration, entry.fps, entry.num_frames = metadata.duration, metadata.fps, metadata.total_num_frames
        entry.width, entry.height = metadata.width, metadata.height
    except VideoDecodingError as error:
        entry.video, entry.problem = None, error.reason
    return entry, times


def _probe(path: str, parts: list[tuple[float | None, float | None]]) -> tuple[VideoMetadata, float]:
    """Decodes some frames of each part of a video: its metadata, and the seconds of CPU time that it took."""
    before = time.thread_time()
    for start, end in parts:
        _, metadata = decode_video(path, NUM_PROBE_FRAMES, start=start, end=end)
    return metadata, time.thread_time() - before


def _shrink(video: _Video, settings: dict[str, Any], output: str) -> str:
    """Writes a video smaller; returns where, from the output folder."""
    assert video.source is not None
    if video.video_id.startswith(".") or os.path.basename(video.video_id) != video.video_id:
        raise VideoDecodingError(video.source, f"the id {video.video_id!r} cannot be the name of a file")
    os.makedirs(os.path.join(output, "videos"), exist_ok=True)
    path = os.path.join("videos", video.video_id)
    if os.path.isdir(video.source):
        _shrink_frames(video.source, os.path.join(output, path), settings["short_side"])
        return path
    encode_video(video.source, os.path.join(output, f"{path}.mp4"), **settings)
    return f"{path}.mp4"


def _stamp(path: str) -> tuple[int, int]:
    """Bytes and modification time, in ns, of a file; of a folder of frames, their sum and the latest."""
    files = [os.path.join(path, name) for name in _frame_names(path)] if os.path.isdir(path) else [path]
    try:
        states = [os.stat(file) for file in files]
    except OSError as error:
        raise VideoDecodingError(path, f"cannot be read: {error.strerror}") from error
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)


def _sha256(path: str) -> str:
    if not os.path.isdir(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{_sha256(os.path.join(path, name))}  {name}\n" for name in _frame_names(path)]  # as sha256sum prints
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def _annotated_videos(name: str, videos: str | os.PathLike, output: str, options: dict[str, Any]) -> dict[str, _Video]:
    """The videos of all splits by their ids, in the order of the ids."""
    options.setdefault("cache_dir", os.path.join(output, ".datasets"))  # The folder of the videos is left alone.
    splits = load_benchmark(name, videos=videos, **options)
    files = VideoFiles(videos)
    annotated: dict[str, _Video] = {}
    for split, rows in splits.items():
        nothing = [None] * len(rows)
        starts, ends = (rows[name] if name in rows.column_names else nothing for name in ("start", "end"))
        for video_id, path, *part in zip(rows["video_id"], rows["video"], starts, ends, strict=True):
            # Files that do not open are left out of the benchmark: here they are wanted, with the reason.
            source = path or files.find(video_id)
            video = annotated.setdefault(video_id, _Video(video_id, source and os.path.abspath(source)))
            if split not in video.splits:
                video.splits.append(split)
            if tuple(part) not in video.parts:
                video.parts.append((part[0], part[1]))
    return dict(sorted(annotated.items()))


def _is_done(entry: ManifestEntry, video: _Video, settings: dict[str, Any] | None, output: str) -> bool:
    if entry.problem is not None or entry.video is None or (entry.source, entry.settings) != (video.source, settings):
        return False
    try:
        is_same = _stamp(entry.source or "") == (entry.source_bytes, entry.source_mtime_ns)
        return is_same and _stamp(os.path.join(output, entry.video))[0] == entry.bytes
    except VideoDecodingError:
        return False


def _is_inside(path: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([folder, os.path.realpath(path)]) == folder


def _ensure_apart(output: str, videos: str) -> None:
    if _is_inside(output, videos) or _is_inside(videos, output):
        raise ValueError(
            f"the output {output} and the videos {videos} lie one in the other; give an output folder apart from the "
            "videos, which are left as they are"
        )
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"the output {output} is a file; give a folder")
    names = [name for name in os.listdir(output) if not name.startswith(".")] if os.path.isdir(output) else []
    if names and not {MANIFEST, PARTIAL_MANIFEST} & set(names):
        raise ValueError(f"the output {output} holds other files, like {min(names)}; give a new folder")


def _read_manifests(output: str) -> dict[str, ManifestEntry]:
    """What earlier runs have done, whether they came to their end or not."""
    entries = {}
    for name in (MANIFEST, PARTIAL_MANIFEST):
        path = os.path.join(output, name)
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        for line in lines:
            try:
                entry = ManifestEntry(**json.loads(line))
            except (ValueError, TypeError):
                continue  # torn, or of another version: done again
            entries[entry.video_id] = entry
    return entries


def _write_results(output: str, result: Preparation) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["video_id", "split", "reason"])
    writer.writerows([entry.video_id, split, entry.problem] for entry in result.set_aside for split in entry.splits)
    lines = [json.dumps(asdict(entry)) + "\n" for entry in result.entries]
    for name, text in ((PROBLEMS, table.getvalue()), (MANIFEST, "".join(lines))):
        partial = _partial_path(os.path.join(output, name))
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(partial, os.path.join(output, name))
    os.remove(os.path.join(output, PARTIAL_MANIFEST))
