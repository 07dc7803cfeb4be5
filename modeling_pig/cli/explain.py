"""`pig explain`: draw what a model selects in a video."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import ModelOption, one_line_errors, require_modules


def explain(
    video: Annotated[str, typer.Argument(help="Video file or its address, or folder of numbered JPEG frames.")],
    query: Annotated[str, typer.Argument(help="Sentence about the video.")],
    model: ModelOption,
    output: Annotated[Path, typer.Option(help="Picture to write, .png or .pdf.")] = Path("tokens.png"),
    captions: Annotated[
        Path | None, typer.Option(help="Text file, one caption per line: print the nearest to the pseudo-query.")
    ] = None,
    matching: Annotated[
        Literal["pseudo_query", "token"], typer.Option(help="How patches are matched with phrases.")
    ] = "pseudo_query",
) -> None:
    """Draw the attention of a model in a video, and the phrase of the query that each selected patch matches."""
    with one_line_errors():
        require_modules("train", "matplotlib")
        from modeling_pig import PigForRetrieval

        from ..encoding.loading import load_pretrained
        from ..visualization.text import read_captions
        from ..visualization.token_figure import check_output, draw_explanation
        from ..visualization.tokens import explain_video

        check_output(output)
        candidates = read_captions(captions) if captions else ()
        retrieval_model, processor = load_pretrained(PigForRetrieval, model)
        explanation = explain_video(retrieval_model, processor, video, query, candidates, matching)
        draw_explanation(explanation, output)
        for caption, cosine in explanation.expected or ():
            typer.echo(f"{cosine:.3f}  {caption}")
        typer.echo(f"picture: {output}")
