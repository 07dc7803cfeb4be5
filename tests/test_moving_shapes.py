"""Moving shapes, the benchmark that the package draws: scenes, frames, captions, near-twins and the dataset."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from datasets import DatasetDict

from modeling_pig.benchmarks import load_benchmark
from modeling_pig.benchmarks.moving_shapes import (
    DIFFERENCES,
    SPLITS,
    Description,
    Regime,
    describe,
    fits,
    make_captions,
    make_scene,
    plan_captions,
    recall_ceiling,
    retrieval_ceiling,
    twin_of,
)
from modeling_pig.benchmarks.shapes_drawing import (
    COLOURS,
    FORMS,
    GROUNDS,
    MOTIONS,
    Scene,
    Shape,
    draw_masks,
    draw_scene,
)


# Hash of frames and captions. If it changes, raise `MovingShapes.DRAWING_VERSION`.
PINNED = "1d1824c528b4fba32fb22ea250bfbfa4a6b0f9c509c21fba3ec72c8784995463"

SIZES = {"train": 3, "validation": 1, "test": 4}

CLUTTER = Regime(shapes=(5, 6, 7), scale=0.6, named=2)
STILLS = Regime(shapes=(3, 4), scale=0.8, named=1, still=True)
TURNS = Regime(shapes=(3, 5), scale=0.8, named=2, in_turn=True)
SALIENT = Regime(shapes=(5, 6), scale=0.7, named=2, salient=3)


def fingerprint() -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for index in (0, 1, 12, 13):
            digest.update("\n".join(make_captions(split, index)).encode())
            digest.update(draw_scene(make_scene(split, index)).tobytes())
    return digest.hexdigest()


def decode(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def mask_of(*motions: str, form: str = "square", size: str = "small") -> np.ndarray:
    """Return the coverage from 0 to 1, `(24, 96, 96)`, of a shape that starts in the middle."""
    return draw_masks(Scene("plain black", (Shape("red", form, size, motions),)))[0] / 255


def centroids(mask: np.ndarray) -> np.ndarray:
    """Return x and y of the centroid in each frame, `(24, 2)`."""
    y, x = np.mgrid[:96, :96]
    return np.stack([(mask * x).sum((1, 2)), (mask * y).sum((1, 2))], axis=1) / mask.sum((1, 2))[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "moving_shapes"


@pytest.fixture(scope="module")
def benchmark(folder):
    return load_benchmark("moving_shapes", videos=folder, **SIZES)


# Frames


def test_frames_and_captions_are_pinned():
    assert fingerprint() == PINNED


def test_a_process_with_another_hash_seed_draws_the_same_without_torch_into_the_folder_only(tmp_path):
    root = Path(__file__).parents[1]
    code = (
        "import sys; import modeling_pig.benchmarks as b; assert 'torch' not in sys.modules\n"
        f"b.load_benchmark('moving_shapes', videos='videos', **{SIZES})\n"
        "from tests.test_moving_shapes import fingerprint; print(fingerprint())"
    )
    (tmp_path / "home").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))},
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(root),
        "PYTHONHASHSEED": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == fingerprint()
    assert [path.name for path in tmp_path.rglob("*") if "videos" not in path.parts] == ["home"]


@pytest.mark.parametrize("axis, sign, motion", [(0, -1, "left"), (0, 1, "right"), (1, -1, "up"), (1, 1, "down")])
def test_moves(axis, sign, motion):
    shift = np.diff(centroids(mask_of(f"moves {motion}")), axis=0)
    assert (sign * shift[:, axis] > 0.5).all()
    assert np.abs(shift[:, 1 - axis]).max() < 0.01


@pytest.mark.parametrize("sign, motion, ratio", [(1, "grows", 2), (-1, "shrinks", 1 / 2)])
def test_grows_and_shrinks(sign, motion, ratio):
    area = mask_of(motion).sum((1, 2))
    assert (sign * np.diff(area) > 0).all()
    assert sign * area[-1] > sign * ratio * area[0]


@pytest.mark.parametrize("form", ["square", "triangle", "star", "cross"])
def test_spins(form):
    mask = mask_of("spins", form=form, size="large")
    sampled = mask[np.linspace(0, 23, 8).round().astype(int)]
    changed = np.abs(np.diff(sampled, axis=0)).sum((1, 2)) / mask[0].sum()
    assert changed.min() > 0.15
    np.testing.assert_allclose(mask.sum((1, 2)), mask[0].sum(), rtol=0.03)
    np.testing.assert_allclose(centroids(mask), 48, atol=0.6)


@pytest.mark.parametrize("motions", [("blinks",), ("blinks", "grows"), ("grows", "blinks")])
def test_blinks_in_8_sampled_frames(motions):
    seen = mask_of(*motions).any((1, 2))
    half = {"blinks": [True, False, True, False], "grows": [True] * 4}
    expected = [*half[motions[0]], *half[motions[-1]]]
    assert seen[np.linspace(0, 23, 8).round().astype(int)].tolist() == expected


def test_bounces():
    height = 48 - centroids(mask_of("bounces"))[:, 1]
    assert height.min() > -0.01
    assert height[[0, 23]].max() < 0.01
    assert height[11:13].max() < 5 < 20 < min(height[5:7].max(), height[17:19].max())


def test_circles():
    centres = centroids(mask_of("circles"))
    middle = np.array([48, 61])  # it starts at the top of the orbit
    np.testing.assert_allclose(np.linalg.norm(centres - middle, axis=1), 13, atol=0.1)
    angles = np.unwrap(np.arctan2(*(centres - middle).T[::-1]))
    np.testing.assert_allclose(np.diff(angles), 2 * np.pi / 23, atol=0.02)


def test_each_of_two_motions_takes_half_of_the_video():
    centres = centroids(mask_of("moves up", "moves right"))
    first, second = centres[11] - centres[0], centres[23] - centres[12]
    assert first[1] < -25 and abs(first[0]) < 0.01
    assert second[0] > 25 and abs(second[1]) < 0.01


def test_forms_sizes_and_grounds_look_different():
    upright = {form: mask_of("moves left", form=form, size="large")[0] for form in FORMS}
    for a in FORMS:
        assert mask_of("moves left", form=a)[0].sum() < 0.5 * upright[a].sum()
        for b in FORMS:
            difference = np.abs(upright[a] - upright[b]).sum() / upright[a].sum()
            assert a == b or difference > 0.15, (a, b)
    grounds = [draw_scene(Scene(ground, ())) for ground in GROUNDS]
    tones = np.concatenate([ground[0].reshape(-1, 3) for ground in grounds]).astype(int)
    for colour in COLOURS.values():
        assert np.abs(tones - colour).max(axis=1).min() > 60
    for i, ground in enumerate(grounds):
        assert all((ground != other).any() for other in grounds[:i])


def test_later_shapes_cover_earlier_ones():
    red, blue = (Shape(colour, "circle", "large", ("grows",)) for colour in ("red", "blue"))
    assert tuple(draw_scene(Scene("plain grey", (red, blue)))[0, 48, 48]) == COLOURS["blue"]


@pytest.mark.parametrize("regime", [Regime(), CLUTTER, STILLS], ids=["plain", "clutter", "stills"])
def test_shapes_stay_in_the_frame_and_start_apart(regime):
    for split in SPLITS:
        for index in range(12):
            masks = draw_masks(make_scene(split, index, regime=regime)) > 0
            assert masks[:, 0].any((1, 2)).all()
            assert masks[:, 0].sum(axis=0).max() == 1
            assert not masks[..., [0, -1]].any() and not masks[..., [0, -1], :].any()


def test_scale_makes_shapes_smaller_and_moves_them_as_far():
    shapes = (Shape("red", "square", "large", ("moves left",)),)
    masks = [draw_masks(Scene("plain black", shapes, scale))[0] / 255 for scale in (1.0, 0.5)]
    assert masks[1].sum() == pytest.approx(masks[0].sum() / 4, rel=0.02)
    np.testing.assert_allclose(centroids(masks[1]), centroids(masks[0]), atol=0.05)


# Scenes and captions


def contents(split: str, regime: Regime) -> set[tuple]:
    """Return the contents of 60 scenes of a split."""
    scenes = [make_scene(split, index, 0, regime) for index in range(60)]
    return {tuple(sorted((shape.colour, shape.form, shape.motions) for shape in scene.shapes)) for scene in scenes}


@pytest.mark.parametrize("regime", [Regime(), Regime(shapes=(1,), still=True)], ids=["plain", "stills"])
def test_splits_share_no_scene(monkeypatch, regime):
    # With so few combinations independent splits would share many scenes.
    if not regime.still:
        for name, options in (("COLOURS", ["red", "blue"]), ("FORMS", FORMS[:2]), ("MOTIONS", MOTIONS[:2])):
            monkeypatch.setattr(f"modeling_pig.benchmarks.moving_shapes.{name}", options)
    train, validation, test = (contents(split, regime) for split in SPLITS)
    assert train.isdisjoint(validation) and train.isdisjoint(test) and validation.isdisjoint(test)


def test_scenes_show_all_attributes_and_no_invisible_spin():
    drawn = [make_scene("train", index) for index in range(150)]
    shapes = [shape for scene in drawn for shape in scene.shapes]
    assert {len(scene.shapes) for scene in drawn} == {2, 3, 4}
    assert {scene.ground for scene in drawn} == set(GROUNDS)
    assert {motion for shape in shapes for motion in shape.motions} == set(MOTIONS)
    assert {(shape.colour, shape.form) for shape in shapes} == {(c, f) for c in COLOURS for f in FORMS}
    assert not [shape for shape in shapes if "spins" in shape.motions and shape.form in ("circle", "ring")]


def test_seed_changes_the_scenes():
    assert make_scene("train", 0, seed=0) != make_scene("train", 0, seed=1)


@pytest.mark.parametrize(
    "regime",
    [Regime(), CLUTTER, STILLS, TURNS, SALIENT],
    ids=["plain", "clutter", "stills", "turns", "salient"],
)
def test_captions_name_what_is_drawn(regime):
    words = {
        "circle": "circle|disc",
        "cross": "cross|plus sign",
        "ring": "ring|hoop",
        "moves left": "(moves|goes|slides) (to the )?left",
        "moves right": "(moves|goes|slides) (to the )?right",
        "moves up": "moves up|goes up|rises",
        "moves down": "moves down|goes down|sinks",
        "grows": "grows|gets bigger|expands",
        "shrinks": "shrinks|gets smaller|contracts",
        "spins": "spins|rotates|twirls",
        "blinks": "blinks( on and off)?|flashes|flickers",
        "bounces": "bounces|hops|jumps( up and down)?",
        "circles": "circles|loops|goes round|moves in a loop",
        "small": "small|little",
        "large": "large|big",
    }
    for split in SPLITS:
        for index in range(20):
            scene, captions = make_scene(split, index, 0, regime), make_captions(split, index, 0, regime)
            plans = plan_captions(split, index, 0, regime)
            assert sorted(plan.style for plan in plans) == [0, 1, 2, 3]
            for caption, description in zip(captions, describe(scene, plans), strict=True):
                assert fits(description, scene)
                colours = re.findall("|".join(COLOURS), caption)
                assert len(colours) == len(description.shapes) == min(regime.named or 99, len(scene.shapes))
                assert len(re.findall(r"\w+|[^\w\s]", caption)) < 50
                assert ("ground" in caption) == (description.ground is not None)
                assert description.ground is None or f"a {scene.ground} " in caption
                for shape in description.shapes:
                    article_and_size = f"an? ({words[shape['size']]}) " if "size" in shape else "an? "
                    form = words.get(shape["form"], shape["form"])
                    sentence = f"{article_and_size}{shape['colour']} ({form})"
                    if not regime.still:
                        motions = (f"({words[motion]})" for motion in shape["motions"])
                        sentence += f" {' (and then|then|before it) '.join(motions)}"
                    assert len(re.findall(sentence, caption)) == 1, (sentence, caption)
            plain_caption = [plan.style for plan in plans].index(0)
            for shape in (scene.shapes[number] for number in plans[plain_caption].shapes):
                plain = f"{shape.colour} {shape.form} {' and then '.join(shape.motions)}".strip()
                assert plain in captions[plain_caption]
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", " ".join(captions))


def difference(a: Scene, b: Scene) -> str:
    assert a.ground == b.ground
    changed = [pair for pair in zip(a.shapes, b.shapes, strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    one, other = changed[0]
    names = [name for name in ("colour", "form", "size", "motions") if getattr(one, name) != getattr(other, name)]
    assert len(names) == 1
    if names != ["motions"]:
        return names[0]
    if one.motions == other.motions[::-1]:
        return "order"
    assert sum(m != n for m, n in zip(one.motions, other.motions, strict=True)) == 1
    return "motion"


def test_twins_differ_in_one_thing_and_their_captions_tell_them_apart():
    found = []
    for index in range(0, 30, 3):
        twins = make_scene("test", index), make_scene("test", index + 1)
        found.append(difference(*twins))
        for scene, twin in (twins, twins[::-1]):
            for description in describe(scene, plan_captions("test", index)):
                assert fits(description, scene)
                says = found[-1] != "size" or "size" in description.shapes[0]
                assert fits(description, twin) != says
        captions = zip(make_captions("test", index), make_captions("test", index + 1), strict=True)
        for names_sizes, pair in zip((False, True, False, True), captions, strict=True):
            one, other = (re.split(r", | and (?=an? )| while ", caption) for caption in pair)
            differing = sum(a != b for a, b in zip(one, other, strict=True))
            assert differing == (names_sizes or found[-1] != "size")
    assert sorted(found) == sorted(2 * DIFFERENCES)
    assert [twin_of("test", index) for index in range(6)] == [1, 0, None, 4, 3, None]
    assert twin_of("train", 0) is None


def test_no_word_tells_which_part_of_a_video_a_caption_is_about():
    regime = Regime(shapes=(4,), named=2, in_turn=True)
    plans = [plan for index in range(900) for plan in plan_captions("train", index, 0, regime)]
    captions = [caption for index in range(900) for caption in make_captions("train", index, 0, regime)]
    words = sorted({word for caption in captions for word in caption.split()})
    contains = np.array([[word in caption.split() for word in words] for caption in captions], dtype=float)
    # Per caption: whether it names the first shape, how many shapes of the first half, and its number.
    parts = np.array(
        [[0 in plan.shapes, sum(number < 2 for number in plan.shapes) - 1, n % 4] for n, plan in enumerate(plans)]
    )
    counts = contains.sum(axis=0)
    frequent = counts >= 50
    for part in parts.T:
        means = (contains[:, frequent] * part[:, None]).sum(axis=0) / counts[frequent]
        errors = part.std() / np.sqrt(counts[frequent])
        assert (np.abs(means - part.mean()) < 4 * errors).all(), words
    # A linear probe on the words, trained on two thirds of the videos, is at chance on the others.
    features, num_train = np.column_stack([contains, np.ones(len(contains))]), 2400
    for part, chance in ((parts[:, 0], 1 / 2), (parts[:, 1] + 1, 2 / 3), (parts[:, 2], 1 / 4)):
        one_hot = np.eye(part.max() + 1)[part]
        weights, *_ = np.linalg.lstsq(features[:num_train], one_hot[:num_train], rcond=1e-6)
        accuracy = ((features[num_train:] @ weights).argmax(axis=1) == part[num_train:]).mean()
        assert accuracy < chance + 0.05


def test_captions_name_salient_shapes_only():
    for index in range(30):
        scene = make_scene("train", index, 0, SALIENT)
        salient = [number for number, shape in enumerate(scene.shapes) if shape.size == "large"]
        assert len(salient) == 3 and len(scene.shapes) in SALIENT.shapes
        assert [bool(shape.motions) for shape in scene.shapes] == [shape.size == "large" for shape in scene.shapes]
        for plan in plan_captions("train", index, 0, SALIENT):
            assert len(set(plan.shapes)) == 2 and set(plan.shapes) <= set(salient)
    places = {tuple(shape.size for shape in make_scene("train", index, 0, SALIENT).shapes) for index in range(30)}
    assert len(places) > 10  # salient shapes are at any position


def test_twins_of_stills_and_of_clutter():
    for regime, expected in (
        (STILLS, {"colour", "form", "size"}),
        (CLUTTER, set(DIFFERENCES)),
        (SALIENT, set(DIFFERENCES) - {"size"}),
    ):
        found = set()
        for index in range(0, 3 * len(expected), 3):
            one, other = (make_scene("test", number, 0, regime) for number in (index, index + 1))
            found.add(difference(one, other))
            assert len(one.shapes) in regime.shapes and one.scale == regime.scale
        assert found == expected


def test_shapes_in_turn_appear_one_after_another():
    shapes = tuple(
        Shape(colour, "square", "large", ("moves right",), x=20, y=40) for colour in ("red", "blue", "cyan")
    )
    masks = draw_masks(Scene("plain black", shapes, in_turn=True))
    shown = masks.any(axis=(2, 3))  # (shapes, frames)
    assert (shown == np.kron(np.eye(3, dtype=bool), np.ones((1, 8), dtype=bool))).all()
    together = draw_masks(Scene("plain black", shapes))
    for turn in range(3):  # the whole motion, from start to end
        np.testing.assert_array_equal(masks[turn, 8 * turn], together[turn, 0])
        np.testing.assert_array_equal(masks[turn, 8 * turn + 7], together[turn, -1])
    scene = make_scene("train", 0, 0, TURNS)
    assert scene.in_turn and len(scene.shapes) in TURNS.shapes
    assert not make_scene("train", 0, 0, Regime(shapes=(3,), still=True, in_turn=True)).in_turn
    with pytest.raises(ValueError, match=r"`shapes` is \[13\]; at most 12 can come in turn"):
        Regime(shapes=(13,), scale=0.2, in_turn=True)


def test_too_many_shapes_are_refused(monkeypatch):
    monkeypatch.setattr("modeling_pig.benchmarks.moving_shapes._MAX_TRIALS", 20)
    with pytest.raises(ValueError, match="`shapes` asks for 30 and `scale` is 1.0: there is no room"):
        make_scene("train", 0, 0, Regime(shapes=(30,)))


# Fitting and the ceiling


RED_LEFT = {"colour": "red", "form": "circle", "motions": ("moves left",)}


@pytest.mark.parametrize(
    "described, fit",
    [
        ([RED_LEFT], True),
        ([{**RED_LEFT, "size": "small"}], True),
        ([{**RED_LEFT, "size": "large"}], False),
        ([{"colour": "red"}, {"colour": "red"}], True),
        ([RED_LEFT, RED_LEFT], False),
        ([{"colour": "red"}, {"colour": "red"}, {"colour": "red"}], False),
        # only the star is left for the first described shape
        ([{"colour": "red"}, RED_LEFT], True),
        ([{"form": "star", "motions": ("grows", "spins")}], True),
        ([{"form": "star", "motions": ("spins", "grows")}], False),
        ([{"form": "star", "motions": ("grows",)}], False),
        ([{"colour": "blue"}], False),
        ([], True),
    ],
)
def test_fits(described, fit):
    circle = Shape("red", "circle", "small", ("moves left",))
    star = Shape("red", "star", "large", ("grows", "spins"))
    scene = Scene("plain grey", (circle, star))
    assert fits(Description(tuple(described)), scene) == fit
    assert fits(Description(tuple(described), "plain grey"), scene) == fit
    assert not fits(Description(tuple(described), "dotted grey"), scene)


def row_of_rings(*colours: str, size: str = "small", ground: str = "plain grey", named: Sequence[int] = ()) -> dict:
    """Return a dataset row whose scene shows growing rings; caption i names ring `named[i]`, by default all rings."""
    plans = [{"style": style, "shapes": [named[style]] if named else range(len(colours))} for style in range(4)]
    ring = {"form": "ring", "size": size, "motions": ["grows"], "x": 40, "y": 40}
    return {"scene": {"ground": ground, "shapes": [{"colour": colour, **ring} for colour in colours]}, "plans": plans}


def test_ceiling_of_a_split_with_twins_in_size():
    scenes = (("small", "plain grey"), ("large", "plain grey"), ("large", "dotted grey"))
    ceiling = retrieval_ceiling([row_of_rings("red", size=size, ground=ground) for size, ground in scenes])
    # A video's captions name no size and ground, the size, the ground, and both.
    assert ceiling["fitting"].tolist() == [3, 1, 2, 1, 3, 2, 2, 1, 3, 2, 1, 1]
    assert ceiling["ambiguous"] == pytest.approx(7 / 12)
    assert ceiling["R@1"] == pytest.approx((3 * (1 / 3) + 4 * (1 / 2) + 5) / 12)
    assert ceiling["R@5"] == ceiling["R@10"] == 1


def test_ceiling_depends_on_the_named_shapes():
    assert retrieval_ceiling([row_of_rings("red", other) for other in ("blue", "green")])["R@1"] == 1
    rows = [row_of_rings("red", other, named=(0, 1, 0, 1)) for other in ("blue", "green")]
    assert retrieval_ceiling(rows)["fitting"].tolist() == [2, 1, 2, 1] * 2


def test_recall_ceiling():
    assert recall_ceiling(np.array([1, 2, 4, 10]), 1) == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 10) / 4)
    assert recall_ceiling(np.array([1, 2, 4, 10]), 5) == pytest.approx((1 + 1 + 1 + 1 / 2) / 4)


# The dataset


def test_dataset(benchmark, folder):
    assert isinstance(benchmark, DatasetDict)
    assert benchmark.num_rows == SIZES
    assert benchmark["test"].column_names == [
        "video_id",
        "video",
        "captions",
        "start",
        "end",
        "scene",
        "plans",
        "twin",
    ]
    for split in SPLITS:
        for index, row in enumerate(benchmark[split]):
            assert row["video_id"] == f"{split}_{index:04d}"
            assert row["video"] == str(folder / split / f"{row['video_id']}.mp4")
            assert row["captions"] == make_captions(split, index)
            assert row["start"] is row["end"] is None
            assert Scene.from_dict(row["scene"]) == make_scene(split, index)
    assert benchmark["test"]["twin"][:] == ["test_0001", "test_0000", "", ""]  # the split ends before test_0004
    assert set(benchmark["train"]["twin"]) == {""}
    assert not list(folder.rglob("*.part"))


def test_files_decode_to_the_drawn_frames(benchmark):
    for row in benchmark["test"]:
        with av.open(row["video"]) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 12, 24)
        frames, drawn = decode(row["video"]), draw_scene(Scene.from_dict(row["scene"]))
        assert frames.shape == drawn.shape == (24, 96, 96, 3)
        assert np.abs(frames.astype(int) - drawn).mean() < 4


def test_only_deleted_files_are_drawn_again(benchmark, folder):
    first, second = (Path(path) for path in benchmark["train"]["video"][:2])
    before, drawn_at = first.read_bytes(), second.stat().st_mtime_ns
    first.unlink()
    reloaded = load_benchmark("moving_shapes", videos=folder, **SIZES)
    assert first.read_bytes() == before
    assert second.stat().st_mtime_ns == drawn_at
    assert reloaded["train"][0] == benchmark["train"][0]


def test_a_larger_benchmark_contains_a_smaller_one(benchmark, folder):
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    larger = load_benchmark("moving_shapes", videos=folder, **{**SIZES, "test": 5})
    assert larger["test"].select(range(3)).to_list() == benchmark["test"].select(range(3)).to_list()
    assert larger["test"]["twin"][3:] == ["test_0004", "test_0003"]
    assert len(list(folder.rglob("*.mp4"))) == len(kept) + 1
    assert all(path.stat().st_mtime_ns == drawn_at for path, drawn_at in kept.items())


def test_folder_of_another_benchmark_is_refused(benchmark, folder, tmp_path):
    with pytest.raises(ValueError, match="'seed': 0}, not of .*'seed': 1}; choose another folder"):
        load_benchmark("moving_shapes", videos=folder, seed=1, **SIZES)
    assert json.loads((folder / "moving_shapes.json").read_text())["seed"] == 0
    unknown = tmp_path / "train" / "train_0000.mp4"
    unknown.parent.mkdir()
    unknown.write_bytes(b"not ours")
    with pytest.raises(ValueError, match="unknown origin"):
        load_benchmark("moving_shapes", videos=tmp_path, **SIZES)
    assert unknown.read_bytes() == b"not ours"


def test_options_of_captions_keep_the_videos_and_options_of_frames_do_not(benchmark, folder):
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}
    named = load_benchmark("moving_shapes", videos=folder, named=1, **SIZES)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp4")} == kept
    assert named["test"]["scene"][:] == benchmark["test"]["scene"][:]
    assert named["test"]["captions"][0] == make_captions("test", 0, 0, Regime(named=1))
    for options in ({"shapes": [2]}, {"scale": 0.5}, {"still": True}, {"in_turn": True}, {"salient": 1}):
        with pytest.raises(ValueError, match=f"not of .*{next(iter(options))}"):
            load_benchmark("moving_shapes", videos=folder, **options, **SIZES)


def test_stills_are_videos_of_one_frame(tmp_path):
    options = {"shapes": [3], "scale": 0.7, "still": True}
    stills = load_benchmark("moving_shapes", videos=tmp_path, train=1, validation=1, test=2, **options)
    for row in stills["test"]:
        scene = Scene.from_dict(row["scene"])
        assert scene.scale == 0.7 and not any(shape.motions for shape in scene.shapes)
        frames, drawn = decode(row["video"]), draw_scene(scene)
        assert len(frames) == 1 and np.abs(frames[0].astype(int) - drawn[0]).mean() < 4
    reloaded = load_benchmark("moving_shapes", videos=tmp_path, train=1, validation=1, test=2, **options)
    assert reloaded["test"][:] == stills["test"][:]


def test_an_interrupted_drawing_leaves_no_partial_file(tmp_path, monkeypatch):
    def interrupt(scene):
        yield from np.zeros((100, 96, 96, 3), dtype=np.uint8)
        assert list(tmp_path.rglob("*.part"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modeling_pig.benchmarks.shapes_drawing.draw_scene", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_benchmark("moving_shapes", videos=tmp_path, train=1, validation=1, test=1)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".mp4", ".part")]
    benchmark = load_benchmark("moving_shapes", videos=tmp_path, train=1, validation=1, test=1)
    assert len(decode(benchmark["train"][0]["video"])) == 24


@pytest.mark.parametrize(
    "options",
    [
        {"train": 0},
        {"test": -1},
        {"seed": -1},
        {"videos": ""},
        {"shapes": []},
        {"shapes": [0, 2]},
        {"scale": 1.5},
        {"named": 0},
    ],
)
def test_invalid_options(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is"):
        load_benchmark("moving_shapes", **{"videos": "videos", **options})


def test_unknown_benchmark(tmp_path):
    with pytest.raises(ValueError, match="'moving_shape'; did you mean 'moving_shapes'"):
        load_benchmark("moving_shape", videos=tmp_path)
