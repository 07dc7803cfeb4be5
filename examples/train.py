"""Train a model by a recipe.

python examples/train.py --recipe configuration/recipes/moving_shapes.yaml --output runs/demo
accelerate launch examples/train.py --recipe RECIPE --output RUN training.epochs=5 data.videos=FOLDER
"""

import argparse
import sys

from modeling_pig.training.loop import train
from modeling_pig.training.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model by a recipe.")
    parser.add_argument("--recipe", required=True, help="a YAML file, see configuration/recipes/")
    parser.add_argument("--output", required=True, help="the run folder; the model goes to its model/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    args = parser.parse_args()
    try:
        train(Recipe.from_yaml(args.recipe, args.overrides), args.output)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
