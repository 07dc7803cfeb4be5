"""Train a model by a recipe.

python examples/train.py --recipe configuration/recipes/moving_shapes.yaml --output runs/demo
accelerate launch examples/train.py --recipe RECIPE --output RUN training.epochs=5 data.videos=FOLDER

A run that was interrupted goes on with --resume. Exit status 75: told to stop (SIGTERM, Ctrl-C), state saved.
A launcher has its own, and `accelerate launch` passes no signal on: send it to the whole group of processes.
"""

import argparse
import sys

from modeling_pig.training.loop import EXIT_INTERRUPTED, TrainingInterrupted, train
from modeling_pig.training.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model by a recipe.")
    parser.add_argument("--recipe", required=True, help="a YAML file, see configuration/recipes/")
    parser.add_argument("--output", required=True, help="the run folder; the model goes to its model/")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the run folder, if there is one")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    args = parser.parse_intermixed_args()
    try:
        train(Recipe.from_yaml(args.recipe, args.overrides), args.output, args.resume)
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
