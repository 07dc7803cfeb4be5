"""Search an index with sentences; print the ranked lists and draw them.

    python examples/search_videos.py --index videos.lance --output answers.png "a red circle moves left" "..."

With a recipe instead of sentences, three captions of its benchmark's test split are asked, and the right videos are
marked.
"""

import argparse
import sys
from pathlib import Path

from modeling_pig import VideoSearcher, load_benchmark
from modeling_pig.cli.search import print_results
from modeling_pig.training.recipe import Recipe
from modeling_pig.visualization.results_figure import draw_results


def main() -> None:
    parser = argparse.ArgumentParser(description="Search an index with sentences.")
    parser.add_argument("sentences", nargs="*", help="what to look for")
    parser.add_argument("--index", required=True, help="an index that `pig index` made")
    parser.add_argument("--model", help="the model that made the index, if it has moved")
    parser.add_argument("--recipe", help="ask captions of this recipe's test split")
    parser.add_argument("--output", default="answers.png", help="the picture")
    parser.add_argument("-k", type=int, default=5, help="answers a sentence")
    args = parser.parse_args()
    if bool(args.sentences) == bool(args.recipe):
        parser.error("give either sentences or --recipe")
    try:
        captions, right = {}, {}
        if args.recipe:
            data = Recipe.from_yaml(args.recipe).data
            test = load_benchmark(data.benchmark, videos=data.videos, **data.options)["test"]
            captions = {str(Path(row["video"]).resolve()): row["captions"][0] for row in test}
            asked = test.select(range(0, len(test), max(len(test) // 3, 1))).select(range(min(3, len(test))))
            right = {row["captions"][0]: str(Path(row["video"]).resolve()) for row in asked}
        searcher = VideoSearcher.from_pretrained(args.model, args.index)
        sentences = args.sentences or list(right)
        answers = dict(zip(sentences, searcher.search(sentences, k=args.k), strict=True))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for sentence, results in answers.items():
        print(f"\n“{sentence}”")
        print_results(results, captions)
    draw_results(answers, args.output, captions, right, columns=args.k)
    print(f"\npicture: {args.output}")


if __name__ == "__main__":
    main()
