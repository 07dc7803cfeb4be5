# Copyright 2026 The PIG contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Read video files with PyAV: the times of all frames without decoding them, and the frames at some of these times."""

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from transformers.video_utils import VideoMetadata

from .video_frames_pig import FrameConverter


# Seeking refills the decoder: it saves time only if it skips more than this number of frames.
MIN_SKIPPED_FRAMES = 8

# Formats that FFmpeg may open. Playlists are excluded: they name other files or addresses, and may never end.
CONTAINERS = (
    "3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vc1,webm,yuv4mpegpipe"
)
OPEN_OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name of the format

# Formats of broadcasts and recorders: their clocks jump when recordings are joined.
BROADCAST_FORMATS = ("mpegts", "mpeg")
# A clock that goes back by more seconds, or in a broadcast forward by more, was set: the time continues instead.
MAX_CLOCK_STEP_BACK = 0.5
MAX_CLOCK_STEP_FORWARD = 10.0

# Maximum average duration of a frame (a slide may stay for half a minute). A longer average means that a timestamp is
# wrong, unless the sound lasts as long; the resulting duration could give any number of segments for a few frames.
MAX_SECONDS_PER_FRAME = 60.0

# Share of the packets that may fail to decode. Of the others, a player shows the frames.
MAX_DAMAGED_SHARE = 0.1

# Number of packets that are decoded to find out whether a frame of a broadcast has one packet or two.
NUM_PROBED_PACKETS = 60

Source = str | BinaryIO  # path of a video file, or a seekable binary file


class VideoDecodingError(ValueError):
    """Error of a video whose frames cannot be decoded.

    Attributes:
        path (`str`): path of the video.
        reason (`str`): what is wrong with the video, for users.
    """

    def __init__(self, path: str | os.PathLike, reason: str | None = None):
        super().__init__(path, reason)
        # A DataLoader recreates the error of a worker from its message only.
        self.path, self.reason = ("", str(path)) if reason is None else (os.fspath(path), reason)

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class VideoDecodingWarning(UserWarning):
    """Warning of a video of which only a part can be decoded."""


@dataclass
class VideoTrack:
    """The N frames of the best video stream of a file, in display order.

    Attributes:
        metadata (`VideoMetadata`): metadata of the video, without the size of its frames. The duration is the time
            from the start of the file to the end of the last frame, in seconds.
        times (`np.ndarray` of shape `(N,)`): seconds from the start of the file to each frame; empty if the file has
            neither timestamps nor a frame rate.
        pts (`np.ndarray` of shape `(N,)`): timestamps that identify the frames; empty if frames have to be counted.
        keyframes (`np.ndarray`): indices of the frames where decoding can start.
        warning (`str`, *optional*): what is missing in the file.
        stream_index (`int`): index of the video stream among all streams of the file.
        time_base (`float`): seconds per unit of `pts`.
    """

    metadata: VideoMetadata
    times: np.ndarray
    pts: np.ndarray
    keyframes: np.ndarray
    warning: str | None = None
    stream_index: int = 0
    time_base: float = 0.0


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int
    is_keyframe: bool


@dataclass
class _Packets:
    """Packets of a file, in file order.

    Attributes:
        shown (`list[_Packet]`): packets of the video stream that hold a displayed frame.
        ends (`dict[int, int]`): end of the last packet by stream, in time units of the stream.
        cut_off (`bool`): whether the last packet of a stream is incomplete.
        damage (`av.FFmpegError`, *optional*): why reading stopped before the end of the file.
    """

    shown: list[_Packet] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    cut_off: bool = False
    damage: Any = None


def import_av() -> ModuleType:
    """Import PyAV, or raise an `ImportError` that says how to install it."""
    try:  # transformers requires the packages that remote code imports, except within a `try`.
        import av
        import av.sidedata.sidedata
    except ImportError as error:
        raise ImportError("Decoding a video file needs PyAV: `pip install av`.") from error
    return av


def is_url(path: str) -> bool:
    """Return whether a string is a URL, such as `https://host/a.mp4`, and not the path of a file."""
    return re.match(r"[a-z][a-z0-9+.:-]+:/", path, re.IGNORECASE) is not None and not os.path.exists(path)


