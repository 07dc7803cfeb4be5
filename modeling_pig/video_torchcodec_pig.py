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
"""Decode frames with torchcodec, on a GPU if there is one, and with PyAV where torchcodec differs from a player."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from .video_file_pig import Source, VideoTrack, decode_frames
from .video_frames_pig import MAX_PIXELS


Decoder = Literal["pyav", "torchcodec", "auto"]

# Pixel formats whose colours both decoders convert in the same way: 8 bits per channel, without transparency.
PLAIN_PIXEL_FORMAT = re.compile(r"yuvj?4\d\dp|nv12")

# Names of the colours that need a conversion to BT.709: BT.2020 and Display P3 primaries, PQ and HLG.
WIDE_COLOURS = ("bt2020", "smpte432", "smpte2084", "arib-std-b67")

# Errors of torchcodec, which has no error class: for a file that it cannot decode, and for a GPU that cannot.
TORCHCODEC_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, OSError)


def find_torchcodec(decoder: Decoder) -> ModuleType | None:
    """Return `torchcodec.decoders` if `decoder` asks for it, or `None` if PyAV decodes the frames.

    Args:
        decoder (`str`): `"pyav"`, `"torchcodec"`, or `"auto"` for torchcodec if it is installed and CUDA is available.

    Raises:
        ImportError: `decoder` is `"torchcodec"`, and torchcodec is not installed or finds no FFmpeg libraries.
        ValueError: `decoder` is unknown.
    """
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder must be one of {', '.join(get_args(Decoder))}; got {decoder!r}.")
    if decoder == "pyav" or (decoder == "auto" and _device() == "cpu"):
        return None
    try:  # transformers requires the packages that remote code imports, except within a `try`.
        import torchcodec.decoders

        if getattr(torchcodec, "ffmpeg_major_version", 0) is None:  # torchcodec 0.17 is imported without FFmpeg too
            raise ImportError("it finds no FFmpeg libraries")
        return torchcodec.decoders
    except (ImportError, OSError, RuntimeError) as error:
        if decoder == "auto":
            return None
        reason = str(error).strip().partition("\n")[0]
        raise ImportError(
            "Decoding with decoder='torchcodec' needs torchcodec, `pip install torchcodec`, and the "
            f"FFmpeg libraries, for example `apt install ffmpeg`; importing it failed: {reason}"
        ) from error


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def decode_frames_with_torchcodec(
    torchcodec: ModuleType,
    av: ModuleType,
    source: Source,
    track: VideoTrack,
    transform: Callable[[np.ndarray], np.ndarray],
    wanted: Sequence[np.ndarray],
) -> Iterator[tuple[tuple[int, int], list[np.ndarray]]]:
    """Decode the frames at each of the sorted, distinct indices `wanted`, with PyAV from the first failure on.

    torchcodec decodes videos whose frames have timestamps, at most 4 megapixels, 8 bits per channel, and neither a
    display matrix, wide colours nor transparency. It takes the timestamps of `track`, so that it neither reads the
    file a second time nor chooses other frames; a frame with another timestamp is a failure. `track.metadata` names
    the decoder of the frames that were yielded last, in `video_backend`.

    Args:
        torchcodec, av (`ModuleType`): `torchcodec.decoders` and PyAV.
        source, track, transform, wanted: as for [`decode_frames`].

    Yields:
        `tuple[tuple[int, int], list[np.ndarray]]`: as [`decode_frames`].

    Raises:
        VideoDecodingError: as [`decode_frames`].
    """
    decoder = _open_plain_video(torchcodec, source, track)
    num_done = 0
    while decoder is not None and num_done < len(wanted):
        images: list[np.ndarray] = []
        size = None
        for index in wanted[num_done].tolist():
            frame = _frame_at(decoder, track, index)
            size = size or (frame.shape[:2] if frame is not None else None)
            if frame is None or frame.shape[:2] != size:  # PyAV scales all frames to the size of the first frame.
                decoder = None
                break
            images.append(transform(frame))
        else:
            assert size is not None
            track.metadata.video_backend = "torchcodec"
            yield size, images
            num_done += 1
    if num_done < len(wanted):
        track.metadata.video_backend = "pyav"
        yield from decode_frames(av, source, track, transform, wanted[num_done:])


def _open_plain_video(torchcodec: ModuleType, source: Source, track: VideoTrack) -> Any:
    """Open a `VideoDecoder`, or return `None` if PyAV has to decode the video."""
    if not len(track.pts):
        return None
    is_keyframe = np.zeros(len(track.pts), dtype=bool)
    is_keyframe[track.keyframes] = True
    durations = np.diff(track.pts, append=track.pts[-1] + 1)
    rows = zip(track.pts.tolist(), durations.tolist(), is_keyframe.tolist(), strict=True)
    frames = [{"pts": pts, "duration": duration, "key_frame": int(key)} for pts, duration, key in rows]
    if not isinstance(source, str):
        source.seek(0)
    try:
        decoder = torchcodec.VideoDecoder(
            f"file:{source}" if isinstance(source, str) else source,
            stream_index=track.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device=_device(),
            custom_frame_mappings=json.dumps({"frames": frames}),
        )
    except TORCHCODEC_ERRORS:
        return None
    facts = decoder.metadata
    is_plain = (
        PLAIN_PIXEL_FORMAT.fullmatch(facts.pixel_format or "")
        and facts.rotation is None  # of any display matrix: torchcodec rotates frames, but does not mirror them
        and facts.color_primaries not in WIDE_COLOURS
        and facts.color_transfer_characteristic not in WIDE_COLOURS
        and (facts.width or 0) * (facts.height or 0) <= MAX_PIXELS
    )
    return decoder if is_plain else None


def _frame_at(decoder: Any, track: VideoTrack, index: int) -> np.ndarray | None:
    """Decode a frame, `(height, width, 3)` uint8; `None` if torchcodec fails or decodes another frame."""
    try:
        frame = decoder.get_frame_at(index)
    except TORCHCODEC_ERRORS:
        return None
    is_same = abs(frame.pts_seconds - track.pts[index] * track.time_base) < track.time_base / 2
    return frame.data.cpu().numpy() if is_same else None
