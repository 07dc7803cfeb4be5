"""Re-encode videos smaller: video files as H.264 with true frame times, folders of frames as smaller JPEGs."""

import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import PIL.Image

from ..files import replace_file, replace_folder
from ..video_decoding_pig import VideoDecodingError, iterate_timed_frames, list_frames
from ..video_frames_pig import FrameConverter


CRF = 20
TICKS_PER_SECOND = 90_000  # time base of the files that are written
ENCODER_OPTIONS = {
    "preset": "veryfast",  # Slower presets save few bytes at these sizes.
    "g": "30",  # A clip's frames lie far apart: decoding can start near each of them.
    "bf": "0",  # Without B-frames the last packet is the last frame: its duration marks the end of the video.
    "mbtree": "0",  # With macroblock trees x264 writes a slightly different file in each run.
}
JPEG_QUALITY = 90


def encode_video(
    source: str | os.PathLike,
    target: str | os.PathLike,
    short_side: int | None = None,
    fps: float | None = None,
    crf: int = CRF,
) -> None:
    """
    Re-encode a video as H.264 in an mp4 file, without sound, upright, with even numbers of pixels.

    The frames keep their times, counted from the start of the file, and HDR is tone-mapped. An existing target is
    replaced on success only.

    Args:
        source (`str` or `os.PathLike`): video file.
        target (`str` or `os.PathLike`): mp4 file to write; not `source`. A link is replaced, its target is not.
        short_side (`int`, *optional*): pixels of the shorter side, at least 16; the longer side keeps the aspect
            ratio. Smaller videos keep their size.
        fps (`float`, *optional*): frames per second, more than 0: of the frames that begin within the same
            1 / `fps` seconds only the first is kept. Slower videos keep all frames.
        crf (`int`, *optional*, defaults to 20): quality of x264, 0 to 51; a lower value is better and larger.

    Raises:
        VideoDecodingError: `source` cannot be decoded to its end.
        OSError: `target` cannot be written.
    """
    source, target = os.fsdecode(source), os.fsdecode(target)
    if os.path.islink(target):
        os.unlink(target)
    options = {"crf": str(crf), **ENCODER_OPTIONS}
    to_yuv = av.video.reformatter.VideoReformatter()
    durations: dict[int, int] = {}  # from each frame to the end of the video, by the frame's pts, in ticks
    stream: Any = None

    def write(packets: list) -> None:
        for packet in packets:  # Only the duration of the last packet counts: the others end where the next begins.
            packet.duration = durations[packet.pts]
            container.mux(packet)

    try:
        with (
            replace_file(target) as partial,
            av.open(f"file:{partial}", "w", format="mp4", options={"movflags": "faststart"}) as container,
        ):
            for seconds, remaining, image in _read_scaled_frames(source, short_side, fps):
                if stream is None:  # The rate only guides the encoder: every frame has its own time.
                    rate = Fraction(fps or 25).limit_denominator(1001)
                    stream = container.add_stream("libx264", rate=rate, options=options)
                    stream.height, stream.width = image.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.codec_context.time_base = Fraction(1, TICKS_PER_SECOND)
                    stream.codec_context.thread_count = 1
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame = to_yuv.reformat(frame, format="yuv420p", threads=1)
                frame.time_base = Fraction(1, TICKS_PER_SECOND)
                frame.pts = round(seconds * TICKS_PER_SECOND)
                durations[frame.pts] = max(round(remaining * TICKS_PER_SECOND), 1)
                write(stream.encode(frame))
            write(stream.encode())
    except av.FFmpegError as error:  # Errors of the source are VideoDecodingErrors.
        raise OSError(f"{target} cannot be written: {error.strerror}") from error


def shrink_frames(source: str, target: str, short_side: int | None = None) -> None:
    """
    Copy a folder of JPEG frames, with the larger ones scaled down.

    Args:
        source (`str`): folder of numbered JPEGs. It has no frame rate, so that all frames are kept.
        target (`str`): folder to write or replace.
        short_side (`int`, *optional*): pixels of the shorter side; smaller frames are copied unchanged.

    Raises:
        VideoDecodingError: a frame cannot be read.
        OSError: `target` cannot be written.
    """
    with replace_folder(target) as partial:
        for name in list_frames(source):
            path = os.path.join(source, name)
            try:
                with PIL.Image.open(path, formats=["JPEG"]) as image:
                    image.load()
            except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
                reason = f"the frame {name} cannot be read as a JPEG; extract or copy it again"
                raise VideoDecodingError(source, reason) from error
            if short_side is not None and min(image.size) > short_side:
                smaller = image.convert("RGB").resize(_scaled(*image.size, short_side), PIL.Image.Resampling.BICUBIC)
                smaller.save(partial / name, format="JPEG", quality=JPEG_QUALITY)
            else:
                shutil.copyfile(path, partial / name)


def _read_scaled_frames(
    source: str, short_side: int | None, fps: float | None
) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yield for each kept frame: its time in seconds, seconds to the video's end, uint8 RGB `(height, width, 3)`."""
    converter, shape = FrameConverter(av), None
    interval = -1  # of 1 / fps seconds, in which the last kept frame begins
    for seconds, frame, metadata in iterate_timed_frames(source):
        assert metadata.fps is not None and metadata.duration is not None
        if fps is not None and metadata.fps > fps:
            if int(seconds * fps + 1e-6) == interval:
                continue
            interval = int(seconds * fps + 1e-6)
        if shape is None:  # Size and orientation may change within the source, but not in the result.
            shape = converter.shape(frame)
            size = _scaled(shape.width, shape.height, short_side)
            seconds = 0.0  # Without sound, a first frame that begins later would shift all times.
        try:  # Scale in RGB, as `decode_video` does, so that the colours are the same.
            image = np.ascontiguousarray(converter.to_rgb(frame, shape, size, "BICUBIC"))
        except av.FFmpegError as error:
            raise VideoDecodingError(source, f"the frame at {seconds:g} s is no picture: {error.strerror}") from error
        yield seconds, metadata.duration - seconds, image


def _scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return the even width and height of a picture whose shorter side is scaled down to `short_side`."""
    shorter = min(width, height)
    target = min(short_side or shorter, shorter) // 2 * 2
    if target >= shorter - 1:  # Crop odd pixels instead of scaling by less than 2 pixels.
        return width // 2 * 2, height // 2 * 2
    return round(width * target / shorter / 2) * 2, round(height * target / shorter / 2) * 2


__all__ = ["CRF", "encode_video", "shrink_frames"]