def source_name(source: Source) -> str:
    """Return the path of a source for messages."""
    return source if isinstance(source, str) else str(getattr(source, "name", "video in memory"))


@contextmanager
def open_video(av: ModuleType, source: Source) -> Iterator[tuple[Any, Any]]:
    """Open a container and its best video stream for decoding in one thread.

    Raises:
        VideoDecodingError: the file is missing, empty or not a video, or has no video stream that can be decoded.
    """
    path = source_name(source)
    if isinstance(source, str):
        _check_file(path)
        file: Any = f"file:{path}"
    else:
        source.seek(0)
        file = source
    try:
        container = av.open(file, container_options=OPEN_OPTIONS, metadata_errors="ignore")
    except av.FFmpegError as error:
        reason = "not a video file, or cut off before its index; download or copy it again"
        raise VideoDecodingError(path, reason) from error
    with container:
        stream = _best_stream(av, container)
        if stream is None:
            raise VideoDecodingError(path, "no video stream in the file, it may hold audio only")
        if stream.codec_context is None:
            raise VideoDecodingError(path, "this build of PyAV has no decoder for the video stream")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield container, stream


def _check_file(path: str) -> None:
    if not os.path.isfile(path):
        if os.path.exists(path):
            reason = "a directory without numbered JPEG frames, or a device, not a file"
        elif is_url(path):
            reason = "URLs are not read: download the video, and give the path of the file"
        else:
            reason = "no such file"
        raise VideoDecodingError(path, reason)
    if not os.access(path, os.R_OK):
        raise VideoDecodingError(path, "no permission to read the file")
    if os.path.getsize(path) == 0:
        raise VideoDecodingError(path, "the file is empty; download or copy it again")


def _best_stream(av: ModuleType, container: Any) -> Any:
    """Return the video stream that a player chooses, `None` if there is none.

    Cover images are excluded. The others are compared by: decoder available, more than one frame, marked as default,
    number of frames if the file states it, size.
    """
    flags = av.stream.Disposition
    streams = [s for s in container.streams.video if not s.disposition & (flags.attached_pic | flags.still_image)]

    def rank(stream: Any) -> tuple:
        codec = stream.codec_context
        if codec is None:
            return (False,)
        is_default = bool(stream.disposition & flags.default)
        return True, stream.frames != 1, is_default, stream.frames, codec.width * codec.height

    return max(streams, key=rank, default=None)  # the first of equal streams


def read_track(av: ModuleType, source: Source) -> VideoTrack:
    """Read a whole file without decoding it, to find its frames and to check that none are missing.

    Raises:
        VideoDecodingError: the file cannot be opened, is encrypted, has no frames, lacks a part that its index lists,
            or has invalid timestamps.
    """
    path = source_name(source)
    with open_video(av, source) as (container, stream):
        packets = _read_packets(av, path, container, stream)
        file_format = container.format.name
        stream_index, time_base = stream.index, float(stream.time_base)
        rate = stream.average_rate or stream.guessed_rate
        ends = {i: float(end * container.streams[i].time_base) for i, end in packets.ends.items()}
        end = max(ends.values(), default=0.0)
        sound = max((seconds for i, seconds in ends.items() if i != stream.index), default=0.0)
        start = None if container.start_time is None else container.start_time / av.time_base
        is_shorter = _is_shorter_than_declared(source, file_format)
        num_missing = _count_missing_frames(av, source, container, stream, len(packets.shown), end, is_shorter)
        warning = _describe_missing(av, container, end, packets.cut_off or is_shorter)
    num_expected = len(packets.shown) + num_missing
    if num_missing > max(2, 0.05 * num_expected):
        reason = f"truncated: the file holds {len(packets.shown)} of about {num_expected} frames"
        raise VideoDecodingError(path, f"{reason}; download or copy it again") from packets.damage
    if packets.damage is not None:
        reason = f"damaged after {len(packets.shown)} frames: {packets.damage.strerror}"
        raise VideoDecodingError(path, reason) from packets.damage
    if not packets.shown:
        raise VideoDecodingError(path, "the video stream holds no frames")
    if file_format in BROADCAST_FORMATS:
        packets.shown = _one_packet_per_frame(av, source, packets.shown)
    track = _track_of(packets.shown, time_base, rate, start, file_format)
    track.stream_index, track.time_base = stream_index, time_base
    _check_duration(path, track, sound)
    if warning is not None:
        duration = track.metadata.duration
        used = f"{track.metadata.total_num_frames} frames" if duration is None else f"{duration:.1f} s"
        track.warning = f"{warning}: the {used} that it holds are used; download or copy it again"
    return track


