"""Evaluate a model on a split of a recipe's benchmark: the same as `pig evaluate`.

python examples/evaluate.py --model runs/demo/model --recipe runs/demo/recipe.yaml --output runs/demo/test.json
"""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]], prog_name="pig")
