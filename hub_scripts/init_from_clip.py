"""Run `pig init` from a checkout: `python hub_scripts/init_from_clip.py` takes the same arguments."""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["init", *sys.argv[1:]], prog_name="pig")