def _read_packets(av: ModuleType, path: str, container: Any, stream: Any) -> _Packets:
    packets, last_is_cut = _Packets(), {}
    num_errors = 0  # since the last packet
    while True:
        try:
            for packet in iterate_packets(container):
                if packet.size == 0:
                    continue
                num_errors, number = 0, packet.stream_index
                last_is_cut[number] = packet.is_corrupt
                if packet.pts is not None and not packet.is_corrupt:
                    packets.ends[number] = max(packets.ends.get(number, 0), packet.pts + (packet.duration or 0))
                if number == stream.index and not packet.is_discard:
                    if not packets.shown and packet.has_sidedata("encryption_info"):
                        raise VideoDecodingError(path, "encrypted (copy protection): only its own player can show it")
                    packets.shown.append(_Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe))
            break
        except av.FFmpegError as error:
            num_errors += 1
            if num_errors > 1:  # A damaged part is skipped, but not a disk that fails again and again.
                packets.damage = error
                break
    if packets.shown and last_is_cut.get(stream.index):
        packets.shown.pop()
    packets.cut_off = any(last_is_cut.values())
    return packets


def _track_of(shown: list[_Packet], time_base: float, rate: Any, start: float | None, file_format: str) -> VideoTrack:
    """Order packets by time, and convert their timestamps to seconds after `start`."""
    num_frames = len(shown)
    pts = keyframes = np.empty(0, dtype=np.int64)
    seconds_per_frame = 1 / float(rate) if rate else 0.0
    duration = num_frames * seconds_per_frame or None
    times = np.arange(num_frames) * seconds_per_frame if rate else np.empty(0)
    stamps = np.array([packet.pts for packet in shown if packet.pts is not None], dtype=np.int64)
    decoded_at = np.array([packet.dts for packet in shown if packet.dts is not None], dtype=np.int64)
    cuts = _clock_changes(decoded_at * time_base, file_format in BROADCAST_FORMATS)
    if len(cuts) and len(stamps) == len(decoded_at) == num_frames:
        # Recordings were joined: each one continues where the one before ends.
        times, duration = np.empty(0), 0.0
        for part in np.split(stamps, cuts):
            seconds = np.sort(part) * time_base
            times = np.concatenate([times, duration + seconds - seconds[0]])
            duration = float(times[-1]) + seconds_per_frame
    elif len(np.unique(stamps)) == num_frames:
        order = np.argsort(stamps)
        first, last = stamps[order[[0, -1]]].tolist()
        offset = max(first * time_base - start, 0.0) if start is not None and file_format != "avi" else 0.0
        last_duration = shown[order[-1]].duration or (last - first) / max(num_frames - 1, 1)
        duration = offset + ((last - first + last_duration) * time_base or duration or 0.0) or None
        times = offset + (stamps[order] - first) * time_base
        if file_format != "avi":  # AVI has no presentation timestamps: those of PyAV are guesses, wrong with B-frames.
            pts = stamps[order]
            keyframes = np.flatnonzero([shown[position].is_keyframe for position in order])
    shown_seconds = duration - (float(times[0]) if len(times) else 0.0) if duration else None
    metadata = VideoMetadata(
        total_num_frames=num_frames,
        fps=num_frames / shown_seconds if shown_seconds else None,
        duration=duration,
        video_backend="pyav",
    )
    return VideoTrack(metadata, times, pts, keyframes)


def _clock_changes(decoded_at: np.ndarray, is_broadcast: bool) -> np.ndarray:
    """Return the positions of the packets before which the clock was set; times are in seconds, in file order."""
    steps = np.diff(decoded_at)
    return 1 + np.flatnonzero((steps < -MAX_CLOCK_STEP_BACK) | (is_broadcast & (steps > MAX_CLOCK_STEP_FORWARD)))


