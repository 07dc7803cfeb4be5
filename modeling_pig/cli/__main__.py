"""`python -m modeling_pig.cli`: the `pig` command where it is not on the path."""

from . import app


app(prog_name="pig")
