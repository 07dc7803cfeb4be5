"""Check on moving_shapes, whose ground truth is known, whether a model selects objects and matches the right phrases.

    python examples/check_selection.py --model runs/demo/model --recipe runs/demo/recipe.yaml --json selection.json

Selection: share of the area of the selected patches that objects cover, and share of the selected patches that lie on
an object (an object covers at least a quarter of the patch); each compared with the share over all patches, which a
random selector reaches.

Phrases: the plain caption of each video has one phrase per shape. Of the patches with a phrase that lie on a named
object, the share whose phrase has the right colour word, form word, or both, compared with a random phrase; and the
share whose phrase is the most common one in the video. If the latter is nearly all, the phrase depends on the video
rather than on the patch.

Both matchings of `explain_video` are checked. The 95 % intervals are over videos.
"""

import argparse
import json
import math
import sys

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from modeling_pig import PigForRetrieval, load_benchmark
from modeling_pig.benchmarks.shapes_drawing import Scene, draw_masks
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.files import write_text
from modeling_pig.training.recipe import Recipe
from modeling_pig.visualization.tokens import NO_PHRASE, explain_video


ON_OBJECT = 0.25  # smallest share of a patch that an object covers if the patch lies on it
NUM_BOOTSTRAP = 1000
MATCHINGS = ("token", "pseudo_query")


def cover_patches(scene: Scene, frame_numbers: list[int], rows: int, columns: int) -> np.ndarray:
    """Return the share of each patch that each shape visibly covers: (shapes, T * rows * columns)."""
    visible = draw_masks(scene)[:, frame_numbers] / 255  # (shapes, T, height, width)
    for below in range(len(visible)):
        visible[below] *= np.prod(1 - visible[below + 1 :], axis=0)
    for axis, num_patches in ((2, rows), (3, columns)):
        repeats = num_patches // math.gcd(num_patches, visible.shape[axis])  # patches end at pixel borders
        visible = np.repeat(visible, repeats, axis).reshape(
            *visible.shape[:axis], num_patches, -1, *visible.shape[axis + 1 :]
        )
        visible = visible.mean(axis=axis + 1)
    return visible.reshape(len(visible), -1)


def check_video(model, processor, row: dict) -> dict[str, tuple[float, int]]:
    """Return the sum over patches, and the number of patches, of each figure of one video."""
    scene = Scene.from_dict(row["scene"])
    sums: dict[str, tuple[float, int]] = {}
    for matching in MATCHINGS:
        found = explain_video(model, processor, row["video"], row["captions"][0], matching=matching)
        coverage = cover_patches(scene, found.frame_numbers, *found.attention.shape[1:])  # (shapes, T * P)
        selected = found.selected_patches
        for name, patches in (("selected", selected), ("all", slice(None))):
            covered = coverage[:, patches].sum(axis=0)
            sums[f"area of objects in {name} patches"] = (covered.sum(), covered.size)
            on_object = coverage[:, patches].max(axis=0) >= ON_OBJECT
            sums[f"{name} patches on an object"] = (on_object.sum(), on_object.size)

        words = [phrase.text.lower().split() for phrase in found.phrases]
        right = {"colour": [], "form": [], "colour and form": [], "chance": []}
        for patch, phrase in zip(selected, found.matches, strict=True):
            shape = scene.shapes[coverage[:, patch].argmax()]
            is_named = any(shape.colour in named and shape.form in named for named in words)
            if phrase != NO_PHRASE and is_named and coverage[:, patch].max() >= ON_OBJECT:
                right["colour"].append(shape.colour in words[phrase])
                right["form"].append(shape.form in words[phrase])
                right["colour and form"].append(right["colour"][-1] and right["form"][-1])
                right["chance"].append(1 / len(words))
        coloured = found.matches[found.matches != NO_PHRASE]
        sums[f"{matching}: selected patches coloured"] = (len(coloured), len(selected))
        sums[f"{matching}: in the colour most common in the video"] = (
            np.bincount(coloured, minlength=1).max(),
            len(coloured),
        )
        for name, values in right.items():
            label = "colour and form by chance" if name == "chance" else f"{name} right"
            sums[f"{matching}: {label}"] = (sum(values), len(values))
    return sums


def summarise(videos: list[dict[str, tuple[float, int]]], seed: int = 0) -> dict[str, dict]:
    """Return each figure in per cent, its 95 % bootstrap interval over videos, and its number of patches."""
    draws = np.random.default_rng(seed).integers(len(videos), size=(NUM_BOOTSTRAP, len(videos)))
    figures = {}
    for name in videos[0]:
        sums, counts = np.array([video[name] for video in videos], dtype=float).T  # (videos,) each
        resampled = 100 * sums[draws].sum(axis=1) / np.maximum(counts[draws].sum(axis=1), 1)
        figures[name] = {
            "percent": 100 * sums.sum() / counts.sum() if counts.any() else None,
            "interval": np.percentile(resampled, [2.5, 97.5]).tolist() if counts.any() else None,
            "patches": int(counts.sum()),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a model's selected patches on moving_shapes.")
    parser.add_argument("--model", required=True, help="folder of a hybrid model, or its name on the Hub")
    parser.add_argument("--recipe", required=True, help="recipe of moving_shapes, with the folder of its videos")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--json", help="write the figures to this file too")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    args = parser.parse_intermixed_args()
    try:
        data = Recipe.from_yaml(args.recipe, args.overrides).data
        if data.benchmark != "moving_shapes":
            raise ValueError(f"{args.recipe} is a recipe of {data.benchmark}: give one of moving_shapes.")
        model, processor = load_pretrained(PigForRetrieval, args.model)
        if model.config.framework != "hybrid":
            raise ValueError(
                f"{args.model} is a {model.config.framework} model, which selects no patches: give a hybrid."
            )
        split = load_benchmark(data.benchmark, videos=data.videos, **data.options)[args.split]
        videos = [check_video(model, processor, row) for row in tqdm(split, desc="videos")]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")

    figures = summarise(videos)
    table = Table("", "%", "95 % interval", "of patches", box=None, pad_edge=False)
    for name, figure in figures.items():
        known = figure["percent"] is not None
        low, high = figure["interval"] if known else (0, 0)
        cells = (f"{figure['percent']:.1f}", f"{low:.1f} to {high:.1f}") if known else ("-", "-")
        table.add_row(name, *cells, f"{figure['patches']:,}")
    print(f"{args.split} split, {len(videos)} videos, model {args.model}")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if args.json:
        record = {"model": args.model, "split": args.split, "num_videos": len(videos), "figures": figures}
        write_text(args.json, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
