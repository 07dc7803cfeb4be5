"""The streams of a clip: packets of a video file become packets of the clip, copied or encoded again."""

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any

from ..video_decoding_pig import TIME_TOLERANCE
from ..video_file_pig import MP4, Source, VideoDecodingError, open_video, read_track, source_name
from ..video_frames_pig import FrameConverter


MAX_PLAYABLE_HEIGHT = 720  # pixels of a clip that is re-encoded for a browser
TICKS_PER_SECOND = 90_000  # time base of re-encoded frames
MAX_SOUND_RATE = 48_000  # samples per second

# Format, and encoders of video and sound, by the extension of the clip.
FORMATS = {
    ".mp4": ("mp4", "libx264", "aac"),
    ".mov": ("mov", "libx264", "aac"),
    ".mkv": ("matroska", "libx264", "aac"),
    ".webm": ("webm", "libvpx-vp9", "libopus"),
}
_ENCODER_OPTIONS = {
    # Without B-frames the last packet is the last frame: its duration marks the end of the clip.
    "libx264": {"preset": "veryfast", "crf": "21", "bf": "0", "g": "48"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6", "crf": "32", "b": "0", "lag-in-frames": "0"},
}
_BT709 = 1  # H.273
_MAX_THREADS = 4  # of an encoder: a server cuts several clips at the same time


@dataclass
class Cut:
    """What to cut out of a video file.

    Attributes:
        source (`str` or `BinaryIO`): video file.
        clock (`Clock`): times of the source.
        start, end (`float`): seconds after the start of the source; `end` may be infinite.
        suffix (`str`): extension of the clip.
        playable (`bool`): whether a browser has to play the clip.
        shown_from (`float`): time of the source that is the start of the clip.
        keyframe (`float`, *optional*): time of the frame with which reading begins.
    """

    av: ModuleType
    source: Source
    clock: "Clock"
    start: float
    end: float
    suffix: str
    playable: bool
    shown_from: float
    keyframe: float | None = None


class Clock:
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


def decoded_at(packet: Any, time: float) -> float:
    """Return the time at which a packet, shown at `time`, is decoded."""
    return time if packet.dts is None else time - float((packet.pts - packet.dts) * packet.time_base)


class Track:
    """One stream of a clip: packets of the source become packets of the clip.

    Attributes:
        is_ready (`bool`): whether the stream has all that the header of the clip needs.
        is_done (`bool`): whether all packets up to the end of the clip were fed.
        num_written (`int`): packets of the clip.
        shown_until (`float`): time in the source at which the last frame ends; `-inf` without a frame.
    """

    def __init__(self, cut: Cut, written: Any):
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


class CopiedVideo(Track):
    def __init__(self, cut: Cut, target: Any, stream: Any):
        super().__init__(cut, target.add_stream_from_template(stream))
        self._has_begun = False
        self._last_shown = -math.inf  # time
        self._without_dts: list[Any] = []

    def feed(self, packet: Any) -> list[Any]:
        time, begin = self.cut.clock.of(packet), self.cut.keyframe
        if time is None or begin is None or self.is_done:
            return []
        self._has_begun |= packet.is_keyframe and abs(time - begin) <= TIME_TOLERANCE
        if not self._has_begun or time < begin - TIME_TOLERANCE:  # needs frames before the keyframe
            return []
        # Frames of the clip may need a frame that is shown after its end; frames between them leave no gap.
        if decoded_at(packet, time) >= self.cut.end - TIME_TOLERANCE and time > self._last_shown:
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


class CopiedSound(Track):
    def __init__(self, cut: Cut, target: Any, stream: Any):
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


class EncodedSound(Track):
    def __init__(self, cut: Cut, target: Any, stream: Any):
        encoder = FORMATS[cut.suffix][2]
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


class EncodedVideo(Track):
    def __init__(self, cut: Cut, target: Any, stream: Any):
        encoder = FORMATS[cut.suffix][1]
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


__all__ = [
    "FORMATS",
    "Clock",
    "CopiedSound",
    "CopiedVideo",
    "Cut",
    "EncodedSound",
    "EncodedVideo",
    "Track",
    "decoded_at",
]
