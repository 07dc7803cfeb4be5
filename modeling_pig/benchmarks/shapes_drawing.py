"""Draws a `Scene` of moving shapes as uint8 frames, the same on every machine, and writes them as an mp4.

Coordinates are pixels, x to the right and y downwards, and a pixel's centre has whole coordinates.
"""

import os
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np


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
# Radius in pixels of the circle at the start of the video; the other forms are sized to look as large.
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
# A turn of these cannot be seen.
FORMS_THAT_CANNOT_SPIN = ("circle", "ring")

# Two tones a ground colour: the ground itself and its texture. All are duller than every shape's colour.
_GROUND_TONES = {
    "black": ((10, 10, 10), (46, 46, 46)),
    "grey": ((92, 92, 92), (126, 126, 126)),
    "brown": ((88, 56, 30), (122, 84, 52)),
}
_TEXTURES = ("plain", "striped", "checked", "dotted")
GROUNDS = tuple(f"{texture} {colour}" for texture in _TEXTURES for colour in _GROUND_TONES)

# The farthest that any form reaches from its centre, in radii (the tips of the star).
REACH = 1.35

_TRAVEL = 32  # pixels of a move
_GROWTH = 1.5
_SHRINKAGE = 0.55
_SPIN = 8  # degrees a frame: 26 between 8 evenly sampled frames, less than half of the star's symmetry
_BLINK = 3  # frames on, then as many off: 8 evenly sampled frames of 24 see on and off in turn
_HOP = 22  # pixels
_ORBIT = 13  # pixels, radius


@dataclass(frozen=True)
class Shape:
    """One shape of a scene.

    Attributes:
        colour (`str`): One of `COLOURS`.
        form (`str`): One of `FORMS`.
        size (`str`): One of `SIZES`, as the video starts.
        motions (`tuple[str, ...]`): One of `MOTIONS`, or two in turn, for half of the video each; none in a still.
        x (`int`), y (`int`): Centre in the first frame, in pixels.
    """

    colour: str
    form: str
    size: str
    motions: tuple[str, ...]
    x: int = FRAME_SIZE // 2
    y: int = FRAME_SIZE // 2


@dataclass(frozen=True)
class Scene:
    """What one video shows: one of `GROUNDS`, and shapes, of which a later one lies over an earlier one. All radii
    are multiplied by `scale`. `in_turn`, each shape has an equal part of the video to itself."""

    ground: str
    shapes: tuple[Shape, ...]
    scale: float = 1.0
    in_turn: bool = False

    @classmethod
    def from_dict(cls, scene: dict[str, Any]) -> "Scene":
        """The scene of a dataset row's `"scene"` column."""
        shapes = (Shape(**{**shape, "motions": tuple(shape["motions"])}) for shape in scene["shapes"])
        return cls(scene["ground"], tuple(shapes), scene.get("scale", 1.0), scene.get("in_turn", False))


@dataclass(frozen=True)
class Trajectory:
    """How a shape moves, T = `NUM_FRAMES` frames: relative to its start, and whatever its form and colour.

    Attributes:
        offsets (`np.ndarray` of shape `(T, 2)`): x and y of the centre, relative to the start, in pixels.
        radii (`np.ndarray` of shape `(T,)`): In pixels.
        angles (`np.ndarray` of shape `(T,)`): Clockwise, in degrees.
        visible (`np.ndarray` of shape `(T,)`): False where a blinking shape is off.
    """

    offsets: np.ndarray
    radii: np.ndarray
    angles: np.ndarray
    visible: np.ndarray

    def within_turn(self, turn: int, num_turns: int) -> "Trajectory":
        """All of it, but faster, in one of equal parts of the video; invisible in the others."""
        start, stop = (NUM_FRAMES * number // num_turns for number in (turn, turn + 1))
        frames = np.arange(NUM_FRAMES)
        at = ((frames - start) * (NUM_FRAMES - 1) // max(stop - start - 1, 1)).clip(0, NUM_FRAMES - 1)
        is_shown = (frames >= start) & (frames < stop)
        return Trajectory(self.offsets[at], self.radii[at], self.angles[at], self.visible[at] & is_shown)


def _sine(degrees: np.ndarray | float) -> np.ndarray:
    # Mathematics libraries differ in the last bits of a sine. Rounded, they agree.
    return np.round(np.sin(np.deg2rad(degrees)), 6)


def _cosine(degrees: np.ndarray | float) -> np.ndarray:
    return _sine(np.asarray(degrees) + 90)


@cache
def trajectory_of(motions: tuple[str, ...], size: str, scale: float = 1.0) -> Trajectory:
    """The trajectory of a shape of this size with these motions, in a scene of this scale."""
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
    """Signed distances to the lines at `inradius` whose normals point in `directions` (degrees), stacked."""
    return np.stack([x * _cosine(d) + y * _sine(d) - inradius for d in directions])


def _signed_distance(form: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """About how many pixels outside an upright form (negative: inside) x and y from its centre lie."""
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
        # A point of the five-pointed star is beyond one of the pentagram's five lines at most.
        edges = _beyond_edges(x, y, _cosine(72) * REACH * radius, range(-90, 270, 72))
        return np.partition(edges, -2, axis=0)[-2]
    raise ValueError(f"unknown form {form!r}; a form is one of {', '.join(FORMS)}")


def draw_masks(scene: Scene) -> np.ndarray:
    """Draws where each shape is, whatever lies over it.

    Returns:
        `np.ndarray` of shape `(num_shapes, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)`, uint8: how much of a pixel
        the shape covers, from 0 to 255.
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
    """The ground as uint16 `(FRAME_SIZE, FRAME_SIZE, 3)`."""
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
    """Draws a scene's video.

    Returns:
        `np.ndarray` of shape `(NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3)`, uint8 RGB.
    """
    frames = np.repeat(_draw_ground(scene.ground)[None], NUM_FRAMES, axis=0)
    for shape, mask in zip(scene.shapes, draw_masks(scene), strict=True):
        covered = mask > 0
        coverage = mask[covered][:, None].astype(np.uint16)
        # In whole numbers, so that no rounding differs between machines; 255 * 255 + 127 fits in 16 bits.
        colour = np.array(COLOURS[shape.colour], np.uint16)
        frames[covered] = (frames[covered] * (255 - coverage) + colour * coverage + 127) // 255
    return frames.astype(np.uint8)


def write_video(scene: Scene, path: str | os.PathLike) -> None:
    """Draws a scene into an h264 mp4 file: a whole file or none, also when interrupted. A scene in which nothing moves
    is one frame long."""
    import av

    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(unfinished), "w", format="mp4") as container:
            # Without `mbtree`: with it, what x264 writes can vary from run to run, even in a single thread.
            options = {"preset": "veryfast", "crf": "16", "threads": "1", "mbtree": "0"}
            stream = container.add_stream("libx264", rate=FPS, options=options)
            stream.width = stream.height = FRAME_SIZE
            stream.pix_fmt = "yuv420p"
            is_still = not any(shape.motions for shape in scene.shapes)
            for frame in islice(draw_scene(scene), 1 if is_still else None):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
