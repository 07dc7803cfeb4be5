"""`pig explain`: draw what a model looks at in a video."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .common import one_line_errors


def explain(
    video: Annotated[Path, typer.Argument(help="A video file, or a folder of numbered JPEG frames.")],
    query: Annotated[str, typer.Argument(help="A sentence about it.")],
    model: Annotated[str, typer.Option(help="Model folder, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="The picture, ending in .png or .pdf.")],
    captions: Annotated[Path | None, typer.Option(help="Captions, one a line: which did the model expect?")] = None,
) -> None:
    """Draw what a model looks at in a video, and which phrase of a query each patch that it selects stands for."""
    with one_line_errors():
        if not find_spec("matplotlib"):
            raise ImportError('Drawing needs matplotlib: pip install "modeling-pig[train]"')
        from modeling_pig import PigForRetrieval

        from ..encoding.loading import load_pretrained
        from ..visualization.text import read_captions
        from ..visualization.token_figure import check_output, draw_explanation
        from ..visualization.tokens import explain_video

        check_output(output)
        possible = read_captions(captions) if captions else ()
        retrieval_model, processor = load_pretrained(PigForRetrieval, model)
        explanation = explain_video(retrieval_model, processor, video, query, possible)
        draw_explanation(explanation, output)
        for caption, cosine in explanation.expected or ():
            typer.echo(f"{cosine:.3f}  {caption}")
        typer.echo(f"picture: {output}")
