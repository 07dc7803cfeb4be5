"""Moving shapes: a benchmark of text-to-video retrieval that the package draws itself, as H.264 mp4 files.

A video shows 2 to 4 shapes on a ground. A shape has a colour, a form, a size, and one motion or two in sequence.
Each video has four captions, which are sentences about the scene: each names every shape with its colour, form and
motions, the second and fourth also the sizes, the third and fourth also the ground. The first uses plain words
only ("a red circle moves left"), the others may use synonyms.

- A video depends only on the seed, its split and its number: a larger benchmark contains a smaller one.
- No two splits share a scene, not even on another ground, in other sizes or at other positions.
- Two thirds of the test videos are near-twins: two videos that differ in one attribute of one shape (colour,
  form, size, one motion) or in the order of its two motions. Apart from the difference, their captions are equal.
- Circles and rings never spin, since their rotation is invisible.

A caption can fit several test videos, mostly the near-twin of the other size if the caption does not name the
size. `retrieval_ceiling(dataset["test"])` counts these videos and returns the highest recall that a model can reach.

The options of `Regime` change the benchmark: more, smaller or consecutive shapes, captions that name only some of the
shapes, salient shapes among distractors that no caption names, and stills for models of single frames.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.utils import tqdm

from ..files import write_text
from .shapes_drawing import (
    COLOURS,
    FORMS,
    FORMS_THAT_CANNOT_SPIN,
    FRAME_SIZE,
    GROUNDS,
    MOTIONS,
    NUM_FRAMES,
    REACH,
    SIZES,
    Scene,
    Shape,
    trajectory_of,
    write_video,
)


SPLITS = ("train", "validation", "test")
# Kinds of difference between two near-twins.
DIFFERENCES = ("colour", "form", "size", "motion", "order")

_SECOND_MOTION = 0.3  # share of the shapes that have a second motion
_GAP = 2  # pixels between shapes in the first frame, and between a shape and the edge in every frame

# (plain words, names sizes, names the ground) of each caption
_CAPTION_STYLES = ((True, False, False), (False, True, False), (False, False, True), (False, True, True))

# The first word is the plain one.
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_FORM_WORDS = {"circle": ("circle", "disc"), "cross": ("cross", "plus sign"), "ring": ("ring", "hoop")}
_MOTION_WORDS = {
    "moves left": ("moves left", "goes left", "slides left"),
    "moves right": ("moves right", "goes right", "slides right"),
    "moves up": ("moves up", "goes up", "rises"),
    "moves down": ("moves down", "goes down", "sinks"),
    "grows": ("grows", "gets bigger", "expands"),
    "shrinks": ("shrinks", "gets smaller", "contracts"),
    "spins": ("spins", "rotates", "twirls"),
    "blinks": ("blinks", "flashes", "flickers"),
    "bounces": ("bounces", "hops", "jumps"),
    "circles": ("circles", "loops", "goes round"),
}
# Longer words, for shapes with one motion only: captions of four shapes with two motions stay under 50 words.
_LONG_MOTION_WORDS = {
    "moves left": ("moves to the left", "slides to the left"),
    "moves right": ("moves to the right", "slides to the right"),
    "bounces": ("jumps up and down",),
    "blinks": ("blinks on and off",),
    "circles": ("moves in a loop",),
}


@dataclass(frozen=True)
class Regime:
    """Options of the scenes and captions of a benchmark.

    Attributes:
        shapes (`tuple[int, ...]`): numbers of shapes that a scene may have.
        scale (`float`): factor on the size of every shape. Many shapes have room only if they are small.
        named (`int`, *optional*): largest number of shapes that a caption names, by default all. Which shapes a
            caption names is drawn independently of the style of the caption and of the other captions. Only captions
            that name the differing shape distinguish near-twins.
        salient (`int`, *optional*): number of salient shapes. Salient shapes are large and move; the other shapes are
            small and motionless, and no caption names them. By default sizes and motions are random.
        still (`bool`): whether nothing moves: a video is one frame, and its captions name no motions.
        in_turn (`bool`): whether the shapes appear one after another, each in an equal segment of the video. A still
            shows all shapes.

    Raises:
        ValueError: a number is impossible for a scene.
    """

    shapes: tuple[int, ...] = (2, 3, 4)
    scale: float = 1.0
    named: int | None = None
    still: bool = False
    in_turn: bool = False
    salient: int | None = None

    def __post_init__(self) -> None:
        if not self.shapes or min(self.shapes) < 1:
            raise ValueError(f"`shapes` is {list(self.shapes)}; it is a list of numbers of shapes, each at least 1")
        if not 0.2 <= self.scale <= 1:
            raise ValueError(f"`scale` is {self.scale}; it is at least 0.2 (2 pixels) and at most 1")
        if self.in_turn and max(self.shapes) > NUM_FRAMES // 2:
            raise ValueError(f"`shapes` is {list(self.shapes)}; at most {NUM_FRAMES // 2} can come in turn")
        if self.named is not None and self.named < 1:
            raise ValueError(f"`named` is {self.named}; it is a number of shapes, at least 1, or null for all")
        if self.salient is not None and not 1 <= self.salient <= min(self.shapes):
            raise ValueError(
                f"`salient` is {self.salient}; it is a number of shapes, from 1 to the smallest of `shapes`, "
                f"{min(self.shapes)}, or null"
            )

    @property
    def differences(self) -> tuple[str, ...]:
        """Kinds of difference that near-twins of this regime can have."""
        excluded: tuple[str, ...] = ("motion", "order") if self.still else ()
        excluded += () if self.salient is None else ("size",)  # the size of a shape tells whether it is salient
        return tuple(name for name in DIFFERENCES if name not in excluded)

    def is_salient(self, shape: Shape) -> bool:
        """Return whether captions may name a shape."""
        return self.salient is None or shape.size == "large"


_PLAIN_REGIME = Regime()
# Number of scenes to try; usually a few dozen are enough.
_MAX_TRIALS = 20_000


# Scenes


def _choose(rng: np.random.Generator, items: Sequence) -> Any:
    # Draws use only `integers` and `random`, the streams that NumPy is least likely to change.
    return items[int(rng.integers(len(items)))]


def _shuffled(rng: np.random.Generator, items: Iterable) -> list:
    return sorted(items, key=lambda _: rng.random())


def _is_sound(shapes: Sequence[Shape]) -> bool:
    """Return whether colour and form identify each shape, no motion is repeated, and every spin is visible."""
    return (
        len({(shape.colour, shape.form) for shape in shapes}) == len(shapes)
        and all(len(set(shape.motions)) == len(shape.motions) for shape in shapes)
        and not any("spins" in shape.motions and shape.form in FORMS_THAT_CANNOT_SPIN for shape in shapes)
    )


def _split_of(shapes: Sequence[Shape]) -> str:
    """Return the only split in which these shapes may occur; each split has a third of all combinations."""
    content = sorted([shape.colour, shape.form, *shape.motions] for shape in shapes)
    return SPLITS[int(hashlib.sha256(json.dumps(content).encode()).hexdigest(), 16) % len(SPLITS)]


def _sample_shapes(rng: np.random.Generator, count: int, regime: Regime) -> list[Shape]:
    """Draw shapes without positions."""
    shapes = []
    salient = range(count) if regime.salient is None else _shuffled(rng, range(count))[: regime.salient]
    for number in range(count):
        num_motions = 0 if regime.still or number not in salient else 1 + (rng.random() < _SECOND_MOTION)
        motions = tuple(_choose(rng, MOTIONS) for _ in range(num_motions))
        colour, form, size = (_choose(rng, list(options)) for options in (COLOURS, FORMS, SIZES))
        if regime.salient is not None:
            size = "large" if number in salient else "small"
        shapes.append(Shape(colour, form, size, motions))
    return shapes


def _free_positions(shape: Shape, others: Sequence[Shape], scale: float) -> np.ndarray:
    """Return the first centres, (N, 2), with which a shape stays within the frame and first touches no other shape."""
    trajectory = trajectory_of(shape.motions, shape.size, scale)
    reach = REACH * trajectory.radii[:, None] + _GAP
    first = np.ceil((reach - trajectory.offsets).max(axis=0)).astype(int)
    last = np.floor((FRAME_SIZE - 1 - reach - trajectory.offsets).min(axis=0)).astype(int)
    positions = np.stack(np.meshgrid(*map(np.arange, first, last + 1), indexing="ij"), axis=-1).reshape(-1, 2)
    for other in others:
        apart = REACH * scale * (SIZES[shape.size] + SIZES[other.size]) + _GAP
        positions = positions[((positions - (other.x, other.y)) ** 2).sum(axis=1) >= apart**2]
    return positions


def _occlusion(shape: Shape, positions: np.ndarray, others: Sequence[Shape], scale: float) -> np.ndarray:
    """Count for each first centre the frames in which a shape touches another one, summed over `others`: (N,)."""
    trajectory = trajectory_of(shape.motions, shape.size, scale)
    touches = np.zeros(len(positions), dtype=int)
    for other in others:
        other_trajectory = trajectory_of(other.motions, other.size, scale)
        between = positions[:, None] + trajectory.offsets - (other_trajectory.offsets + (other.x, other.y))
        touches += ((between**2).sum(axis=2) < (trajectory.radii + other_trajectory.radii) ** 2).sum(axis=1)
    return touches


def _position_shapes(rng: np.random.Generator, shapes: Sequence[Shape], scale: float) -> list[Shape] | None:
    """Draw a position for each shape; return `None` if a shape has no room."""
    placed: list[Shape] = []
    for shape in shapes:
        positions = _free_positions(shape, placed, scale)
        if len(positions) == 0:
            return None
        positions = positions[rng.integers(len(positions), size=16)]
        x, y = positions[_occlusion(shape, positions, placed, scale).argmin()]
        placed.append(replace(shape, x=int(x), y=int(y)))
    return placed


def _sample_scene(rng: np.random.Generator, split: str, regime: Regime) -> Scene:
    count = _choose(rng, regime.shapes)
    for _ in range(_MAX_TRIALS):
        shapes = _sample_shapes(rng, count, regime)
        if _is_sound(shapes) and _split_of(shapes) == split:
            placed = _position_shapes(rng, shapes, regime.scale)
            if placed is not None:
                return Scene(_choose(rng, GROUNDS), tuple(placed), regime.scale, regime.in_turn and not regime.still)
    raise ValueError(
        f"`shapes` asks for {count} and `scale` is {regime.scale}: there is no room; give fewer or smaller shapes"
    )


def _edits(shape: Shape, difference: str) -> Iterator[Shape]:
    """Yield all shapes that have one difference of this kind from `shape`."""
    if difference == "colour":
        yield from (replace(shape, colour=colour) for colour in COLOURS if colour != shape.colour)
    elif difference == "form":
        yield from (replace(shape, form=form) for form in FORMS if form != shape.form)
    elif difference == "size":
        yield from (replace(shape, size=size) for size in SIZES if size != shape.size)
    elif difference == "motion":
        for i, old in enumerate(shape.motions):
            for new in MOTIONS:
                if new != old:
                    yield replace(shape, motions=(*shape.motions[:i], new, *shape.motions[i + 1 :]))
    elif len(shape.motions) == 2:
        yield replace(shape, motions=shape.motions[::-1])


def _sample_twin(rng: np.random.Generator, scene: Scene, difference: str, split: str, regime: Regime) -> Scene | None:
    """Draw a scene of the same split with one difference of this kind in a shape that captions may name.

    Return `None` if there is none.

    All shapes keep their positions, unless the edited shape would leave the frame or touch another shape: it then
    moves to the nearest free position.
    """
    nameable = [(i, shape) for i, shape in enumerate(scene.shapes) if regime.is_salient(shape)]
    edits = ((i, edit) for i, shape in nameable for edit in _edits(shape, difference))
    for i, edit in _shuffled(rng, edits):
        others = scene.shapes[:i] + scene.shapes[i + 1 :]
        shapes = (*scene.shapes[:i], edit, *scene.shapes[i + 1 :])
        if _is_sound(shapes) and _split_of(shapes) == split:
            positions = _free_positions(edit, others, scene.scale)
            if len(positions) > 0:
                x, y = positions[((positions - (edit.x, edit.y)) ** 2).sum(axis=1).argmin()]
                placed = replace(edit, x=int(x), y=int(y))
                return replace(scene, shapes=(*shapes[:i], placed, *shapes[i + 1 :]))
    return None


def twin_of(split: str, index: int) -> int | None:
    """Return the number of a video's near-twin, or `None`: of every three test videos, the first two are twins."""
    return {0: index + 1, 1: index - 1}.get(index % 3) if split == "test" else None