def _one_packet_per_frame(av: ModuleType, source: Source, shown: list[_Packet]) -> list[_Packet]:
    """Keep one packet per frame: interlaced broadcasts store the two fields of a frame in two packets.

    The first packets are decoded to find out what they hold; if that is not clear, all packets are decoded.
    """
    probed = shown[:NUM_PROBED_PACKETS]
    timed = [packet for packet in shown if packet.pts is not None]
    num_timed = sum(packet.pts is not None for packet in probed)
    num_decoded = len(_decode_timestamps(av, source, len(probed)))
    if abs(num_decoded - len(probed)) <= 2 and (num_timed < len(probed) or len(timed) == len(shown)):
        return shown  # 2: an open GOP at the start has frames that cannot be decoded
    if abs(num_decoded - num_timed) <= 1 and num_timed < len(probed):
        return timed
    stamps = _decode_timestamps(av, source, None)
    return [_Packet(pts, None, 0, False) for pts in stamps] or shown


def _decode_timestamps(av: ModuleType, source: Source, num_packets: int | None) -> list[int | None]:
    """Return the timestamps of the frames in the first packets of a file."""
    with open_video(av, source) as (container, stream):
        reader = FrameReader(av, source_name(source), container, stream)
        return [frame.pts for frame in reader.frames(num_packets)]


def _check_duration(path: str, track: VideoTrack, sound: float) -> None:
    """Raise an error if the duration is impossible for the number of frames, and the sound is shorter."""
    num_frames, duration = track.metadata.total_num_frames, track.metadata.duration
    if duration and duration > MAX_SECONDS_PER_FRAME * num_frames and duration > sound + MAX_SECONDS_PER_FRAME:
        frames = "1 frame" if num_frames == 1 else f"{num_frames} frames"
        raise VideoDecodingError(path, f"invalid timestamps: {frames} in {duration:.0f} s")


def _count_missing_frames(
    av: ModuleType, source: Source, container: Any, stream: Any, num_frames: int, end: float, is_shorter: bool
) -> int:
    """Return how many frames are missing at the end of the file: an estimate if the file does not start with an index.

    The number of frames in the header does not help: it includes frames that an MP4 edit list removes, and frames that
    an AVI repeats. The duration in the header is believed only if the file is shorter than the header says, in bytes.
    """
    if container.format.name in ("avi", "matroska,webm"):
        if not is_shorter:
            return 0
        is_avi = container.format.name == "avi"
        seconds = stream.frames * stream.time_base if is_avi else (container.duration or 0) / av.time_base
        return round(num_frames * max(float(seconds) / end - 1, 0)) if end else 0
    if container.format.name == "mxf" or _is_fragmented(source):  # The index is not at the start of the file.
        return 0
    entries = stream.index_entries
    return sum(entry.pos + entry.size > container.size and not entry.is_discard for entry in entries)


def _describe_missing(av: ModuleType, container: Any, end: float, is_cut: bool) -> str | None:
    """Say whether the file ends early, if that can be known from its end or its header."""
    name = container.format.name
    declared = (container.duration or 0) / av.time_base  # of FLV and MXF from the header
    is_cut = is_cut or name == "asf" and container.duration is None
    if name in ("flv", "mxf", MP4):
        seconds = end - (container.start_time or 0) / av.time_base
        is_short = declared - seconds > max(0.5, 0.05 * declared)
        if is_short and (is_cut or name in ("flv", "mxf")):
            return f"the file ends early, its header promises {declared:.1f} s"
    return "the file ends early" if is_cut else None


