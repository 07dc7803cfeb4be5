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
"""Convert decoded frames to RGB arrays as a player shows them: colours, transparency and orientation."""

from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np


# Frames of more pixels are reduced by an integer factor before conversion: an RGB copy of an 8K frame has 100 MB.
MAX_PIXELS = 2**22

# Values of H.273 for the transfer characteristics and the primaries of a frame.
PQ, HLG = 16, 18
BT709, BT2020, DISPLAY_P3 = 1, 9, 12

# Luminance of the white of text and paper in HDR videos, and peak of the HLG display, in cd/m^2 (BT.2408, BT.2100).
REFERENCE_WHITE, HLG_PEAK = 203.0, 1000.0

# Linear RGB of other primaries -> linear RGB of BT.709.
TO_BT709 = {
    BT2020: np.array(
        [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
        dtype=np.float32,
    ),
    DISPLAY_P3: np.array(
        [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], dtype=np.float32
    ),
}
DISPLAY_GAMMA = 2.4  # BT.1886


class FrameShape(NamedTuple):
    """Size and orientation of a frame.

    Attributes:
        width, height (`int`): pixels as stored.
        matrix (`tuple[int, int, int, int]`): the stored pixel (x, y) is displayed at (a x + c y, b x + d y); one of
            a and b, and one of c and d, is 1 or -1, the others are 0.
    """

    width: int
    height: int
    matrix: tuple[int, int, int, int] = (1, 0, 0, 1)

    @property
    def displayed(self) -> tuple[int, int]:
        """Height and width as displayed."""
        return (self.height, self.width) if self.matrix[0] else (self.width, self.height)


class FrameConverter:
    """Convert frames to RGB, with one scaler for all frames: creating one per frame takes longer than decoding.

    Args:
        av (`ModuleType`): PyAV.
    """

    def __init__(self, av: ModuleType):
        self.av = av
        self._scaler = av.video.reformatter.VideoReformatter()

    def shape(self, frame: Any) -> FrameShape:
        """Return size and orientation of an `av.VideoFrame`."""
        return FrameShape(frame.width, frame.height, self._matrix(frame))

    def to_rgb(
        self, frame: Any, shape: FrameShape, size: tuple[int, int] | None = None, interpolation: str | None = None
    ) -> np.ndarray:
        """Convert an `av.VideoFrame` to a uint8 array of the given shape, as a player shows it.

        - HDR (PQ, HLG) is tone-mapped: luminance is linear up to 0.75 of the reference white and then approaches the
          display's white, `x -> 1 - 0.0625 / (x - 0.5)`, equally for R, G and B. BT.2020 and Display P3 primaries
          become BT.709.
        - Transparent pixels are shown over black.
        - Without `size`, frames of more than 2**22 pixels are reduced by an integer factor, by area.

        Args:
            frame (`av.VideoFrame`): decoded frame.
            shape (`FrameShape`): size that the frame is scaled to, and orientation.
            size (`tuple[int, int]`, *optional*): width and height as stored, instead of those of `shape`.
            interpolation (`str`, *optional*): method of PyAV for `size`.

        Returns:
            `np.ndarray` of shape `(height, width, 3)`: uint8.

        Raises:
            av.FFmpegError: the pixels cannot be converted.
        """
        if size is None:
            factor = 1
            while (shape.width // factor) * (shape.height // factor) > MAX_PIXELS:
                factor += 1
            size = max(shape.width // factor, 1), max(shape.height // factor, 1)
            interpolation = "AREA" if factor > 1 else None
        is_wide = frame.color_trc in (PQ, HLG) or frame.color_primaries in TO_BT709
        is_transparent = any(component.is_alpha for component in frame.format.components)
        scaled = self._scaler.reformat(
            frame,
            *size,
            format="rgb48le" if is_wide else "rgba" if is_transparent else "rgb24",
            interpolation=interpolation,
            threads=1,
        )
        image = scaled.to_ndarray()
        if is_wide:
            image = _to_bt709(image, frame.color_trc, frame.color_primaries)
        elif is_transparent:
            image = (image[..., :3] * (image[..., 3:] / np.float32(255)) + np.float32(0.5)).astype(np.uint8)
        return _orient(image, shape.matrix)

    def _matrix(self, frame: Any) -> tuple[int, int, int, int]:
        """Return the nearest of the eight orientations to the display matrix of a frame; none if it is singular."""
        data = frame.side_data.get(self.av.sidedata.sidedata.Type.DISPLAYMATRIX)
        if data is None or len(bytes(data)) < 36:
            return 1, 0, 0, 1
        a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32, count=5).tolist()
        if a * d == b * c:
            return 1, 0, 0, 1
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return (1 if a >= 0 else -1), 0, 0, (1 if d >= 0 else -1)
        return 0, (1 if b >= 0 else -1), (1 if c >= 0 else -1), 0


def _orient(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    a, b, c, d = matrix
    if not a:
        image = image.transpose(1, 0, 2)
    if a + c < 0:
        image = image[:, ::-1]
    if b + d < 0:
        image = image[::-1]
    return image


def _to_bt709(image: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Convert uint16 RGB, `(height, width, 3)`, to uint8 RGB of BT.709; see [`FrameConverter.to_rgb`]."""
    rgb = _linear_light(transfer)[image]  # 1 is the reference white
    # Without a statement, HDR has the primaries of BT.2020.
    matrix = TO_BT709.get(primaries if primaries in (BT709, DISPLAY_P3) else BT2020)
    if matrix is not None:
        rgb = np.maximum(rgb @ matrix.T, 0)
    if transfer in (PQ, HLG):
        peak = rgb.max(axis=2, keepdims=True)
        rgb *= np.where(peak > 0.75, (1 - 0.0625 / np.maximum(peak - 0.5, 0.25)) / np.maximum(peak, 0.75), 1)
    return (255 * np.clip(rgb, 0, 1) ** np.float32(1 / DISPLAY_GAMMA) + np.float32(0.5)).astype(np.uint8)


@cache
def _linear_light(transfer: int) -> np.ndarray:
    """Return linear light of the display by 16-bit code, `(65536,)`; 1 is the reference white."""
    code = np.arange(65536) / 65535
    if transfer == PQ:  # BT.2100, table 4
        root = code ** (1 / 78.84375)
        light = (
            10000
            / REFERENCE_WHITE
            * (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125)
        )
    elif transfer == HLG:  # BT.2100, table 5
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        # The system gamma applies to each channel, as in FFmpeg's zscale; BT.2100 applies it to the luminance.
        light = HLG_PEAK / REFERENCE_WHITE * scene**1.2
    else:
        light = code**DISPLAY_GAMMA
    return light.astype(np.float32)
