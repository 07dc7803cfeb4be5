"""Draw a `Scene` of moving shapes as uint8 frames, bit-identical on every machine, and write them as an mp4 file.

Coordinates are in pixels, x to the right and y downwards; the centre of a pixel has integer coordinates.
"""

import os
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from ..files import replace_file


FRAME_SIZE = 96
NUM_FRAMES = 24
FPS = 12

COLOURS = {
    "red": (225, 25, 35),
    "orange": (255, 135, 0),
    "yellow": (255, 230, 40),
    "green": (30, 170, 50),
    "cyan": (60, 225, 235),
    "blue": (45, 70, 240),
    "pink": (255, 95, 200),
    "white": (250, 250, 250),
}
# Radius in pixels of a circle in the first frame; the other forms are scaled to look equally large.
SIZES = {"small": 9, "large": 14}
FORMS = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "spins",
    "blinks",
    "bounces",
    "circles",
)
# Forms whose rotation is invisible.
FORMS_THAT_CANNOT_SPIN = ("circle", "ring")

# Two tones per ground colour: the ground and its texture. All are duller than the colours of the shapes.
_GROUND_TONES = {
    "black": ((10, 10, 10), (46, 46, 46)),
    "grey": ((92, 92, 92), (126, 126, 126)),
    "brown": ((88, 56, 30), (122, 84, 52)),
}
_TEXTURES = ("plain", "striped", "checked", "dotted")
GROUNDS = tuple(f"{texture} {colour}" for texture in _TEXTURES for colour in _GROUND_TONES)

# Largest distance of any form's outline from its centre, in radii (the tips of the star).
REACH = 1.35

_TRAVEL = 32  # pixels of a move
_GROWTH = 1.5
_SHRINKAGE = 0.55
_SPIN = 8  # degrees per frame: 26 between 8 evenly sampled frames, less than half of the star's symmetry
_BLINK = 3  # frames on, then as many off: 8 evenly sampled frames of 24 show on and off alternately
_HOP = 22  # pixels
_ORBIT = 13  # pixels, radius


@dataclass(frozen=True)
class Shape:
    """A shape of a scene.

    Attributes:
        colour (`str`): one of `COLOURS`.
        form (`str`): one of `FORMS`.
        size (`str`): one of `SIZES`, in the first frame.
        motions (`tuple[str, ...]`): one of `MOTIONS`, or two in sequence, each in half of the video; none in a still.
        x (`int`), y (`int`): centre in the first frame, in pixels.
    """

    colour: str
    form: str
    size: str
    motions: tuple[str, ...]
    x: int = FRAME_SIZE // 2
    y: int = FRAME_SIZE // 2


@dataclass(frozen=True)
class Scene:
    """Content of one video.

    Attributes:
        ground (`str`): one of `GROUNDS`.
        shapes (`tuple[Shape, ...]`): shapes; later shapes cover earlier ones.
        scale (`float`): factor on all radii.
        in_turn (`bool`): whether the shapes appear one after another, each in an equal segment of the video.
    """

    ground: str
    shapes: tuple[Shape, ...]
    scale: float = 1.0
    in_turn: bool = False

    @property
    def is_still(self) -> bool:
        """Whether nothing moves, so that the video has one frame."""
        return not any(shape.motions for shape in self.shapes)

    @classmethod
    def from_dict(cls, scene: dict[str, Any]) -> "Scene":
        """Return the scene of a dataset row's `"scene"` column."""
        shapes = (Shape(**{**shape, "motions": tuple(shape["motions"])}) for shape in scene["shapes"])
        return cls(scene["ground"], tuple(shapes), scene.get("scale", 1.0), scene.get("in_turn", False))