def _is_shorter_than_declared(source: Source, file_format: str) -> bool:
    """Return whether a file has fewer bytes than its structure declares, or ends within a packet."""
    with _opened(source) as (file, size):
        if file_format == "avi":
            return _end_of_riff(file, size) > size
        if file_format == "matroska,webm":
            return _end_of_segment(file) > size
        if file_format == MP4:
            return max((end for _, end in _boxes(file, size)), default=0) > size
        head = file.read(205)
        file.seek(max(size - 2**17, 0))
        tail = file.read()
    if file_format == "ogg":
        page = tail.rfind(b"OggS")
        return page >= 0 and (len(tail) < page + 27 or not tail[page + 5] & 4 or _end_of_page(tail, page) > len(tail))
    if file_format == "mpegts":
        lengths = [n for n, first in ((188, 0), (192, 4), (204, 0)) if head[first::n][:2] == b"\x47\x47"]
        return bool(lengths) and size % lengths[0] > 0
    if file_format == "mpeg":
        starts = [match.start() for match in re.finditer(rb"\x00\x00\x01[\xbd\xc0-\xef]", tail)]
        return bool(starts) and len(tail) < starts[-1] + 6 + int.from_bytes(tail[starts[-1] + 4 :][:2], "big")
    return False


@contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, int]]:
    """Open a source at its start, with its size in bytes; keep the position of a file that is open."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
        return
    position = source.tell()
    try:
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
        yield source, size
    finally:
        source.seek(position)


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """Return the end of the last RIFF chunk; a file of more than 1 GB has several."""
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(8)
        if header[:4] != b"RIFF" or len(header) < 8:
            break
        end += 8 + struct.unpack("<I", header[4:])[0]
    return end


def _end_of_segment(file: BinaryIO) -> int:
    """Return the end of a Matroska segment; 0 if its size is unknown, as in recorded streams."""
    head = file.read(4096)
    at = head.find(b"\x18\x53\x80\x67") + 4
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    length = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + length], "big") & ((1 << 7 * length) - 1)
    return 0 if value == (1 << 7 * length) - 1 else at + length + value


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield type and end of each top-level box of an MP4 file."""
    end = 0
    while end < size:
        file.seek(end)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8 or not header[4:8].isalnum():  # up to the end of the file, or not a box
            return
        end += length
        yield header[4:8], end


def _is_fragmented(source: Source) -> bool:
    with _opened(source) as (file, size):
        return any(name == b"moof" for name, _ in _boxes(file, size))


def _end_of_page(tail: bytes, page: int) -> int:
    count = tail[page + 26]
    return page + 27 + count + sum(tail[page + 27 : page + 27 + count])


def iterate_packets(container: Any, *streams: Any) -> Iterator[Any]:
    """Read the packets of some streams, by default of all."""
    try:
        yield from container.demux(*streams)
    except IndexError:
        pass  # PyAV raises this at the end of a file with a stream that its header does not list.


class FrameReader:
    """Decode the frames of an open video, and skip packets that cannot be decoded.

    Args:
        av (`ModuleType`): PyAV.
        path (`str`): path for messages.
        container, stream: result of [`open_video`].
    """

    def __init__(self, av: ModuleType, path: str, container: Any, stream: Any):
        self.av, self.path, self.container, self.stream = av, path, container, stream
        self.num_packets = self.num_damaged = 0

    def frames(self, max_packets: int | None = None) -> Iterator[Any]:
        """Decode from the current position to the end, or for a number of packets."""
        num_errors = 0  # of reading, since the last packet
        while True:
            try:
                for packet in iterate_packets(self.container, self.stream):
                    num_errors = 0
                    if max_packets is not None and self.num_packets == max_packets:
                        yield from self._decode(None)
                        return
                    self.num_packets += packet.size > 0
                    yield from self._decode(packet)
                return
            except self.av.FFmpegError:
                num_errors += 1
                if num_errors > 1:
                    return

    def check(self) -> None:
        """Raise a `VideoDecodingError` if too many of the packets so far could not be decoded."""
        if self.num_damaged > max(1, MAX_DAMAGED_SHARE * self.num_packets):
            reason = (
                f"damaged: {self.num_damaged} of {self.num_packets} packets cannot be decoded, more than "
                f"{MAX_DAMAGED_SHARE:.0%}; download or copy it again"
            )
            raise VideoDecodingError(self.path, reason)

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return self.stream.decode(packet)
        except self.av.FFmpegError:
            # An incomplete packet at the end of a file need not yield a frame.
            self.num_damaged += packet is not None and packet.size > 0 and not packet.is_corrupt
            return []


