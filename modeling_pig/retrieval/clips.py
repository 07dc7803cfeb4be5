"""Cut clips out of video files, with their sound: copied from a keyframe where there is one, else re-encoded."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from types import ModuleType
from typing import Any

from ..files import replace_file
from ..video_decoding_pig import TIME_TOLERANCE
from ..video_file_pig import (
    MP4,
    Source,
    VideoDecodingError,
    import_av,
    iterate_packets,
    open_video,
    read_track,
    source_name,
)
from ..video_frames_pig import FrameConverter


KEYFRAME_TOLERANCE = 1.0  # seconds before the start at which a clip that is copied may begin
MAX_PLAYABLE_HEIGHT = 720  # pixels of a clip that is re-encoded for a browser
TICKS_PER_SECOND = 90_000  # time base of re-encoded frames
MAX_SOUND_RATE = 48_000  # samples per second

# Format, and encoders of video and sound, by the extension of the clip.
_FORMATS = {
    ".mp4": ("mp4", "libx264", "aac"),
    ".mov": ("mov", "libx264", "aac"),
    ".mkv": ("matroska", "libx264", "aac"),
    ".webm": ("webm", "libvpx-vp9", "libopus"),
}
_WITH_EDIT_LIST = (".mp4", ".mov")  # frames before the start of a clip are hidden
_PLAYABLE_CODECS = {
    ".mp4": {"h264", "aac", "mp3"},
    ".webm": {"vp8", "vp9", "av1", "opus", "vorbis"},
}
_PLAYABLE_PIXELS = ("yuv420p", "yuvj420p")
_ENCODER_OPTIONS = {
    # Without B-frames the last packet is the last frame: its duration marks the end of the clip.
    "libx264": {"preset": "veryfast", "crf": "21", "bf": "0", "g": "48"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6", "crf": "32", "b": "0", "lag-in-frames": "0"},
}
_BT709 = 1  # H.273
_MAX_THREADS = 4  # of an encoder: a server cuts several clips at the same time

_MAX_INTERLEAVING = 10.0  # seconds that a stream may lie behind another one in a file
# Seconds before the start to which to seek, one after another: some files land behind the time asked for.
_SEEK_BACK = (0.0, 2.0, 15.0)


@dataclass(frozen=True)
class Clip:
    """A clip that [`write_clip`] wrote.

    Attributes:
        path (`str`): file of the clip.
        start (`float`): seconds after the start of the source. In .mkv and .webm, a copied clip may begin up to 1 s
            before the time that was asked for. In .mp4 and .mov these frames are hidden by an edit list.
        duration (`float`): seconds.
        is_copy (`bool`): whether the video was copied without re-encoding it.
        has_sound (`bool`): whether the clip has sound.
    """

    path: str
    start: float
    duration: float
    is_copy: bool
    has_sound: bool


def clip_suffix() -> str:
    """Return the extension of clips that this build of PyAV can encode: ".mp4", or ".webm" without libx264."""
    return ".mp4" if "libx264" in import_av().codecs_available else ".webm"


def write_clip(
    source: str | os.PathLike | Any,
    start: float | None,
    duration: float | None,
    output: str | os.PathLike,
    *,
    exact: bool = False,
    playable: bool = False,
    comment: str | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Clip:
    """Cut a clip out of a video file, with its sound.

    The video is copied without re-encoding it if its codec fits the format of `output`, and a keyframe lies at
    `start` or at most 1 s before it. Otherwise it is re-encoded (H.264, or VP9 in WebM), upright, and begins at
    `start`. Sound is copied where it can be, else re-encoded. Frames keep their times, also of a variable frame rate.
    The clip is written to a temporary file and renamed: `output` is complete or unchanged.

    Args:
        source (`str`, `os.PathLike` or `BinaryIO`): video file, or a seekable binary file.
        start (`float`, *optional*): seconds after the start of the file, as in [`decode_video`]; `None` for its start.
        duration (`float`, *optional*): seconds; `None` for all that follows. A clip ends with the video.
        output (`str` or `os.PathLike`): file to write or replace: .mp4, .mov, .mkv or .webm.
        exact (`bool`): begin at `start` and end at `start + duration` to the frame: re-encode, unless the clip is the
            whole video.
        playable (`bool`): write what browsers play: H.264 with 8 bits and AAC or MP3 in .mp4; VP8, VP9 or AV1 and Opus
            or Vorbis in .webm. What is so already is copied; what is re-encoded has at most 720 lines.
        comment (`str`, *optional*): text for the tag "comment" of the clip. Tags of the source are not copied: they
            may say where it was recorded.
        is_cancelled (`Callable`): is called for each packet that is read; writing ends after it returns `True`.

    Returns:
        [`Clip`]: what was written.

    Raises:
        VideoDecodingError: the source cannot be decoded, or has no frame after `start`.
        ValueError: an invalid time, or an extension that is not supported or cannot be encoded.
        InterruptedError: `is_cancelled` returned `True`.
        OSError: `output` cannot be written.
        ImportError: PyAV is not installed.
    """
    av = import_av()
    output = os.fspath(output)
    suffix = os.path.splitext(output)[1].lower()
    if isinstance(source, (str, os.PathLike)):
        source = os.fsdecode(source)
    _check(av, source, start, duration, output, suffix)
    is_whole, start = not start and duration is None, float(start or 0)
    cut = _Cut(av, source, start, math.inf if duration is None else start + duration, suffix, playable)
    options = {"movflags": "faststart"} if suffix in _WITH_EDIT_LIST else {}
    try:
        with (
            replace_file(output) as partial,
            av.open(f"file:{partial}", "w", format=_FORMATS[suffix][0], options=options) as target,
        ):
            if comment:
                target.metadata["comment"] = comment
            cut.plan(target, may_copy=is_whole or not exact)
            cut.write(target, is_cancelled)
    except av.FFmpegError as error:  # Errors of the source are VideoDecodingErrors.
        raise OSError(f"{output} cannot be written: {error.strerror}") from error
    return Clip(output, cut.shown_from, cut.duration, cut.is_copy, cut.has_sound)


def _check(
    av: ModuleType, source: Source, start: float | None, duration: float | None, output: str, suffix: str
) -> None:
    if suffix not in _FORMATS:
        raise ValueError(f"A clip cannot be written as {output}: give a name that ends in {', '.join(_FORMATS)}.")
    _, video_encoder, _ = _FORMATS[suffix]
    if video_encoder not in av.codecs_available:
        raise ValueError(f"This build of PyAV has no {video_encoder}: give a name that ends in {clip_suffix()}.")
    if start is not None and not 0 <= start < math.inf:
        raise ValueError(f"A clip cannot start at {start} s: give seconds after the start of the video.")
    if duration is not None and not 0 < duration < math.inf:
        raise ValueError(f"A clip cannot last {duration} s: give seconds, more than 0.")
    if isinstance(source, str) and os.path.isdir(source):
        raise VideoDecodingError(source, "a folder of frames has no frame rate: cut clips from video files")
    if isinstance(source, str) and os.path.exists(source) and os.path.exists(output):
        if os.path.samefile(source, output):
            raise ValueError(f"{output} is the video itself: give another name for the clip.")


class _Clock:
    """Times of a file, in seconds after its start, as in [`decode_video`].

    Attributes:
        origin (`float`, *optional*): time is timestamp minus `origin`; `None` if frames have to be counted.
        times (`list[float]`): times of the frames in display order, if frames have to be counted.
    """

    def __init__(self, av: ModuleType, source: Source):
        self.origin: float | None = None
        self.times: list[float] = []
        with open_video(av, source) as (container, _):
            # These formats state their start, and their clocks do not jump: a long file need not be read to its end.
            if container.format.name in (MP4, "matroska,webm") and container.start_time is not None:
                self.origin = container.start_time / av.time_base
                return
            self._sound_origin = 0.0 if container.format.name == "avi" else None
        track = read_track(av, source)
        if track.metadata.duration is None:
            raise VideoDecodingError(source_name(source), "the file has neither timestamps nor a frame rate")
        if len(track.pts):
            self.origin = float(track.pts[0] * track.time_base - track.times[0])
        self.times = track.times.tolist()
        self._num_frames = 0

    def of(self, timed: Any) -> float | None:
        """Return the time of a packet or frame by its timestamp."""
        origin = self.origin if self.origin is not None else self._sound_origin
        if timed.pts is None or timed.time_base is None or origin is None:
            return None
        return float(timed.pts * timed.time_base) - origin

    def of_next(self, frame: Any) -> float | None:
        """Return the time of the next video frame; all frames are passed to this method if they have to be counted."""
        if self.origin is not None:
            return self.of(frame)
        time = self.times[min(self._num_frames, len(self.times) - 1)]
        self._num_frames += 1
        if frame.pts is not None and self._sound_origin != 0.0:  # Joined recordings: their sound follows the frames.
            self._sound_origin = float(frame.pts * frame.time_base) - time
        return time


class _Cut:
    """Write the part of a source from `start` to `end`, in seconds.

    Attributes:
        shown_from (`float`): time that is the start of the clip.
        duration (`float`): seconds that were written.
        is_copy, has_sound (`bool`): as for [`Clip`].
    """

    def __init__(self, av: ModuleType, source: Source, start: float, end: float, suffix: str, playable: bool):
        self.av, self.source, self.start, self.end, self.suffix = av, source, start, end, suffix
        self.playable = playable
        self.clock = _Clock(av, source)
        self.shown_from = start
        self.duration = 0.0
        self.is_copy = self.has_sound = False
        self._seek_to: float | None = None  # time
        self._keyframe: float | None = None

    def plan(self, target: Any, may_copy: bool) -> None:
        """Choose the keyframe to begin with, and whether to copy from it."""
        if self.clock.origin is None:
            return
        for seek_back in (*_SEEK_BACK, None):
            with open_video(self.av, self.source) as (container, stream):
                seek_to = None if seek_back is None else self.start - seek_back
                if seek_to is not None and not self._seek(container, stream, seek_to):
                    continue
                self._keyframe = self._find_keyframe(container, stream, or_first=seek_back is None)
                if self._keyframe is not None:
                    self._seek_to = seek_to
                    self.is_copy = (
                        may_copy
                        and abs(self.start - self._keyframe) <= KEYFRAME_TOLERANCE
                        and self._fits(target, stream)
                    )
                    if self.is_copy and self.suffix not in _WITH_EDIT_LIST:
                        self.shown_from = min(self._keyframe, self.start)
                    return

    def _seek(self, container: Any, stream: Any, time: float) -> bool:
        assert self.clock.origin is not None
        try:
            container.seek(math.floor((time + self.clock.origin) / stream.time_base), stream=stream)
        except self.av.FFmpegError:
            return False
        return True

    def _find_keyframe(self, container: Any, stream: Any, or_first: bool) -> float | None:
        """Return the time of the last keyframe up to `start` after the current position, or of the first later one."""
        found = None
        for packet in self._packets(container, stream):
            time = self.clock.of(packet)
            if time is None:
                continue
            if packet.is_keyframe and (time <= self.start + TIME_TOLERANCE or or_first and found is None):
                found = time
            if _decoded_at(packet, time) > self.start and (found is not None or not or_first):
                break
        return found

    def _packets(self, container: Any, *streams: Any) -> Iterator[Any]:
        """Read packets, and skip one place that cannot be read."""
        num_errors = 0
        while num_errors < 2:
            try:
                for packet in iterate_packets(container, *streams):
                    if packet.size:
                        num_errors = 0
                        yield packet
                return
            except self.av.FFmpegError:
                num_errors += 1

    def _fits(self, target: Any, stream: Any) -> bool:
        """Return whether packets of a stream can be copied into the clip."""
        name = stream.codec_context.codec.canonical_name
        if self.playable and stream.type == "video" and stream.codec_context.pix_fmt not in _PLAYABLE_PIXELS:
            return False
        return name in target.supported_codecs and (not self.playable or name in _PLAYABLE_CODECS[self.suffix])

    def write(self, target: Any, is_cancelled: Callable[[], bool]) -> None:
        """Write the clip.

        Raises:
            VideoDecodingError: the source has no frame after `start`, or none that can be decoded.
            InterruptedError: `is_cancelled` returned `True`.
        """
        with open_video(self.av, self.source) as (container, stream):
            if self._seek_to is not None:
                self._seek(container, stream, self._seek_to)
            video = _CopiedVideo(self, target, stream) if self.is_copy else _EncodedVideo(self, target, stream)
            tracks: dict[int, _Track] = {stream.index: video}
            sound = container.streams.best("audio", related=stream)
            if sound is not None and (track := self._sound_track(target, sound)) is not None:
                tracks[sound.index] = track
            waiting: list[Any] = []  # packets, until the size of the frames is known
            for packet in self._packets(container, *(container.streams[index] for index in tracks)):
                if is_cancelled():
                    raise InterruptedError("Cutting the clip was cancelled.")
                waiting += tracks[packet.stream_index].feed(packet)
                if video.is_ready:
                    target.mux(waiting)
                    waiting = []
                time = self.clock.of(packet)
                is_behind = time is not None and time > self.end + _MAX_INTERLEAVING
                if is_behind or all(track.is_done for track in tracks.values()):
                    break
            waiting += chain.from_iterable(track.finish() for track in tracks.values())
            if not video.is_ready or video.shown_until <= self.shown_from:
                raise VideoDecodingError(source_name(self.source), self._describe_nothing(video))
            target.mux(waiting)
            self.duration = min(video.shown_until, self.end) - self.shown_from
            self.has_sound = any(track.num_written > 0 for track in tracks.values() if track is not video)

    def _sound_track(self, target: Any, sound: Any) -> "_Track | None":
        if self.clock.origin is not None and sound.codec_context is not None and self._fits(target, sound):
            return _CopiedSound(self, target, sound)
        can_decode = sound.codec_context is not None and sound.codec_context.sample_rate
        if can_decode and _FORMATS[self.suffix][2] in self.av.codecs_available:
            return _EncodedSound(self, target, sound)
        return None

    def _describe_nothing(self, video: "_Track") -> str:
        if video.shown_until > -math.inf:
            return f"the clip starts at {self.start:g} s, the video ends at {max(video.shown_until, 0):g} s"
        return "no frame can be decoded, the file is damaged"


def _decoded_at(packet: Any, time: float) -> float:
    """Return the time at which a packet, shown at `time`, is decoded."""
    return time if packet.dts is None else time - float((packet.pts - packet.dts) * packet.time_base)


class _Track:
    """One stream of a clip: packets of the source become packets of the clip.

    Attributes:
        is_ready (`bool`): whether the stream has all that the header of the clip needs.
        is_done (`bool`): whether all packets up to the end of the clip were fed.
        num_written (`int`): packets of the clip.
        shown_until (`float`): time in the source at which the last frame ends; `-inf` without a frame.
    """

    def __init__(self, cut: _Cut, written: Any):
        self.cut, self.written = cut, written
        self.is_ready, self.is_done, self.num_written, self.shown_until = True, False, 0, -math.inf

    def feed(self, packet: Any) -> list[Any]:
        raise NotImplementedError

    def finish(self) -> list[Any]:
        return []

    def _copy(self, packet: Any) -> Any:
        """Move a packet of the source to the time and the stream of the clip."""
        assert self.cut.clock.origin is not None
        shift = round((self.cut.clock.origin + self.cut.shown_from) / packet.time_base)
        packet.pts -= shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        packet.stream = self.written
        self.num_written += 1
        return packet

    def _decode(self, stream: Any, packet: Any) -> list[Any]:
        try:
            frames = stream.decode(packet)
        except self.cut.av.FFmpegError:
            return []  # A player skips what is damaged.
        for frame in frames:
            frame.time_base = frame.time_base or stream.time_base  # The last frames of a decoder have none.
        return frames


class _CopiedVideo(_Track):
    def __init__(self, cut: _Cut, target: Any, stream: Any):
        super().__init__(cut, target.add_stream_from_template(stream))
        self._has_begun = False
        self._last_shown = -math.inf  # time
        self._without_dts: list[Any] = []

    def feed(self, packet: Any) -> list[Any]:
        time, begin = self.cut.clock.of(packet), self.cut._keyframe
        if time is None or begin is None or self.is_done:
            return []
        self._has_begun |= packet.is_keyframe and abs(time - begin) <= TIME_TOLERANCE
        if not self._has_begun or time < begin - TIME_TOLERANCE:  # needs frames before the keyframe
            return []
        # Frames of the clip may need a frame that is shown after its end; frames between them leave no gap.
        if _decoded_at(packet, time) >= self.cut.end - TIME_TOLERANCE and time > self._last_shown:
            self.is_done = True
            return []
        self._last_shown = max(self._last_shown, time)
        self.shown_until = max(self.shown_until, time + float((packet.duration or 0) * packet.time_base))
        self._without_dts.append(self._copy(packet))
        return [] if packet.dts is None else self._with_dts(packet.dts)

    def finish(self) -> list[Any]:
        """Write packets of a file without a dts: they are in order, so that any earlier time does."""
        return self._with_dts(min((packet.pts for packet in self._without_dts), default=0))

    def _with_dts(self, last: int) -> list[Any]:
        """Give the waiting packets, as in Matroska after seeking, the dts that precede that of the last one."""
        packets, self._without_dts = self._without_dts, []
        for position, packet in enumerate(reversed(packets)):
            packet.dts = min(last - position * (packet.duration or 1), packet.pts)
        return packets


class _CopiedSound(_Track):
    def __init__(self, cut: _Cut, target: Any, stream: Any):
        super().__init__(cut, target.add_stream_from_template(stream))

    def feed(self, packet: Any) -> list[Any]:
        time = self.cut.clock.of(packet)
        if time is None:
            return []
        middle = time + 0.5 * float((packet.duration or 0) * packet.time_base)
        self.is_done = middle >= self.cut.end
        if middle < self.cut.shown_from or self.is_done:
            return []
        packet = self._copy(packet)
        packet.dts = packet.pts
        return [packet]


class _EncodedSound(_Track):
    def __init__(self, cut: _Cut, target: Any, stream: Any):
        encoder = _FORMATS[cut.suffix][2]
        context = stream.codec_context
        rate = MAX_SOUND_RATE if encoder == "libopus" else min(context.sample_rate, MAX_SOUND_RATE)
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"
        super().__init__(cut, target.add_stream(encoder, rate=rate, layout=layout))
        self._stream = stream

    def feed(self, packet: Any) -> list[Any]:
        return [written for frame in self._decode(self._stream, packet) for written in self._add(frame)]

    def finish(self) -> list[Any]:
        packets = [] if self.is_done else self.feed(None)
        return packets + self.written.encode(None) if self.num_written else packets

    def _add(self, frame: Any) -> list[Any]:
        time = self.cut.clock.of(frame)
        if time is None:
            return []
        middle = time + 0.5 * frame.samples / frame.sample_rate
        self.is_done = middle >= self.cut.end
        if middle < self.cut.shown_from or self.is_done:
            return []
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = max(round((time - self.cut.shown_from) * frame.sample_rate), 0)
        self.num_written += 1
        return self.written.encode(frame)


class _EncodedVideo(_Track):
    def __init__(self, cut: _Cut, target: Any, stream: Any):
        encoder = _FORMATS[cut.suffix][1]
        rate = stream.average_rate or stream.guessed_rate or 25  # only guides the encoder: every frame has its time
        rate = Fraction(min(max(rate, 1), 240)).limit_denominator(1001)
        super().__init__(cut, target.add_stream(encoder, rate=rate, options=_ENCODER_OPTIONS[encoder]))
        self._stream, self.is_ready = stream, False
        self._converter, self._to_yuv = FrameConverter(cut.av), cut.av.video.reformatter.VideoReformatter()
        self._seconds_per_frame = float(1 / rate)
        self._held: tuple[float, Any] | None = None  # last frame, until it is known how long it is shown
        self._ends: dict[int, int] = {}  # durations by timestamp, in ticks

    def feed(self, packet: Any) -> list[Any]:
        return [written for frame in self._decode(self._stream, packet) for written in self._add(frame)]

    def finish(self) -> list[Any]:
        packets = [] if self.is_done else self.feed(None)
        if not self.is_done:
            packets += self._encode_held(self.shown_until)
        return packets + self._with_durations(self.written.encode(None)) if self.is_ready else packets

    def _add(self, frame: Any) -> list[Any]:
        time = self.cut.clock.of_next(frame)
        if time is None or self.is_done or (self._held is not None and time <= self._held[0]):
            return []
        packets = []
        if time >= self.cut.end - TIME_TOLERANCE:
            self.is_done = True
            time = self.cut.end
        if time > self.cut.start + TIME_TOLERANCE:
            packets = self._encode_held(time)
        if not self.is_done:
            self._held = time, frame
        seconds = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        self.shown_until = time if self.is_done else time + (seconds or self._seconds_per_frame)
        return packets

    def _encode_held(self, until: float) -> list[Any]:
        """Encode the last frame, which is shown until a time in the source."""
        if self._held is None or until <= self.cut.start + TIME_TOLERANCE:
            return []
        (time, frame), self._held = self._held, None
        time = max(time, self.cut.start)
        if not self.is_ready:
            self._open(frame)
        try:
            image = self._converter.to_rgb(frame, self._shape, self._size, "BICUBIC")
        except self.cut.av.FFmpegError as error:
            reason = f"the frame at {time:g} s is no picture: {error.strerror}"
            raise VideoDecodingError(source_name(self.cut.source), reason) from error
        rgb = self.cut.av.VideoFrame.from_ndarray(image.copy(), format="rgb24")
        yuv = self._to_yuv.reformat(rgb, format="yuv420p", dst_colorspace="ITU709", threads=1)
        yuv.time_base = Fraction(1, TICKS_PER_SECOND)
        yuv.pts = round((time - self.cut.start) * TICKS_PER_SECOND)
        self._ends[yuv.pts] = max(round((min(until, self.cut.end) - time) * TICKS_PER_SECOND), 1)
        self.num_written += 1
        return self._with_durations(self.written.encode(yuv))

    def _open(self, frame: Any) -> None:
        """Set the size of the clip, from its first frame as displayed."""
        self._shape = self._converter.shape(frame)
        is_turned = not self._shape.matrix[0]
        height, width = self._shape.displayed
        factor = min(MAX_PLAYABLE_HEIGHT / height, 1) if self.cut.playable else 1.0
        # Encoders need even numbers of pixels.
        height, width = (max(round(side * factor) // 2 * 2, 2) for side in (height, width))
        self._size = (height, width) if is_turned else (width, height)
        context = self.written.codec_context
        self.written.height, self.written.width, self.written.pix_fmt = height, width, "yuv420p"
        context.time_base = Fraction(1, TICKS_PER_SECOND)
        context.thread_count = min(os.cpu_count() or 1, _MAX_THREADS)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        aspect = self._stream.sample_aspect_ratio
        if aspect:  # of a pixel
            context.sample_aspect_ratio = 1 / aspect if is_turned else aspect
        self.is_ready = True

    def _with_durations(self, packets: list[Any]) -> list[Any]:
        for packet in packets:  # Only the duration of the last packet counts: the others end where the next begins.
            packet.duration = self._ends.pop(packet.pts, packet.duration)
        return packets


__all__ = ["Clip", "clip_suffix", "write_clip"]
