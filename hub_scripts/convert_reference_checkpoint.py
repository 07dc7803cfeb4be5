"""Run `pig convert` from a checkout: `python hub_scripts/convert_reference_checkpoint.py` takes the same arguments."""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["convert", *sys.argv[1:]], prog_name="pig")