def _base_of(split: str, index: int) -> int:
    """Return the number that seeds a video's random draws; near-twins share it."""
    twin = twin_of(split, index)
    return index if twin is None else min(index, twin)


@lru_cache(maxsize=8)  # the table of a benchmark asks for each scene several times
def make_scene(split: str, index: int, seed: int = 0, regime: Regime = _PLAIN_REGIME) -> Scene:
    """Draw the scene of a video.

    Args:
        split (`str`): `"train"`, `"validation"` or `"test"`.
        index (`int`): number of the video within its split, from 0.
        seed (`int`, *optional*, defaults to 0): seed of the benchmark.
        regime (`Regime`, *optional*): regime of the benchmark.

    Raises:
        ValueError: there is no room for that many shapes.
    """
    base = _base_of(split, index)
    rng = np.random.default_rng([seed, SPLITS.index(split), base])
    if twin_of(split, index) is None:
        return _sample_scene(rng, split, regime)
    difference = regime.differences[base // 3 % len(regime.differences)]
    while True:
        scene = _sample_scene(rng, split, regime)
        other = _sample_twin(rng, scene, difference, split, regime)
        if other is not None:
            return scene if index == base else other


def redraw_scene(scene: Scene, seed: int) -> Scene:
    """Draw a scene that fits the same captions without the ground: its shapes at other positions, on another ground.

    Raises:
        ValueError: there is no room for the shapes.
    """
    rng = np.random.default_rng([seed, 3])
    ground = _choose(rng, [ground for ground in GROUNDS if ground != scene.ground])
    for _ in range(_MAX_TRIALS):
        placed = _position_shapes(rng, scene.shapes, scene.scale)
        if placed is not None:
            return replace(scene, ground=ground, shapes=tuple(placed))
    raise ValueError(f"There is no room for the shapes of {scene}: give a smaller scale.")


# Captions, their descriptions, and the scenes that they fit


@dataclass(frozen=True)
class Description:
    """Content of a caption.

    Attributes:
        shapes (`tuple[dict, ...]`): named attributes of each shape, such as `{"colour": "red", "form": "circle",
            "motions": ("moves left",)}`. `"motions"` are all motions, in order; captions of stills name none.
        ground (`str`, *optional*): ground, if the caption names it.
    """

    shapes: tuple[dict[str, Any], ...]
    ground: str | None = None


@dataclass(frozen=True)
class CaptionPlan:
    """What a caption is about, and how it says it.

    Attributes:
        style (`int`): position in the list of styles: the plain style, and those that name sizes, the ground, or both.
        shapes (`tuple[int, ...]`): positions in the scene of the shapes that the caption names.
    """

    style: int
    shapes: tuple[int, ...]


def plan_captions(split: str, index: int, seed: int = 0, regime: Regime = _PLAIN_REGIME) -> list[CaptionPlan]:
    """Draw the plans of the four captions of a video; the arguments are those of [`make_scene`].

    If captions name all shapes, the styles come in their order. Otherwise the order of the styles and the shapes of
    each caption are drawn independently, so that no style or word tells which shapes a caption names.
    """
    shapes = make_scene(split, index, seed, regime).shapes
    nameable = [number for number, shape in enumerate(shapes) if regime.is_salient(shape)]
    styles = range(len(_CAPTION_STYLES))
    if regime.named is None or regime.named >= len(nameable):
        return [CaptionPlan(style, tuple(nameable)) for style in styles]
    rng = np.random.default_rng([seed, SPLITS.index(split), _base_of(split, index), 2])
    return [
        CaptionPlan(style, tuple(sorted(_shuffled(rng, nameable)[: regime.named]))) for style in _shuffled(rng, styles)
    ]


def describe(scene: Scene, plans: Sequence[CaptionPlan]) -> list[Description]:
    """Return the description that each caption of a scene expresses, in the order of the captions."""
    descriptions = []
    for plan in plans:
        _, names_sizes, names_ground = _CAPTION_STYLES[plan.style]
        named = ("colour", "form") + (() if scene.is_still else ("motions",)) + (("size",) if names_sizes else ())
        shapes = tuple({name: getattr(scene.shapes[number], name) for name in named} for number in plan.shapes)
        descriptions.append(Description(shapes, scene.ground if names_ground else None))
    return descriptions


def fits(description: Description, scene: Scene) -> bool:
    """Return whether a scene matches a description: each described shape matches a different shape of the scene.

    The scene may show more shapes; attributes that the description does not name are ignored.
    """
    return description.ground in (None, scene.ground) and _can_match(description.shapes, scene.shapes)


def _can_match(described: Sequence[dict[str, Any]], shapes: Sequence[Shape]) -> bool:
    if not described:
        return True
    return any(
        all(getattr(shape, name) == value for name, value in described[0].items())
        and _can_match(described[1:], (*shapes[:i], *shapes[i + 1 :]))
        for i, shape in enumerate(shapes)
    )


def make_captions(split: str, index: int, seed: int = 0, regime: Regime = _PLAIN_REGIME) -> list[str]:
    """Write the four captions of a video; the arguments are those of [`make_scene`]."""
    scene = make_scene(split, index, seed, regime)
    # Near-twins draw the same words in the same order, so that their captions differ only where their scenes do.
    rng = np.random.default_rng([seed, SPLITS.index(split), _base_of(split, index), 1])
    return [
        _write_caption(
            rng, replace(scene, shapes=tuple(scene.shapes[i] for i in plan.shapes)), *_CAPTION_STYLES[plan.style]
        )
        for plan in plan_captions(split, index, seed, regime)
    ]


def _write_caption(rng: np.random.Generator, scene: Scene, plain: bool, sizes: bool, ground: bool) -> str:
    """Write a sentence about all shapes of a scene."""

    def say(words: Sequence[str]) -> str:
        choice = rng.random()  # drawn always, so that near-twins draw equally often
        return words[0] if plain else words[int(choice * len(words))]

    sentences = []
    for shape in _shuffled(rng, scene.shapes):
        words = [say(_SIZE_WORDS[shape.size])] if sizes else []
        words += [shape.colour, say(_FORM_WORDS.get(shape.form, (shape.form,)))]
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        motions = [_MOTION_WORDS[motion] for motion in shape.motions]
        if len(motions) == 1:
            words.append(say(motions[0] + _LONG_MOTION_WORDS.get(shape.motions[0], ())))
        elif len(motions) == 2:
            words += [say(motions[0]), say(("and then", "then", "before it")), say(motions[1])]
        sentences.append(" ".join(words))
    joint = say((" and ", " while ") if scene.shapes[0].motions else (" and ", " as well as "))
    caption = ", ".join(sentences[:-1]) + (joint if sentences[1:] else "") + sentences[-1]
    if ground:
        where = say((f"on a {scene.ground} ground", f"over a {scene.ground} background"))
        caption = say((f"{caption} {where}", f"{where}, {caption}"))
    return caption


def count_fitting(descriptions: Sequence[Description], scenes: Sequence[Scene]) -> np.ndarray:
    """Count the scenes that each description fits: int64 of shape `(len(descriptions),)`."""
    return np.array([sum(fits(description, scene) for scene in scenes) for description in descriptions])


def recall_ceiling(counts: np.ndarray, k: int) -> float:
    """Return the highest possible recall@k, from 0 to 1: that of a model that ranks all fitting videos first.

    A model cannot know for which of the `m` fitting videos a caption was written: this video is among the first `k`
    with probability `min(1, k / m)`.
    """
    return float(np.minimum(1.0, k / np.asarray(counts)).mean())


def retrieval_ceiling(split: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the highest possible text-to-video recall in a split whose captions can fit several videos.

    Args:
        split (`datasets.Dataset`): rows with a `"scene"` and `"plans"`, as in
            `load_benchmark("moving_shapes", ...)["test"]`.

    Returns:
        `dict`: `"fitting"`, the number of videos in the split that each caption fits, int64 of shape
        `(num_captions,)`, video by video; `"ambiguous"`, the share of captions that fit several videos; `"R@1"`,
        `"R@5"` and `"R@10"`, the highest possible recall. Shares and recalls are from 0 to 1.
    """
    scenes, descriptions = [], []
    for row in split:
        scenes.append(Scene.from_dict(row["scene"]))
        descriptions += describe(scenes[-1], [CaptionPlan(**plan) for plan in row["plans"]])
    counts = count_fitting(descriptions, scenes)
    recalls = {f"R@{k}": recall_ceiling(counts, k) for k in (1, 5, 10)}
    return {"fitting": counts, "ambiguous": float((counts > 1).mean()), **recalls}


# The dataset


@dataclass
class MovingShapesConfig(datasets.BuilderConfig):
    """Configuration of the benchmark.

    Args:
        videos (`str`): folder to draw the videos into, as `train/train_0000.mp4` and so on.
        train, validation, test (`int`, *optional*, defaults to 2000, 200, 300): number of videos, at least 1.
        seed (`int`, *optional*, defaults to 0): seed of the benchmark, at least 0.
        shapes, scale, named, still, in_turn, salient (*optional*): see [`Regime`].
    """

    videos: str = ""
    train: int = 2000
    validation: int = 200
    test: int = 300
    seed: int = 0
    shapes: Sequence[int] = _PLAIN_REGIME.shapes
    scale: float = _PLAIN_REGIME.scale
    named: int | None = _PLAIN_REGIME.named
    still: bool = _PLAIN_REGIME.still
    in_turn: bool = _PLAIN_REGIME.in_turn
    salient: int | None = _PLAIN_REGIME.salient

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.videos:
            raise ValueError("`videos` is empty; it is the folder to draw the videos into, e.g. 'data/moving_shapes'")
        for name in SPLITS:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it is a number of videos, at least 1")
        if self.seed < 0:
            raise ValueError(f"`seed` is {self.seed}; it is at least 0")
        self.regime = Regime(tuple(self.shapes), self.scale, self.named, self.still, self.in_turn, self.salient)


class MovingShapes(datasets.GeneratorBasedBuilder):
    """Builder of the benchmark. It draws the videos that are missing in its folder, and keeps existing ones."""

    # Raise it with every change to the table: it is part of the cache's key.
    VERSION = datasets.Version("1.4.0")
    # Raise it with every change to a frame: videos of another version are not reused.
    DRAWING_VERSION = "1.0.0"
    BUILDER_CONFIG_CLASS = MovingShapesConfig

    def _info(self) -> datasets.DatasetInfo:
        shape = {
            "colour": datasets.Value("string"),
            "form": datasets.Value("string"),
            "size": datasets.Value("string"),
            "motions": [datasets.Value("string")],
            "x": datasets.Value("int32"),
            "y": datasets.Value("int32"),
        }
        features = {
            "video_id": datasets.Value("string"),
            "video": datasets.Value("string"),
            "captions": [datasets.Value("string")],
            "start": datasets.Value("float64"),  # start and end are null: the whole file
            "end": datasets.Value("float64"),
            "scene": {
                "ground": datasets.Value("string"),
                "shapes": [shape],
                "scale": datasets.Value("float64"),
                "in_turn": datasets.Value("bool"),
            },
            "plans": [{"style": datasets.Value("int32"), "shapes": [datasets.Value("int32")]}],
            "twin": datasets.Value("string"),
        }
        return datasets.DatasetInfo(description=__doc__, features=datasets.Features(features))

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Draw missing videos, then build the table unless it is cached.

        Raises:
            ValueError: the folder holds videos of another seed, version or regime.
        """
        # Not in `_generate_examples`, which a cached table skips: videos may have been deleted since.
        self._draw_missing_videos()
        super().download_and_prepare(*args, **kwargs)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name, gen_kwargs={"split": name}) for name in SPLITS]

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        num_videos = getattr(self.config, split)
        for index in range(num_videos):
            twin = twin_of(split, index)
            yield (
                index,
                {
                    "video_id": _video_id(split, index),
                    "video": str(self._video_path(split, index)),
                    "captions": make_captions(split, index, self.config.seed, self.config.regime),
                    "start": None,
                    "end": None,
                    "scene": asdict(make_scene(split, index, self.config.seed, self.config.regime)),
                    "plans": [
                        asdict(plan) for plan in plan_captions(split, index, self.config.seed, self.config.regime)
                    ],
                    "twin": "" if twin is None or twin >= num_videos else _video_id(split, twin),
                },
            )

    def _video_path(self, split: str, index: int) -> Path:
        return Path(self.config.videos, split, f"{_video_id(split, index)}.mp4")

    def _draw_missing_videos(self) -> None:
        paths = {
            self._video_path(split, i): (split, i) for split in SPLITS for i in range(getattr(self.config, split))
        }
        missing = {path: video for path, video in paths.items() if not path.exists()}
        self._claim_folder(holds_videos=len(missing) < len(paths))
        for split in SPLITS:
            Path(self.config.videos, split).mkdir(exist_ok=True)

        def draw(path: Path) -> None:
            write_video(make_scene(*missing[path], self.config.seed, self.config.regime), path)

        # NumPy and FFmpeg work outside the interpreter's lock. A pool of processes is no faster than threads, and
        # would need a main guard in every user's script.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                videos = as_completed([pool.submit(draw, path) for path in missing])
                for video in tqdm(videos, "Drawing", len(missing), unit="video", disable=not missing):
                    video.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _claim_folder(self, holds_videos: bool) -> None:
        """Record in the folder which benchmark it holds; raise a `ValueError` if it holds another one."""
        folder = Path(self.config.videos)
        stamp = folder / "moving_shapes.json"
        wanted = {"benchmark": "moving_shapes", "version": self.DRAWING_VERSION, "seed": self.config.seed}
        # Options that change the frames. Options of captions do not matter for the videos.
        drawn, plain = (
            {
                "shapes": list(regime.shapes),
                "scale": regime.scale,
                "still": regime.still,
                "in_turn": regime.in_turn and not regime.still,
                "salient": regime.salient,
            }
            for regime in (self.config.regime, _PLAIN_REGIME)
        )
        wanted |= {name: value for name, value in drawn.items() if value != plain[name]}
        found = json.loads(stamp.read_text()) if stamp.exists() else None
        if found == wanted:
            return
        if found is not None or holds_videos:
            raise ValueError(
                f"the folder {str(folder)!r} holds videos of {found or 'unknown origin'}, not of {wanted}; "
                "choose another folder for `videos`, or delete this one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(stamp, json.dumps(wanted))


def _video_id(split: str, index: int) -> str:
    return f"{split}_{index:04d}"
