"""Train a model by a recipe: the same as `pig train`, as a file for `accelerate launch`.

    python examples/train.py --recipe configuration/recipes/moving_shapes.yaml --output runs/demo
    accelerate launch examples/train.py --recipe RECIPE --output RUN training.epochs=5 data.videos=FOLDER

`accelerate launch -m modeling_pig.cli train ...` works as well.
"""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="pig")