def decode_frames(
    av: ModuleType,
    source: Source,
    track: VideoTrack,
    transform: Callable[[np.ndarray], np.ndarray],
    wanted: Sequence[np.ndarray],
) -> Iterator[tuple[tuple[int, int], list[np.ndarray]]]:
    """Decode the frames at each of the sorted, distinct indices `wanted`.

    A frame of several segments is decoded once. Frames are released once their segment is yielded.

    Args:
        transform (`Callable`): is applied to each frame, `(height, width, 3)` uint8, as soon as it is decoded. Frames
            of one segment have one shape; those of more than 4 megapixels are reduced.

    Yields:
        `tuple[tuple[int, int], list[np.ndarray]]`: height and width of the segment's first frame as displayed, and the
        transformed frames.

    Raises:
        VideoDecodingError: no frame, or too few packets, can be decoded.
    """
    wanted_by: dict[int, list[int]] = {}  # segments that contain a frame
    for segment, indices in enumerate(wanted):
        for index in indices.tolist():
            wanted_by.setdefault(index, []).append(segment)
    images: list[list[np.ndarray]] = [[] for _ in wanted]
    shapes: list[Any] = [None] * len(wanted)  # shape of the first frame of each segment
    num_done = 0
    converter = FrameConverter(av)
    for keyframes in (track.keyframes, track.keyframes[:0]):  # Seeking fails in some files: then, do not seek.
        with open_video(av, source) as (container, stream):
            reader = FrameReader(av, source_name(source), container, stream)
            remaining = sorted(wanted_by)
            decoded = _frames_at(reader, remaining, track.pts, keyframes)
            for index in remaining:
                if (frame := next(decoded, None)) is None:
                    break
                for segment in wanted_by.pop(index):
                    # Size and orientation may change in the video, but not within a segment.
                    shapes[segment] = shapes[segment] or converter.shape(frame)
                    try:
                        image = converter.to_rgb(frame, shapes[segment])
                    except av.FFmpegError as error:
                        reason = f"frame {index} is not an image: {error.strerror}"
                        raise VideoDecodingError(reader.path, reason) from error
                    images[segment].append(transform(image))
                del frame, image  # the decoder fills another frame next, of 50 MB for 8K
                if not wanted_by:
                    reader.check()
                while num_done < len(wanted) and len(images[num_done]) == len(wanted[num_done]):
                    yield shapes[num_done].displayed, images[num_done]
                    images[num_done] = []
                    num_done += 1
        if not wanted_by:
            return
    assert not wanted_by


def _frames_at(reader: FrameReader, wanted: list[int], pts: np.ndarray, keyframes: np.ndarray) -> Iterator[Any]:
    """Decode the frames at the indices `wanted`, sorted and distinct.

    Frames are identified by their timestamps, or counted if `pts` is empty. Seeks to `keyframes` if that saves
    decoding, and stops before the last index of `wanted` if seeking does not work in this file.
    """
    times = pts.tolist()
    frame: Any = None  # last decoded frame
    position = -1  # index of the last decoded frame
    sought = landed = False
    frames = reader.frames()
    for index in wanted:
        start = int(keyframes[: np.searchsorted(keyframes, index, side="right")].max(initial=0))
        if start - position > MIN_SKIPPED_FRAMES:
            sought, landed = True, False
            try:
                reader.container.seek(times[start], stream=reader.stream)
            except reader.av.FFmpegError:
                return
            frames, frame, position = reader.frames(), None, -1
        while position < index:
            following = next(frames, None)
            if following is None:
                break  # Not every packet holds a displayed frame: use the last displayed frame instead.
            frame, following = following, None
            if times and frame.pts is not None:
                position = bisect_right(times, frame.pts) - 1
            else:
                position += 1
            if sought and not landed:
                landed = True
                if frame.pts is None or position > index:
                    return
                if position < start:  # The file has no index: each seek would land far before its target.
                    keyframes = keyframes[:0]
        if frame is None and sought:
            return
        if frame is None:
            reader.check()
            raise VideoDecodingError(reader.path, "no frame can be decoded, the file is damaged")
        yield frame
