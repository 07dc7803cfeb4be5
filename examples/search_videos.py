"""Search an index with sentences, print the results and draw them.

    python examples/search_videos.py --index videos.lance --output answers.png "a red circle moves left" "..."

With --recipe instead of sentences, the queries are three captions of the test split of the recipe's benchmark, and the
picture marks their videos.
"""

import argparse
import sys
from pathlib import Path

from modeling_pig import VideoSearcher, load_benchmark
from modeling_pig.cli.common import find_recipe
from modeling_pig.cli.search import print_results
from modeling_pig.training.recipe import Recipe
from modeling_pig.visualization.results_figure import draw_results


NUM_QUERIES = 3  # captions of a recipe's benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description="Search an index with sentences, and draw the results.")
    parser.add_argument("queries", nargs="*", help="sentences that describe videos")
    parser.add_argument("--index", required=True, help="index that `pig index` built")
    parser.add_argument("--model", help="model that made the index, if it has moved since")
    parser.add_argument("--recipe", help="recipe: search with captions of its test split")
    parser.add_argument("--output", default="answers.png", help="picture to write")
    parser.add_argument("-k", type=int, default=5, help="results per query")
    args = parser.parse_args()
    if bool(args.queries) == bool(args.recipe):
        parser.error("give either sentences or --recipe")
    try:
        queries, captions, correct = args.queries, {}, {}
        if args.recipe:
            data = Recipe.from_yaml(find_recipe(args.recipe)).data
            test = load_benchmark(data.benchmark, videos=data.videos, **data.options)["test"]
            first_captions = [(str(Path(row["video"]).resolve()), row["captions"][0]) for row in test]
            captions = dict(first_captions)
            step = max(len(first_captions) // NUM_QUERIES, 1)
            correct = {caption: path for path, caption in first_captions[::step][:NUM_QUERIES]}
            queries = list(correct)
        searcher = VideoSearcher.from_pretrained(args.model, args.index)
        results = dict(zip(queries, searcher.search(queries, k=args.k), strict=True))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for query, ranked in results.items():
        print_results(ranked, captions, title=query)
    draw_results(results, args.output, captions, correct, columns=args.k)
    print(f"\npicture: {args.output}")


if __name__ == "__main__":
    main()
