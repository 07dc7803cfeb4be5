"""Measure on moving_shapes what the words of a column add to a search by vectors, and where they cost recall.

    python examples/search_by_name.py --index runs/demo/videos.lance --recipe runs/demo/recipe.yaml --json names.json

In a copy of an index of the test split, each video gets an invented name, which no model knows, in three columns:
alone (`who`), in a title of common words (`title`), and before a caption of the video (`caption`). Queries are the
name, another caption of the video with the name, and that caption alone: `who` holds none of its words, `title` only
common ones. Recall in per cent, by the vectors, by the words of the column, and by both (`hybrid_text`).
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from modeling_pig import VideoIndex, VideoSearcher, load_benchmark
from modeling_pig.files import write_text
from modeling_pig.training.recipe import Recipe


SYLLABLES = [first + vowel + last for first in "bdfgklmnprtvz" for vowel in "aeiou" for last in "xkrnz"]
TITLES = ("A day with {}", "The story of {} and the sea, told a second time", "{} is the one on the left", "{}")
COLUMNS = ("who", "title", "caption")


def draw_names(count: int, seed: int = 0) -> list[str]:
    """Return different invented names of two syllables, such as "Zorvex"."""
    rng, names = np.random.default_rng(seed), dict[str, None]()
    while len(names) < count:
        names["".join(rng.choice(SYLLABLES, 2)).capitalize()] = None
    return list(names)


def measure(searcher: VideoSearcher, queries: list[str], paths: list[str], column: str) -> dict[str, float]:
    """Return R@1 and R@10 of queries, whose videos are at `paths`, by each kind of search."""
    (index,) = searcher.indexes
    embeddings = searcher.text_encoder(queries)
    by_words = (index.search_text(query, row, [column]) for query, row in zip(queries, embeddings, strict=True))
    found = {
        "vectors": searcher.search(queries, k=10),
        "words": [matches.results for matches in by_words],
        "both": searcher.search(queries, k=10, hybrid_text=[column]),
    }
    recall = {}
    for kind, ranked in found.items():
        for k in (1, 10):
            hits = [path in [r.path for r in results[:k]] for results, path in zip(ranked, paths, strict=True)]
            recall[f"{kind} R@{k}"] = 100 * float(np.mean(hits))
    return recall


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure searches by words beside vectors on moving_shapes.")
    parser.add_argument("--index", required=True, help="index of the test split, a folder; it is not changed")
    parser.add_argument("--recipe", required=True, help="recipe of moving_shapes, with the folder of its videos")
    parser.add_argument("--json", help="write the figures to this file too")
    args = parser.parse_args()
    try:
        data = Recipe.from_yaml(args.recipe).data
        if data.benchmark != "moving_shapes":
            raise ValueError(f"{args.recipe} is a recipe of {data.benchmark}: give one of moving_shapes.")
        test = load_benchmark(data.benchmark, videos=data.videos, **data.options)["test"]
        paths, captions = [str(Path(row["video"]).resolve()) for row in test], [row["captions"] for row in test]
        names = draw_names(len(paths))
        columns = {
            path: {
                "who": name,
                "title": TITLES[number % len(TITLES)].format(name),
                "caption": f"{name}: {of_video[1]}",
            }
            for number, (path, name, of_video) in enumerate(zip(paths, names, captions, strict=True))
        }
        queries = {
            "name": names,
            "caption with name": [f"{first} with {name}" for (first, *_), name in zip(captions, names, strict=True)],
            "caption": [first for first, *_ in captions],
        }
        with tempfile.TemporaryDirectory() as folder:
            copy = VideoIndex(shutil.copytree(args.index, Path(folder, "names.lance")))
            copy.set_metadata(columns)
            searcher = VideoSearcher.from_pretrained(None, copy.uri)
            rows = [
                {"query": kind, "column": column, **measure(searcher, texts, paths, column)}
                for kind, texts in queries.items()
                for column in COLUMNS
            ]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else value for value in row.values()))
    print(f"{len(paths)} videos and as many queries of each kind, model {searcher.name}")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if args.json:
        write_text(args.json, json.dumps({"num_videos": len(paths), "recall": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
