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
"""PIG video processor: converts files, arrays, tensors or lists of images to `pixel_values_videos`."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .configuration_pig import PigVisionConfig
from .video_decoding_pig import FrameSampling, decode_video, sample_frame_indices
from .video_torchcodec_pig import Decoder


class PigVideosKwargs(VideosKwargs, total=False):
    """Settings of [`PigVideoProcessor`], for the processor or for one call.

    frame_sampling (`str`):
        `"time"` samples frames that are evenly spaced in time, `"index"` by their numbers, as the paper does. They
        differ only for video files with variable frame rate.
    decoder (`str`):
        `"pyav"`, `"torchcodec"`, or `"auto"` for torchcodec if it is installed and CUDA is available; see
        [`decode_video`].
    """

    frame_sampling: FrameSampling
    decoder: Decoder


class PigVideoProcessor(BaseVideoProcessor):
    """Sample T frames of each video, resize them to a square and normalise them as CLIP does.

    Resizing follows the paper's recipe: bicubic with antialiasing, without keeping the aspect ratio, no crop. Frames
    are evenly spaced and include the first and the last frame ([`sample_frame_indices`]); pass
    `do_sample_frames=False` for frames that are already sampled.

    Accepts a video or a list of videos. A video is one of:

    - a path, the `bytes` of a video file, a seekable binary file, or a dict of `path` and `bytes`, as `datasets` gives
      with `Video(decode=False)`;
    - an array or tensor of shape `(frames, 3, height, width)` or `(frames, height, width, 3)`, or a list of
      `PIL.Image` or of `(height, width, 3)` arrays;
    - a dict of such an `array` and its `video_metadata`;
    - a `torchcodec.decoders.VideoDecoder`.
    """

    valid_kwargs = PigVideosKwargs  # type: ignore[assignment]

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 12
    frame_sampling: FrameSampling = "time"
    decoder: Decoder = "pyav"

    @classmethod
    def from_config(cls, config: PigVisionConfig) -> "PigVideoProcessor":
        """Create the processor for a vision tower, with its number and size of frames."""
        size: Any = {"height": config.image_size, "width": config.image_size}
        return cls(size=size, num_frames=config.num_frames)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings to save: all but the decoder, which depends on the machine."""
        settings = super().to_dict()
        settings.pop("decoder", None)
        return settings

    def sample_frames(
        self, metadata: VideoMetadata, num_frames: int | None = None, fps: float | None = None, **kwargs
    ) -> np.ndarray:
        """Return the indices of evenly spaced frames, `(T,)`, from the first to the last; short videos repeat frames.

        Raises:
            ValueError: `fps` is given.
        """
        if fps is not None:
            raise ValueError(f"fps is {fps}, but PIG reads the same number of frames per video: use num_frames.")
        return sample_frame_indices(metadata.total_num_frames, num_frames or self.num_frames)

    def resize_frame(self, frame: np.ndarray) -> np.ndarray:
        """Resize a uint8 frame, `(height, width, 3)`, to the input size of the model, `(size, size, 3)`.

        As `transform` of [`decode_video`] it bounds the memory that the frames of a video take.
        """
        return _resize_frame(self, self.size, self.resample, frame) if self.do_resize else frame

    @property
    def decoding_options(self) -> dict[str, Any]:
        """Arguments of [`decode_video`] by which all readers decode a video in the same way."""
        return {"sampling": self.frame_sampling, "transform": self.resize_frame, "decoder": self.decoder}

    def fetch_videos(self, video_url_or_urls, sample_indices_fn: Callable | None = None):
        """Decode a file, or each file of a list, with `decoder`.

        Raises:
            VideoDecodingError: a file cannot be decoded.
            ImportError: the decoder is not installed.
        """
        if isinstance(video_url_or_urls, (list, tuple)):
            return tuple(zip(*(self.fetch_videos(url, sample_indices_fn) for url in video_url_or_urls), strict=True))
        # `preprocess` binds the caller's settings to the sampling function.
        settings = sample_indices_fn.keywords if isinstance(sample_indices_fn, partial) else {}
        resize = None
        if settings.get("do_resize", self.do_resize):
            size, resample = settings.get("size") or self.size, settings.get("resample") or self.resample
            resize = partial(_resize_frame, self, size, resample)
        return decode_video(
            video_url_or_urls,
            settings.get("num_frames") or self.num_frames,
            sampling=settings.get("frame_sampling") or self.frame_sampling,
            transform=resize,
            decoder=settings.get("decoder") or self.decoder,
        )

    def _decode_and_sample_videos(
        self, videos, video_metadata=None, do_sample_frames=None, sample_indices_fn: Callable | None = None
    ):
        sampled = [self._sample_video(video, sample_indices_fn) for video in _as_list_of_videos(videos)]
        return [frames for frames, _ in sampled], [metadata for _, metadata in sampled]

    def _sample_video(self, video, sample_indices_fn: Callable | None) -> tuple[torch.Tensor, VideoMetadata]:
        """Return frames, `(T, 3, height, width)` uint8, of a video in any form, and its metadata."""
        given: Any = {}
        if isinstance(video, dict):
            given = video.get("video_metadata") or {}
            [video] = [video[key] for key in ("array", "bytes", "path") if video.get(key) is not None][:1] or [video]
        if _is_file(video):
            frames, metadata = self.fetch_videos(video, sample_indices_fn)
            return _to_channels_first(frames), metadata
        if hasattr(video, "get_frames_played_at"):
            return self._sample_decoder(video, sample_indices_fn)
        frames = _to_channels_first(video)  # (frames, 3, height, width)
        metadata = VideoMetadata(total_num_frames=len(frames), height=frames.shape[2], width=frames.shape[3])
        metadata.update({name: value for name, value in dict(given).items() if value is not None})
        metadata.total_num_frames = len(frames)
        metadata.frames_indices = list(range(len(frames)))
        if sample_indices_fn is not None:
            indices = sample_indices_fn(metadata)
            metadata.frames_indices = indices.tolist()
            frames = frames[torch.from_numpy(indices)]
        return frames, metadata

    def _sample_decoder(self, decoder, sample_indices_fn: Callable | None) -> tuple[torch.Tensor, VideoMetadata]:
        """Sample frames of a `torchcodec` decoder; in time, those displayed at evenly spaced times."""
        facts = decoder.metadata
        metadata = VideoMetadata(
            total_num_frames=facts.num_frames,
            fps=facts.average_fps,
            width=facts.width,
            height=facts.height,
            duration=facts.duration_seconds,
            video_backend="torchcodec",
        )
        settings = sample_indices_fn.keywords if isinstance(sample_indices_fn, partial) else {}
        indices = self.sample_frames(metadata, **settings)
        metadata.frames_indices = indices.tolist()
        if (settings.get("frame_sampling") or self.frame_sampling) == "index":
            frames = decoder.get_frames_at(metadata.frames_indices).data
        else:
            # Half an average frame after the start: times at the border of two frames are rounded to either.
            start, end = facts.begin_stream_seconds, facts.end_stream_seconds
            start += 0.5 * (end - start) / facts.num_frames
            # The last frame is read by its index: it ends the video, and may have no duration.
            is_last = indices == facts.num_frames - 1
            seconds = start + indices[~is_last] / max(facts.num_frames - 1, 1) * (end - start)
            parts = [decoder.get_frames_played_at(seconds.tolist()).data] if len(seconds) else []
            parts += [decoder.get_frames_at(indices[is_last].tolist()).data] if is_last.any() else []
            frames = torch.cat(parts)
        return _to_channels_first(frames), metadata

    def _prepare_input_videos(self, videos, input_data_format=None, **kwargs):
        # `BaseVideoProcessor` infers the layout from the first video. All videos are channels-first at this point.
        return super()._prepare_input_videos(videos, input_data_format=ChannelDimension.FIRST, **kwargs)


