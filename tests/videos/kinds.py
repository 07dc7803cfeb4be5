"""Table of kinds of videos: how to draw one, and what a player shows of it.

Each frame shows its number ([`numbered_frames`]), or four coloured quadrants. Sizes and durations are small.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..video_files import numbered_frames, set_mp4_matrix, write_video


COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255), "K": (0, 0, 0)}
BROKEN = "the file ends early"
SAMPLE_RATE = 8000


@dataclass(frozen=True)
class Kind:
    """Kind of video.

    Attributes:
        file (`str`): name of the file.
        draw (`Callable`): draws the video at a path.
        num_frames (`int`, *optional*): number of frames; not checked where a player counts differently.
        seconds (`float`, *optional*): duration.
        numbers (`list[int]`, *optional*): numbers that four frames evenly spaced in time show.
        quadrants (`str`, *optional*): colours of the first frame at the upper left, upper right, lower left and lower
            right, letters of `COLOURS`.
        error (`str`, *optional*): regular expression of the reason why the file is refused.
        warning (`str`, *optional*): regular expression of the warning.
    """

    file: str
    draw: Callable[[Path], None]
    num_frames: int | None = None
    seconds: float | None = None
    numbers: list[int] | None = None
    quadrants: str | None = None
    error: str | None = None
    warning: str | None = None

    def __str__(self) -> str:
        return self.file


def write_streams(
    path: Path,
    frames: np.ndarray,
    times: Sequence[float] | None = None,
    sound: tuple[float, float] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    container_format: str | None = None,
    encoder_flags: int = 0,
    first: np.ndarray | None = None,
    first_is_still: bool = True,
) -> Path:
    """Write a video file with 25 frames per second.

    Args:
        frames (`np.ndarray` of shape `(N, height, width, 3)`): uint8 RGB frames.
        times (`Sequence[float]`, *optional*): time of each frame in seconds; may start late and vary.
        sound (`tuple[float, float]`, *optional*): start and end of silence, in seconds.
        first (`np.ndarray`, *optional*): uint8 RGB frames of another video stream that comes first.
    """
    with av.open(str(path), "w", format=container_format, options=container_options or {}) as container:
        others = []
        if first is not None:
            still = container.add_stream("mjpeg", rate=25)
            still.width, still.height, still.pix_fmt = first.shape[2], first.shape[1], "yuvj420p"
            still.disposition = av.stream.Disposition(0)
            others = [(still, frame, number) for number, frame in enumerate(first)]
        stream = container.add_stream(codec, rate=25, options={"threads": "1", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if first is not None:
            stream.disposition = av.stream.Disposition.default
        stream.codec_context.flags |= encoder_flags
        if sound is not None:
            audio = container.add_stream("aac" if container.format.name != "mxf" else "pcm_s16le", rate=SAMPLE_RATE)
            _write_silence(container, audio, *sound)
        for still, image, number in others:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(still.encode(frame))
        for still in {stream for stream, *_ in others}:
            container.mux(still.encode())
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is None:
                frame.pts, frame.time_base = number, Fraction(1, 25)
            else:
                frame.pts, frame.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _write_silence(container, audio, start: float, end: float) -> None:
    for number in range(round((end - start) * SAMPLE_RATE / 1024)):
        format_, kind = (("fltp", np.float32), ("s16", np.int16))[audio.codec_context.name != "aac"]
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), kind), format=format_, layout="mono")
        silence.sample_rate, silence.pts = SAMPLE_RATE, round(SAMPLE_RATE * start) + 1024 * number
        silence.time_base = Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(silence))
    container.mux(audio.encode())


def quadrants(colours: str, num_frames: int = 10, height: int = 96, width: int = 160) -> np.ndarray:
    """Return uint8 frames, `(num_frames, height, width, 3)`, of four colours; see [`Kind`]."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate(colours):
        row, column = number // 2 * height // 2, number % 2 * width // 2
        image[row : row + height // 2, column : column + width // 2] = COLOURS[colour]
    return np.stack([image] * num_frames)


NUMBERED = numbered_frames(100)


def _cut(share: float, **settings) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        write_streams(path, NUMBERED, **settings)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share) | 1])  # within a packet of 188 bytes

    return draw


