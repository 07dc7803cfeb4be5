"""Run `pig push benchmark` from a checkout: `python hub_scripts/push_benchmark.py` takes the same arguments."""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["push", "benchmark", *sys.argv[1:]], prog_name="pig")
