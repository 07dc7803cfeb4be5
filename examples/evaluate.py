"""Evaluate a model on a split of a recipe's benchmark: a table on the screen, JSON and a picture of the ranks on disk.

    python examples/evaluate.py --model runs/demo/model --recipe runs/demo/recipe.yaml --output runs/demo/test.json

Each figure comes with its 95 % interval over the split's videos. `data.videos=FOLDER` and `data.annotations=FOLDER`
say where the files of the benchmark are, if not where the recipe says.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from modeling_pig import PigForRetrieval, load_benchmark
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.evaluation.report import print_figures, result_record
from modeling_pig.training.recipe import Recipe
from modeling_pig.visualization.ranks import draw_ranks


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a model on a benchmark's test split.")
    parser.add_argument("--model", required=True, help="a model folder, or its name on the Hub")
    parser.add_argument("--recipe", required=True, help="names the benchmark and its videos")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--ties", default="expected", choices=["expected", "optimistic", "pessimistic"])
    parser.add_argument("--dual-softmax", action="store_true", help="also rank with it, in a table of its own")
    parser.add_argument("--bootstrap", type=int, default=1000, help="samples for the 95 %% intervals; 0 for none")
    parser.add_argument("--output", help="a JSON file for the figures; their picture lies beside it")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    args = parser.parse_intermixed_args()
    if args.output and not args.output.endswith(".json"):
        sys.exit(f"error: --output is a JSON file, beside which the picture is drawn; got {args.output}")
    if args.bootstrap < 0 or 0 < args.bootstrap < 100:
        sys.exit(f"error: --bootstrap is {args.bootstrap}: 100 samples or more make an interval, 0 none")
    try:
        if args.output:  # that it can be written is found out before the work
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            Path(args.output).open("a").close()
        recipe = Recipe.from_yaml(args.recipe, args.overrides)
        model, processor = load_pretrained(PigForRetrieval, args.model)
        data = recipe.data
        benchmark = load_benchmark(data.benchmark, videos=data.videos, annotations=data.annotations, **data.options)
        if args.split not in benchmark:
            raise ValueError(f"{data.benchmark} has no split {args.split}, only {', '.join(benchmark)}.")
        split = benchmark[args.split]
        figures = evaluate(
            model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu"),
            processor,
            split,
            batch_size=recipe.evaluation.batch_size,
            ties=args.ties,
            max_text_tokens=data.max_text_tokens,
            dual_softmax=args.dual_softmax,
            num_bootstrap=args.bootstrap,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")

    record = result_record(figures, model, args.model, args.split, recipe.to_dict(), split.info.description)
    print_figures(record)
    for failure in figures["failures"]:
        print(f"set aside: {failure}", file=sys.stderr)
    if args.output:
        Path(args.output).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        picture = Path(args.output).with_suffix(".png")
        draw_ranks(record, picture)
        print(f"figures: {args.output}, {picture}")


if __name__ == "__main__":
    main()