def _plain(**settings) -> Callable[[Path], None]:
    return lambda path: write_streams(path, settings.pop("frames", NUMBERED), **settings) and None


def _variable_rate(path: Path) -> None:
    write_streams(path, NUMBERED[:56], times=[0, 10, 20, 30, 40, 50, *(60 + number / 25 for number in range(50))])


def _slides(path: Path) -> None:
    """A picture every 20 s; the sound lasts as long."""
    write_streams(path, NUMBERED[:4], times=[0, 70, 140, 210], sound=(0, 280))


def _late(path: Path) -> None:
    write_streams(path, NUMBERED, times=[2 + number / 25 for number in range(100)], sound=(0, 6))


def _matrix(*matrix: int) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        set_mp4_matrix(write_streams(path, quadrants("RGBB")), matrix)

    return draw


def _hdr(transfer: int) -> Callable[[Path], None]:
    """SDR white and red as HDR of BT.2020 primaries, at 203 cd/m^2."""

    def draw(path: Path) -> None:
        bt709_to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
        linear = quadrants("WRRK", 1)[0] / 255 @ bt709_to_2020.T  # 1 is 203 cd/m^2
        if transfer == 16:
            power = (0.0203 * linear) ** 0.1593017578125
            code = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
        else:
            scene = np.maximum(0.203 * linear, 0) ** (1 / 1.2)
            code = np.where(
                scene <= 1 / 12,
                np.sqrt(3 * scene),
                0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
            )
        luma = code @ [0.2627, 0.6780, 0.0593]
        planes = [
            64 + 876 * luma,
            (512 + 896 * (code[..., 2] - luma) / 1.8814)[::2, ::2],
            (512 + 896 * (code[..., 0] - luma) / 1.4746)[::2, ::2],
        ]
        with av.open(path, "w") as container:
            stream = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none"})
            stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p10le"
            context = stream.codec_context
            context.color_trc, context.color_primaries, context.colorspace = transfer, 9, 9
            for number in range(10):
                frame = av.VideoFrame(160, 96, "yuv420p10le")
                for plane, values in zip(frame.planes, planes, strict=True):
                    padded = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                    padded[:, : values.shape[1]] = values.round()
                    plane.update(padded)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    return draw


