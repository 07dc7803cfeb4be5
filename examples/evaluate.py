"""Evaluate a model on the test split of a recipe's benchmark: a table on the screen, JSON on disk.

python examples/evaluate.py --model runs/demo/model --recipe runs/demo/recipe.yaml --output runs/demo/test.json
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import modeling_pig
from modeling_pig import PigForRetrieval, load_benchmark
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.retrieval.encode import load_pretrained, model_fingerprint
from modeling_pig.training.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a model on a benchmark's test split.")
    parser.add_argument("--model", required=True, help="a model folder, or its name on the Hub")
    parser.add_argument("--recipe", required=True, help="names the benchmark and its videos")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--ties", default="expected", choices=["expected", "optimistic", "pessimistic"])
    parser.add_argument("--output", help="a JSON file for the figures")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    args = parser.parse_args()
    try:
        recipe = Recipe.from_yaml(args.recipe, args.overrides)
        model, processor = load_pretrained(PigForRetrieval, args.model)
        split = load_benchmark(recipe.data.benchmark, videos=recipe.data.videos, **recipe.data.options)[args.split]
        figures = evaluate(
            model,
            processor,
            split,
            batch_size=recipe.evaluation.batch_size,
            ties=args.ties,
            max_text_tokens=recipe.data.max_text_tokens,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")

    table = Table(
        title=f"{recipe.data.benchmark}, {args.split}: {figures['num_queries']} queries, {figures['num_videos']} of "
        f"{figures['num_videos_in_split']} videos, ties {figures['ties']}"
    )
    for name in ("direction", *figures["text_to_video"]):
        table.add_column(name)
    for direction in ("text_to_video", "video_to_text"):
        table.add_row(direction.replace("_", "-"), *(f"{value:.1f}" for value in figures[direction].values()))
    Console().print(table)
    for failure in figures["failures"]:
        print(f"set aside: {failure}", file=sys.stderr)
    if args.output:
        origin = {
            "benchmark": recipe.data.benchmark,
            "options": recipe.data.options,
            "split": args.split,
            "model": args.model,
            "model_fingerprint": model_fingerprint(args.model),
            "version": modeling_pig.__version__,
        }
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps({**origin, **figures}, indent=2) + "\n", encoding="utf-8")
        print(f"figures: {args.output}")


if __name__ == "__main__":
    main()
