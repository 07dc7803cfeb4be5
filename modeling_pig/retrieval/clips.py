"""Cut clips out of video files, with their sound: copied from a keyframe where there is one, else re-encoded."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import ModuleType
from typing import Any

from ..files import replace_file
from ..video_decoding_pig import TIME_TOLERANCE
from ..video_file_pig import Source, VideoDecodingError, import_av, iterate_packets, open_video, source_name
from .clip_tracks import FORMATS, Clock, CopiedSound, CopiedVideo, Cut, EncodedSound, EncodedVideo, Track, decoded_at


KEYFRAME_TOLERANCE = 1.0  # seconds before the start at which a clip that is copied may begin

_WITH_EDIT_LIST = (".mp4", ".mov")  # frames before the start of a clip are hidden
_PLAYABLE_CODECS = {
    ".mp4": {"h264", "aac", "mp3"},
    ".webm": {"vp8", "vp9", "av1", "opus", "vorbis"},
}
_PLAYABLE_PIXELS = ("yuv420p", "yuvj420p")
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
    end = math.inf if duration is None else start + duration
    cut = _Writer(av, source, Clock(av, source), start, end, suffix, playable, shown_from=start)
    options = {"movflags": "faststart"} if suffix in _WITH_EDIT_LIST else {}
    try:
        with (
            replace_file(output) as partial,
            av.open(f"file:{partial}", "w", format=FORMATS[suffix][0], options=options) as target,
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
    if suffix not in FORMATS:
        raise ValueError(f"A clip cannot be written as {output}: give a name that ends in {', '.join(FORMATS)}.")
    _, video_encoder, _ = FORMATS[suffix]
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


@dataclass
class _Writer(Cut):
    """Write a clip: first `plan`, then `write`.

    Attributes:
        duration (`float`): seconds that were written.
        is_copy, has_sound (`bool`): as for [`Clip`].
    """

    duration: float = 0.0
    is_copy: bool = False
    has_sound: bool = False
    _seek_to: float | None = None  # time

    def plan(self, target: Any, may_copy: bool) -> None:
        """Choose the keyframe to begin with, and whether to copy from it."""
        if self.clock.origin is None:
            return
        for seek_back in (*_SEEK_BACK, None):
            with open_video(self.av, self.source) as (container, stream):
                seek_to = None if seek_back is None else self.start - seek_back
                if seek_to is not None and not self._seek(container, stream, seek_to):
                    continue
                self.keyframe = self._find_keyframe(container, stream, or_first=seek_back is None)
                if self.keyframe is not None:
                    self._seek_to = seek_to
                    self.is_copy = (
                        may_copy
                        and abs(self.start - self.keyframe) <= KEYFRAME_TOLERANCE
                        and self._fits(target, stream)
                    )
                    if self.is_copy and self.suffix not in _WITH_EDIT_LIST:
                        self.shown_from = min(self.keyframe, self.start)
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
            if decoded_at(packet, time) > self.start and (found is not None or not or_first):
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
            video = CopiedVideo(self, target, stream) if self.is_copy else EncodedVideo(self, target, stream)
            tracks: dict[int, Track] = {stream.index: video}
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

    def _sound_track(self, target: Any, sound: Any) -> "Track | None":
        if self.clock.origin is not None and sound.codec_context is not None and self._fits(target, sound):
            return CopiedSound(self, target, sound)
        can_decode = sound.codec_context is not None and sound.codec_context.sample_rate
        if can_decode and FORMATS[self.suffix][2] in self.av.codecs_available:
            return EncodedSound(self, target, sound)
        return None

    def _describe_nothing(self, video: "Track") -> str:
        if video.shown_until > -math.inf:
            return f"the clip starts at {self.start:g} s, the video ends at {max(video.shown_until, 0):g} s"
        return "no frame can be decoded, the file is damaged"


__all__ = ["Clip", "clip_suffix", "write_clip"]
