"""Run `pig export-code` from a checkout: `python hub_scripts/export_remote_code.py` takes the same arguments."""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["export-code", *sys.argv[1:]], prog_name="pig")
