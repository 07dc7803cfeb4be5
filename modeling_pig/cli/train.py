"""`pig train`: train a model by a recipe, on one process or under accelerate launch."""

from pathlib import Path
from typing import Annotated

import typer

from .common import OverridesArgument, RecipeOption, find_recipe, one_line_errors, require_modules


def train(
    recipe: RecipeOption,
    output: Annotated[Path, typer.Option(help="Run folder to write. The trained model is in its folder model/.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in the run folder if there is one.")
    ] = False,
    overrides: OverridesArgument = None,
) -> None:
    """Train a model by a recipe, validate it after each epoch, and test the best model at the end.

    SIGTERM and Ctrl-C save the state; the exit status is then 75, and --resume resumes the run.
    accelerate launch has separate exit statuses and passes no signal on: send the signal to its process group.
    """
    with one_line_errors():
        require_modules("train", "accelerate", "datasets", "matplotlib", "pydantic", "yaml")
        from ..training import loop
        from ..training.recipe import Recipe

        try:
            loop.train(Recipe.from_yaml(find_recipe(recipe), overrides or ()), output, resume)
        except loop.TrainingInterrupted as interruption:
            typer.echo(interruption, err=True)
            raise typer.Exit(loop.EXIT_INTERRUPTED) from None