@dataclass(frozen=True)
class Trajectory:
    """Motion of a shape over T = `NUM_FRAMES` frames, independent of its form, colour and first position.

    Attributes:
        offsets (`np.ndarray` of shape `(T, 2)`): x and y of the centre, relative to the first position, in pixels.
        radii (`np.ndarray` of shape `(T,)`): radius in pixels.
        angles (`np.ndarray` of shape `(T,)`): rotation, clockwise, in degrees.
        visible (`np.ndarray` of shape `(T,)`): False in frames in which a blinking shape is off.
    """

    offsets: np.ndarray
    radii: np.ndarray
    angles: np.ndarray
    visible: np.ndarray

    def within_turn(self, turn: int, num_turns: int) -> "Trajectory":
        """Return the whole motion, faster, within segment `turn` of `num_turns`; invisible in the other segments."""
        start, stop = (NUM_FRAMES * number // num_turns for number in (turn, turn + 1))
        frames = np.arange(NUM_FRAMES)
        indices = ((frames - start) * (NUM_FRAMES - 1) // max(stop - start - 1, 1)).clip(0, NUM_FRAMES - 1)
        is_shown = (frames >= start) & (frames < stop)
        return Trajectory(
            self.offsets[indices], self.radii[indices], self.angles[indices], self.visible[indices] & is_shown
        )


def _sine(degrees: np.ndarray | float) -> np.ndarray:
    # Mathematics libraries differ in the last bits of a sine; rounded values agree.
    return np.round(np.sin(np.deg2rad(degrees)), 6)


def _cosine(degrees: np.ndarray | float) -> np.ndarray:
    return _sine(np.asarray(degrees) + 90)


@cache
def trajectory_of(motions: tuple[str, ...], size: str, scale: float = 1.0) -> Trajectory:
    """Return the trajectory of a shape with these motions and this size, in a scene of this scale."""
    frames = np.arange(NUM_FRAMES)
    x, y, angles = np.zeros((3, NUM_FRAMES))
    radii = np.full(NUM_FRAMES, scale * SIZES[size])
    visible = np.ones(NUM_FRAMES, dtype=bool)
    duration = (NUM_FRAMES - 1) / max(len(motions), 1)
    for i, motion in enumerate(motions):
        elapsed = np.clip(frames - i * duration, 0, duration)  # frames since this motion began
        done = elapsed / duration
        if motion == "moves left":
            x -= _TRAVEL * done
        elif motion == "moves right":
            x += _TRAVEL * done
        elif motion == "moves up":
            y -= _TRAVEL * done
        elif motion == "moves down":
            y += _TRAVEL * done
        elif motion == "grows":
            radii *= 1 + (_GROWTH - 1) * done
        elif motion == "shrinks":
            radii *= 1 + (_SHRINKAGE - 1) * done
        elif motion == "spins":
            angles += _SPIN * elapsed
        elif motion == "blinks":
            count = frames - np.ceil(i * duration)
            during = (count >= 0) & (count <= duration)
            visible &= ~during | (count % (2 * _BLINK) < _BLINK)
        elif motion == "bounces":
            hops = 2 // len(motions)
            y -= _HOP * np.abs(_sine(180 * hops * done))
        elif motion == "circles":
            x += _ORBIT * _sine(360 * done)
            y += _ORBIT * (1 - _cosine(360 * done))
        else:
            raise ValueError(f"unknown motion {motion!r}; a motion is one of {', '.join(MOTIONS)}")
    return Trajectory(np.stack([x, y], axis=1), radii, angles, visible)


def _beyond_edges(x: np.ndarray, y: np.ndarray, inradius: np.ndarray, directions: range) -> np.ndarray:
    """Return the signed distances to lines at distance `inradius` whose normals point in `directions` (degrees)."""
    return np.stack([x * _cosine(d) + y * _sine(d) - inradius for d in directions])


def _signed_distance(form: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the approximate distance in pixels of (x, y), relative to the centre, from an upright form's outline.

    The distance is negative inside the form.
    """
    if form == "circle":
        return np.sqrt(x * x + y * y) - radius
    if form == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.85 * radius) - 0.27 * radius
    if form == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    if form == "cross":
        length, width = 1.15 * radius, 0.36 * radius
        x, y = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(x - length, y - width), np.maximum(x - width, y - length))
    if form == "triangle":
        return _beyond_edges(x, y, 0.66 * radius, range(90, 450, 120)).max(axis=0)
    if form == "star":
        # A point within the five-pointed star lies outside at most one of the pentagram's five lines.
        edges = _beyond_edges(x, y, _cosine(72) * REACH * radius, range(-90, 270, 72))
        return np.partition(edges, -2, axis=0)[-2]
    raise ValueError(f"unknown form {form!r}; a form is one of {', '.join(FORMS)}")


def draw_masks(scene: Scene) -> np.ndarray:
    """Draw the mask of each shape, ignoring shapes that cover it.

    Returns:
        `np.ndarray` of shape `(num_shapes, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)`, uint8: share of the pixel that the
        shape covers, from 0 to 255.
    """
    masks = np.zeros((len(scene.shapes), NUM_FRAMES, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
    for turn, (mask, shape) in enumerate(zip(masks, scene.shapes, strict=True)):
        trajectory = trajectory_of(shape.motions, shape.size, scene.scale)
        if scene.in_turn:
            trajectory = trajectory.within_turn(turn, len(scene.shapes))
        centres = trajectory.offsets + (shape.x, shape.y)
        reach = REACH * trajectory.radii[:, None] + 1
        left, top = np.maximum(np.floor((centres - reach).min(axis=0)), 0).astype(int)
        right, bottom = np.minimum(np.ceil((centres + reach).max(axis=0)), FRAME_SIZE - 1).astype(int) + 1
        # (T, 1, width) and (T, height, 1), relative to the centre
        x = np.arange(left, right)[None, None, :] - centres[:, 0, None, None]
        y = np.arange(top, bottom)[None, :, None] - centres[:, 1, None, None]
        cosine, sine = _cosine(trajectory.angles)[:, None, None], _sine(trajectory.angles)[:, None, None]
        distance = _signed_distance(
            shape.form, cosine * x + sine * y, cosine * y - sine * x, trajectory.radii[:, None, None]
        )
        coverage = np.clip(0.5 - distance, 0, 1) * trajectory.visible[:, None, None]
        mask[:, top:bottom, left:right] = np.rint(255 * coverage)
    return masks


@cache
def _draw_ground(ground: str) -> np.ndarray:
    """Return the ground as uint16 RGB of shape `(FRAME_SIZE, FRAME_SIZE, 3)`."""
    texture, _, colour = ground.partition(" ")
    if ground not in GROUNDS:
        raise ValueError(f"unknown ground {ground!r}; a ground is one of {', '.join(GROUNDS)}")
    y, x = np.mgrid[:FRAME_SIZE, :FRAME_SIZE]
    textured = {
        "plain": np.zeros_like(x, dtype=bool),
        "striped": (x + y) // 8 % 2 == 1,
        "checked": (x // 12 + y // 12) % 2 == 1,
        "dotted": (x % 12 - 6) ** 2 + (y % 12 - 6) ** 2 <= 9,
    }[texture]
    first, second = _GROUND_TONES[colour]
    return np.where(textured[..., None], np.array(second, np.uint16), np.array(first, np.uint16))


def draw_scene(scene: Scene) -> np.ndarray:
    """Draw the video of a scene.

    Returns:
        `np.ndarray` of shape `(NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3)`, uint8 RGB.
    """
    frames = np.repeat(_draw_ground(scene.ground)[None], NUM_FRAMES, axis=0)
    for shape, mask in zip(scene.shapes, draw_masks(scene), strict=True):
        covered = mask > 0
        coverage = mask[covered][:, None].astype(np.uint16)
        # Integer arithmetic rounds alike on every machine; 255 * 255 + 127 fits in 16 bits.
        colour = np.array(COLOURS[shape.colour], np.uint16)
        frames[covered] = (frames[covered] * (255 - coverage) + colour * coverage + 127) // 255
    return frames.astype(np.uint8)


def write_video(scene: Scene, path: str | os.PathLike) -> None:
    """Draw a scene into an H.264 mp4 file, complete or not at all. A scene without motions has one frame."""
    import av

    with replace_file(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        # With `mbtree` the output of x264 can vary between runs, even in a single thread.
        options = {"preset": "veryfast", "crf": "16", "threads": "1", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = FRAME_SIZE
        stream.pix_fmt = "yuv420p"
        for frame in islice(draw_scene(scene), 1 if scene.is_still else None):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
