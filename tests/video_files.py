"""Write small video files whose frames show their number, and read the numbers of decoded frames."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image


NUM_BITS = 10


def numbered_frames(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Create frames of a moving pattern with their number in black and white blocks along the upper edge.

    Args:
        num_frames (`int`): number of frames, N, at most 1024.
        height (`int`, *optional*, defaults to 64): height in pixels.
        width (`int`, *optional*, defaults to 96): width in pixels, at least 80, so that blocks survive compression.

    Returns:
        `np.ndarray` of shape `(N, height, width, 3)`: uint8.
    """
    pattern = np.random.default_rng(0).integers(0, 255, (height // 8, width // 4, 3), dtype=np.uint8)
    pattern = pattern.repeat(8, axis=0).repeat(8, axis=1)  # (height, 2 * width, 3)
    frames = np.stack([np.roll(pattern, -2 * number, axis=1)[:, :width] for number in range(num_frames)])
    block = width // NUM_BITS
    for bit in range(NUM_BITS):
        is_white = np.arange(num_frames) >> bit & 1
        frames[:, :8, bit * block : (bit + 1) * block] = 255 * is_white[:, None, None, None]
    return frames


def read_number(frame: np.ndarray) -> int:
    """Return the number that a frame of [`numbered_frames`], `(height, width, 3)`, shows, also after compression."""
    block = frame.shape[1] // NUM_BITS
    columns = np.arange(NUM_BITS)[:, None] * block + np.arange(2, block - 2)
    is_white = frame[2:6, columns].mean(axis=(0, 2, 3)) > 128  # (NUM_BITS,)
    return int(is_white @ (1 << np.arange(NUM_BITS)))


def read_numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: int = 25,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    rotation: int = 0,
    faststart: bool = False,
) -> Path:
    """Write a video file.

    Args:
        path (`Path`): path of the file; its suffix selects the container.
        frames (`np.ndarray` of shape `(N, height, width, 3)`): uint8 RGB frames, as displayed.
        fps (`int`, *optional*, defaults to 25): frames per second.
        codec (`str`, *optional*, defaults to `"libx264"`): encoder of FFmpeg.
        options (`dict[str, str]`, *optional*): options of the encoder; `{"g": "10"}` sets a keyframe every 10 frames.
        pts (`Sequence[int]`, *optional*): time of each frame in units of 1 / `fps`, for a variable frame rate.
        rotation (`int`, *optional*, defaults to 0): counter-clockwise rotation in degrees that a player applies.
        faststart (`bool`, *optional*, defaults to `False`): write the index of an mp4 file at its start.

    Returns:
        `Path`: `path`.
    """
    stored = np.rot90(frames, -(rotation // 90), axes=(1, 2))
    with av.open(path, "w", options={"movflags": "faststart"} if faststart else {}) as container:
        # With macroblock trees, x264 is not deterministic.
        defaults = {"mbtree": "0"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=fps, options={**defaults, **(options or {})})
        stream.height, stream.width = stored.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for number, image in enumerate(stored):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_frame_folder(folder: Path, frames: np.ndarray, name: str = "{:06d}.jpg") -> Path:
    """Write uint8 frames, `(N, height, width, 3)`, as JPEG files numbered from 1."""
    folder.mkdir()
    for number, frame in enumerate(frames, start=1):
        PIL.Image.fromarray(frame).save(folder / name.format(number), format="JPEG", quality=95)
    return folder


def write_audio(path: Path, with_cover: bool = False) -> Path:
    """Write one second of silence, with a cover image if `with_cover`."""
    with av.open(path, "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        stream = container.add_stream("aac" if path.suffix == ".m4a" else "pcm_s16le", rate=16000)
        if with_cover:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            picture.pts = 0
            container.mux(cover.encode(picture) + cover.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        silence.rate = 16000
        container.mux(stream.encode(silence) + stream.encode())
    return path


def cut_file(path: Path, fraction: float) -> Path:
    """Truncate a file to `fraction` of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def add_empty_packets(source: Path, path: Path, after: Sequence[int]) -> Path:
    """Copy an MPEG-4 part 2 video, and insert a packet without an image after each frame of `after`."""
    not_coded = bytes.fromhex("000001b6504f")
    with av.open(source) as old, av.open(path, "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        packets = [packet for packet in old.demux(stream) if packet.size]
        for number, packet in enumerate(packets):
            pts, duration = packet.pts, packet.duration
            packet.stream = copy
            new.mux(packet)
            if number in after:
                extra = av.Packet(not_coded)
                extra.pts = extra.dts = pts + duration // 2
                extra.time_base, extra.stream = stream.time_base, copy
                new.mux(extra)
    return path


def set_mp4_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Overwrite the display matrix `(a, b, c, d)` in the track header of an mp4 file.

    The stored pixel (x, y) is displayed at (a x + c y, b x + d y); x points to the right and y down.
    """
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # after name, version, times, id, duration, layer and volume
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def set_mp4_edit(path: Path, start: int, duration: int) -> Path:
    """Let the edit list of an mp4 file show `duration` ms, starting `start` ticks of its track later."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12  # after name, version and number of entries
    media_time = struct.unpack_from(">i", content, entry + 4)[0]
    struct.pack_into(">Ii", content, entry, duration, media_time + start)
    path.write_bytes(content)
    return path
