"""Run `pig push space` from a checkout: `python hub_scripts/push_space.py` takes the same arguments."""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["push", "space", *sys.argv[1:]], prog_name="pig")