def _as_list_of_videos(videos) -> list:
    """Return a list of videos, each a file, a 4-dimensional array, a list of images, a dict or a decoder."""
    if _is_file(videos) or isinstance(videos, dict) or hasattr(videos, "get_frames_played_at"):
        return [videos]
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        if videos.ndim == 4:
            return [videos]
        if videos.ndim == 5:
            return list(videos)
        raise ValueError(
            "Expected a video of shape (frames, height, width, 3) or (frames, 3, height, width), or a batch of such "
            f"videos with one more dimension; got shape {tuple(videos.shape)}."
        )
    if not isinstance(videos, (list, tuple)) or len(videos) == 0:
        raise ValueError(
            "Expected a video or a list of videos (paths, bytes, files, arrays, tensors, lists of images or "
            f"torchcodec decoders); got {videos!r:.100}."
        )
    return [videos] if _is_image(videos[0]) else list(videos)


def _resize_frame(processor: PigVideoProcessor, size: Any, resample: Any, frame: np.ndarray) -> np.ndarray:
    """Resize a frame, `(height, width, 3)`; the result is that of resizing all frames of a video at once."""
    frame = np.require(frame, requirements=["C", "W"])  # copies what torch cannot share
    size = size if isinstance(size, SizeDict) else SizeDict(**size)
    channels_first = torch.from_numpy(frame).permute(2, 0, 1)
    resized = processor.resize(channels_first[None], size=size, resample=resample)[0]
    return resized.permute(1, 2, 0).numpy()


def _is_file(video) -> bool:
    return isinstance(video, (str, os.PathLike, bytes, bytearray)) or hasattr(video, "read")


def _is_image(item) -> bool:
    return isinstance(item, PIL.Image.Image) or (isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim == 3)


def _to_channels_first(video) -> torch.Tensor:
    """Convert an array, a tensor or a list of images to a tensor, (frames, 3, height, width)."""
    if isinstance(video, (list, tuple)) and len(video) > 0 and all(_is_image(frame) for frame in video):
        video = np.stack([np.asarray(f.convert("RGB") if isinstance(f, PIL.Image.Image) else f) for f in video])
    if not isinstance(video, (np.ndarray, torch.Tensor)) or video.ndim != 4 or len(video) == 0:
        seen = f"shape {tuple(video.shape)}" if hasattr(video, "shape") else f"{video!r:.100}"
        raise ValueError(
            "Expected a path, an array or tensor of shape (frames, height, width, 3) or (frames, 3, height, width), "
            f"or a list of images, with 1 frame or more per video; got {seen}."
        )
    video = torch.as_tensor(video)
    if video.shape[1] == 3:
        return video
    if video.shape[3] == 3:
        return video.permute(0, 3, 1, 2).contiguous()
    raise ValueError(f"Expected frames with 3 channels (RGB); got a video of shape {tuple(video.shape)}.")


__all__ = ["PigVideoProcessor"]