def _transparent(path: Path) -> None:
    """Left half opaque red, right half transparent white."""
    rgba = np.zeros((96, 160, 4), np.uint8)
    rgba[:, :80] = 255, 0, 0, 255
    rgba[:, 80:, :3] = 255
    with av.open(path, "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "rgba"
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _two_streams(num_first: int) -> Callable[[Path], None]:
    return lambda path: write_streams(path, NUMBERED, first=quadrants("RRRR", num_first, 48, 64)) and None


def _two_angles(path: Path) -> None:
    write_streams(path, NUMBERED, codec="mjpeg", pixel_format="yuvj420p", first=numbered_frames(100, 128, 192)[::-1])


def _joined(paths: Iterable[Path], path: Path) -> None:
    path.write_bytes(b"".join(part.read_bytes() for part in paths))


def _clock_restarts(path: Path) -> None:
    parts = [write_video(path.with_name(f"part{n}.ts"), NUMBERED[50 * n : 50 * n + 50]) for n in range(2)]
    _joined(parts, path)
    for part in parts:
        part.unlink()


def _clock_jumps(path: Path) -> None:
    times = [number / 25 + (3600 if number >= 50 else 0) for number in range(100)]
    write_streams(path, NUMBERED, times=times, options={"bf": "0"})


def _size_changes(path: Path) -> None:
    frames = NUMBERED[:50], numbered_frames(100, 128, 192)[50:]
    parts = [write_video(path.with_name(f"part{n}.ts"), frames[n]) for n in range(2)]
    _joined(parts, path)
    for part in parts:
        part.unlink()


def _bad_packets(positions: Sequence[int]) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        write_video(path, NUMBERED, options={"bf": "0", "g": "10"})
        content = bytearray(path.read_bytes())
        with av.open(path) as container:
            packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
        for number in positions:
            position, size = packets[number]
            content[position : position + size] = b"\xff" * size
        path.write_bytes(content)

    return draw


def _lying_matroska(path: Path) -> None:
    content = bytearray(write_streams(path, NUMBERED).read_bytes())
    at = content.index(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", 1.2 * struct.unpack(">d", content[at : at + 8])[0])
    path.write_bytes(content)


def _lying_avi(path: Path) -> None:
    content = bytearray(write_streams(path, NUMBERED, codec="mpeg4").read_bytes())
    at = content.index(b"strh") + 40
    content[at : at + 4] = struct.pack("<I", 120)
    path.write_bytes(content)


def _field_pairs(path: Path) -> None:
    """H.264 field pictures: two packets per frame, with a timestamp for the first. Frame n has a luma of 16 + 2 n."""

    def golomb(value: int) -> str:
        return "0" * ((value + 1).bit_length() - 1) + format(value + 1, "b")

    def unit(head: int, bits: str) -> bytes:
        bits += "1"
        bits += "0" * (-len(bits) % 8)
        return b"\0\0\0\1" + bytes([head]) + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))

    def macroblock(bits: str, luma: int) -> str:  # uncompressed samples
        bits += golomb(25)
        return bits + "0" * (-len(bits) % 8) + format(luma, "08b") * 256 + format(128, "08b") * 128

    def picture(number: int, bottom: int) -> bytes:
        bits = golomb(0) + golomb(7) + golomb(0) + "0000" + "1" + str(bottom)
        bits += ("" if bottom else golomb(number % 2)) + format(bottom, "08b") + "0" * (2 - bottom)
        bits = macroblock(macroblock(bits + golomb(0) + golomb(1), 16 + 2 * number), 16 + 2 * number)
        return unit(0x61 if bottom else 0x65, bits)

    parameters = format(77 << 16 | 30, "024b") + golomb(0) * 3 + golomb(4) + golomb(1) + "0" + golomb(1) + golomb(0)
    head = unit(0x67, parameters + "00100") + unit(0x68, "11" + "00" + "111" + "000" + "111" + "100")
    with av.open(path, "w") as container:
        stream = container.add_stream("h264", rate=25)
        stream.width, stream.height, stream.codec_context.extradata = 32, 32, head
        for number in range(100):
            packet = av.Packet(head + picture(number, 0) + picture(number, 1))
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            packet.pts = packet.dts = number
            container.mux(packet)


FOUR = [0, 33, 66, 99]  # evenly spaced numbers of 100 frames
ENCRYPTION = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}
INTERLACED = {"codec": "mpeg2video", "encoder_flags": 1 << 18 | 1 << 29}  # interlaced DCT and motion estimation

