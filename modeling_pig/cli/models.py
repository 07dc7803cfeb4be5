"""`pig init`, `pig convert` and `pig export-code`: make model folders."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .common import one_line_errors, require_modules


ClipOption = Annotated[str, typer.Option(help="CLIP or MetaCLIP 2 checkpoint: a folder, or its name on the Hub.")]
FolderOption = Annotated[Path, typer.Option(help="Folder to write. It must be empty or not exist.")]


def init(
    clip: ClipOption,
    output: FolderOption,
    num_frames: Annotated[int, typer.Option(min=1, help="Frames per clip.")] = 12,
    framework: Annotated[
        Literal["hybrid", "two_tower", "single_tower"], typer.Option(help="Kind of model.")
    ] = "hybrid",
    fields: Annotated[
        list[str] | None,
        typer.Argument(metavar="field=value ...", help="Further fields of the configuration, the value in YAML."),
    ] = None,
) -> None:
    """Initialise a model from a CLIP or MetaCLIP 2 checkpoint, to train from."""
    with one_line_errors():
        require_modules("train", "yaml")
        import yaml

        from ..publishing.init_from_clip import init_from_clip

        config: dict[str, Any] = {"num_frames": num_frames, "framework": framework}
        for assignment in fields or ():
            name, equals, value = assignment.partition("=")
            if not equals:
                raise ValueError(f"A field is name=value, like num_selected_patches=8; got {assignment!r}.")
            try:
                config[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ValueError(f"The value in {assignment!r} is not YAML: put it in quotes.") from error
        typer.echo(init_from_clip(clip, output, **config))


def convert(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint file: model_best.pt or restore.pt.")],
    clip: ClipOption,
    output: FolderOption,
    num_selected_patches: Annotated[int, typer.Option(min=1, help="Patches per frame that the selector keeps.")] = 16,
    head_reduction: Annotated[
        Literal["max", "mean"], typer.Option(help="How the selector reduces the attention heads.")
    ] = "max",
    no_bos: Annotated[bool, typer.Option("--no-bos", help="The generator was trained without bos vector.")] = False,
) -> None:
    """Convert a checkpoint of the authors' code, or of CLIP-ViP, to a model folder.

    --clip is the CLIP checkpoint that the training started from.
    """
    with one_line_errors():
        require_modules("train", "pydantic", "yaml")
        from ..publishing.convert_checkpoint import convert_reference_checkpoint

        summary = convert_reference_checkpoint(
            checkpoint,
            clip,
            output,
            num_selected_patches=num_selected_patches,
            selector_head_reduction=head_reduction,
            generator_use_bos=not no_bos,
        )
        typer.echo(summary)


def export_code(
    model: Annotated[Path, typer.Option(help="Model folder.")],
    output: FolderOption,
) -> None:
    """Export a model together with its code, for machines where this package is not installed."""
    with one_line_errors():
        from ..publishing.remote_code import export_remote_code

        export_remote_code(model, output)
        typer.echo(f"model with code: {output}")
