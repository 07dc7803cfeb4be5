"""Run the `pig` command as `python -m modeling_pig.cli`, also under torchrun and accelerate launch."""

from . import app


if __name__ == "__main__":  # data loading processes import this module again
    app(prog_name="pig")