KINDS = [
    # Containers.
    *(
        Kind(f"plain.{suffix}", _plain(codec=codec), 100, 4, FOUR)
        for suffix, codec in {
            **dict.fromkeys(("mp4", "m4v", "mov", "mkv", "ts", "mts", "m2ts", "flv", "3gp"), "libx264"),
            **dict.fromkeys(("mpg", "mpeg", "mxf", "vob"), "mpeg2video"),
            "wmv": "wmv2",
            "asf": "wmv2",
            "avi": "mpeg4",
            "webm": "libvpx-vp9",
            "ogv": "libvpx",
        }.items()
    ),
    Kind("plain.gif", _plain(codec="gif", pixel_format="rgb8"), 100, 4, FOUR),
    # Times.
    Kind("variable_rate.mp4", _variable_rate, 56, 62, [0, 2, 4, 55]),
    Kind("variable_rate.mkv", _variable_rate, 56, 62, [0, 2, 4, 55]),
    Kind("sound_with_few_pictures.mp4", _slides, 4, None, [0, 1, 2, 3]),
    Kind("late.mp4", _late, 100, 6, FOUR),
    Kind("late.mkv", _late, 100, 6, FOUR),
    Kind("clock_restarts.ts", _clock_restarts, 100, 4, FOUR),
    Kind("clock_jumps.ts", _clock_jumps, 100, 4, FOUR),
    Kind("endless.mkv", _plain(container_options={"live": "1"}), 100, 4, FOUR),
    Kind("endless.mp4", _plain(container_options={"movflags": "frag_keyframe+empty_moov"}), 100, None, FOUR),
    Kind("fields.ts", _field_pairs, 100, 4),
    # What a player shows.
    Kind("hdr_pq.mp4", _hdr(16), 10, 0.4, quadrants="WRRK"),
    Kind("hdr_hlg.mp4", _hdr(18), 10, 0.4, quadrants="WRRK"),
    Kind("mirrored.mp4", _matrix(-1, 0, 0, 1), 10, 0.4, quadrants="GRBB"),
    Kind("flipped.mp4", _matrix(1, 0, 0, -1), 10, 0.4, quadrants="BBRG"),
    Kind("rotated.mp4", _matrix(0, 1, -1, 0), 10, 0.4, quadrants="BRBG"),
    Kind("transposed.mp4", _matrix(0, 1, 1, 0), 10, 0.4, quadrants="RBGB"),
    Kind("zero_matrix.mp4", _matrix(0, 0, 0, 0), 10, 0.4, quadrants="RGBB"),
    Kind("transparent.mov", _transparent, 10, 0.4, quadrants="RKRK"),
    Kind("still_first.mp4", _two_streams(1), 100, 4, FOUR),
    Kind("still_first.mkv", _two_streams(1), 100, 4, FOUR),
    Kind("preview_first.mp4", _two_streams(20), 100, 4, FOUR),
    Kind("two_angles.mkv", _two_angles, 100, 4, FOUR),
    Kind("size_changes.ts", _size_changes, 100, 4, FOUR),
    Kind("interlaced.mpg", _plain(**INTERLACED), 100, 4, FOUR),
    # Damage.
    Kind("bad_packet.mp4", _bad_packets([55]), 100, 4, FOUR),
    Kind("bad_packets.mp4", _bad_packets(range(20, 50)), error=r"damaged: \d+ of \d+ packets cannot be decoded, more"),
    Kind("duration_lies.mkv", _lying_matroska, 100, 4, FOUR),
    Kind("duration_lies.avi", _lying_avi, 100, 4, FOUR),
    Kind("cut.mp4", _cut(0.6, container_options={"movflags": "faststart"}), error="truncated: the file holds"),
    Kind("cut.mkv", _cut(0.6), error="truncated: the file holds"),
    Kind("cut.avi", _cut(0.6, codec="mpeg4"), error="truncated: the file holds"),
    Kind("cut.ts", _cut(0.6), warning=BROKEN),
    Kind("cut.flv", _cut(0.6), warning=BROKEN + r", its header promises 4\.\d s"),
    Kind("cut.wmv", _cut(0.6, codec="wmv2"), warning=BROKEN),
    Kind("cut.mpg", _cut(0.6, codec="mpeg2video"), warning=BROKEN),
    Kind("cut.ogv", _cut(0.6, codec="libvpx"), warning=BROKEN),
    Kind("cut.mxf", _cut(0.6, codec="mpeg2video"), warning=BROKEN + r", its header promises 4\.\d s"),
    Kind(
        "cut_fragment.mp4",
        _cut(0.6, container_options={"movflags": "frag_keyframe+empty_moov"}, options={"g": "10"}),
        warning=BROKEN,
    ),
    Kind("encrypted.mp4", _plain(container_options=ENCRYPTION), error="encrypted"),
]
