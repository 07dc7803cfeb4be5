"""Check on moving_shapes, where the truth is known, whether a model selects objects and tells which phrase names them.

    python examples/check_selection.py --model runs/demo/model --recipe runs/demo/recipe.yaml --json selection.json

Selection: how much of the selected patches is covered by objects, beside how much of all patches is (what a selector
gets that draws patches at random); and how many of them lie on an object, which is to say that one covers a quarter of
the patch or more. Phrases, of each video's plain caption, a phrase a shape: how many of the coloured patches that lie
on a named object have the phrase with its colour word, its form word, both; beside what a phrase drawn at random gets,
and how many are in the one colour that is most common in their video: where nearly all are, colours tell which object
the model holds on to, and not patches apart.
Both ways of `explain_video` to match patches with phrases are checked. The 95 % intervals are over videos.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from modeling_pig import PigForRetrieval, load_benchmark
from modeling_pig.benchmarks.shapes_drawing import Scene, draw_masks
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.training.recipe import Recipe
from modeling_pig.visualization.tokens import NO_PHRASE, explain_video


ON_OBJECT = 0.25  # share of a patch that an object on which it lies covers
NUM_BOOTSTRAP = 1000
MATCHINGS = ("token", "pseudo_query")


def cover_patches(scene: Scene, frame_numbers: list[int], rows: int, columns: int) -> np.ndarray:
    """Share of each patch that each shape covers, where no other lies over it: (shapes, T * rows * columns)."""
    visible = draw_masks(scene)[:, frame_numbers] / 255  # (shapes, T, height, width)
    for below in range(len(visible)):
        visible[below] *= np.prod(1 - visible[below + 1 :], axis=0)
    for axis, parts in ((2, rows), (3, columns)):
        repeats = parts // math.gcd(parts, visible.shape[axis])  # so that patches end where pixels end
        visible = np.repeat(visible, repeats, axis).reshape(
            *visible.shape[:axis], parts, -1, *visible.shape[axis + 1 :]
        )
        visible = visible.mean(axis=axis + 1)
    return visible.reshape(len(visible), -1)


def check_video(model, processor, row: dict) -> dict[str, tuple[float, int]]:
    """Of one video, (sum, number of patches) of each figure."""
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
    """Each figure over all patches in per cent, its 95 % bootstrap interval over videos, and of how many patches."""
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
    parser.add_argument("--model", required=True, help="a hybrid model's folder, or its name on the Hub")
    parser.add_argument("--recipe", required=True, help="a recipe of moving_shapes, that says where its videos are")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    args = parser.parse_intermixed_args()
    try:
        data = Recipe.from_yaml(args.recipe, args.overrides).data
        if data.benchmark != "moving_shapes":
            raise ValueError(
                f"{args.recipe} is of {data.benchmark}: where objects are is known of moving_shapes only."
            )
        model, processor = load_pretrained(PigForRetrieval, args.model)
        if model.config.framework != "hybrid":
            raise ValueError(f"{args.model} is a {model.config.framework} model, which selects no patches.")
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
        Path(args.json).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
