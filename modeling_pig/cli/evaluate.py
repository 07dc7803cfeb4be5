"""`pig evaluate`: evaluate a model on a split of a benchmark."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from .common import (
    EXIT_ERROR,
    DeviceOption,
    DTypeOption,
    ModelOption,
    NumFramesOption,
    OverridesArgument,
    RecipeOption,
    TrustOption,
    find_recipe,
    one_line_errors,
    print_failures,
    read_launcher,
    require_modules,
)
from .search import read_queries


MIN_BOOTSTRAP = 100  # samples; fewer give no usable interval


def evaluate(
    model: ModelOption,
    recipe: RecipeOption,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Split to evaluate.")] = "test",
    ties: Annotated[
        Literal["expected", "optimistic", "pessimistic"], typer.Option(help="Rank among equal scores.")
    ] = "expected",
    dual_softmax: Annotated[
        bool, typer.Option("--dual-softmax", help="Also rank with dual softmax, in a separate table.")
    ] = False,
    rerank: Annotated[
        int | None,
        typer.Option(min=1, help="Also re-rank so many of the best videos of each query, in a separate table."),
    ] = None,
    qb_norm: Annotated[
        bool,
        typer.Option("--qb-norm", help="Also rank with QB-Norm by the training captions, in a separate table."),
    ] = False,
    querybank: Annotated[
        Path | None, typer.Option(help="Text file for QB-Norm instead of the training captions, one query per line.")
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help=f"Samples for the 95 % intervals, at least {MIN_BOOTSTRAP}; 0: no intervals.")
    ] = 1000,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write; the picture of the ranks is written beside it.")
    ] = None,
    num_frames: NumFramesOption = None,
    dtype: DTypeOption = "float32",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
    save_ranks: Annotated[
        Path | None, typer.Option(help="JSON file to write: the metrics, and the rank of each query for pig compare.")
    ] = None,
    save_embeddings: Annotated[
        Path | None, typer.Option(help="Folder to write: embeddings of queries and videos, and their scores (NumPy).")
    ] = None,
    overrides: OverridesArgument = None,
) -> None:
    """Evaluate a model on the benchmark of a recipe, from text to video and from video to text.

    data.videos=FOLDER and data.annotations=FOLDER replace the folders that the recipe names.
    """
    with one_line_errors():
        require_modules("train", "datasets", "matplotlib", "pydantic", "yaml")
        if (num_processes := read_launcher("WORLD_SIZE", 1)) > 1:
            if read_launcher("RANK", 0) > 0:
                raise typer.Exit(EXIT_ERROR)
            raise ValueError(
                f"{num_processes} processes were launched, and pig evaluate runs in one: run it without torchrun or "
                "accelerate launch."
            )
        for name, file in (("--output", output), ("--save-ranks", save_ranks)):
            if file and file.suffix != ".json":
                raise ValueError(f"{name} is {file}: expected a file named .json.")
        if save_ranks and output and save_ranks.resolve() == output.resolve():
            raise ValueError(f"--output and --save-ranks are both {output}: give --save-ranks another file.")
        bank = read_queries(querybank) if querybank else None
        if 0 < bootstrap < MIN_BOOTSTRAP:
            raise ValueError(f"--bootstrap is {bootstrap}: expected 0, or {MIN_BOOTSTRAP} or more.")
        for file in (output, save_ranks):  # fail before the evaluation if a file cannot be written
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.open("a").close()
        from modeling_pig import PigForRetrieval

        from ..encoding.loading import load_encoder
        from ..evaluation import details
        from ..evaluation.evaluator import evaluate as evaluate_model
        from ..evaluation.report import print_evaluation, result_record
        from ..files import write_text
        from ..training.own_code import import_model_class, load_data
        from ..training.recipe import Recipe
        from ..visualization.ranks import draw_ranks

        if save_embeddings:
            details.check_embeddings_folder(save_embeddings)
        settings = Recipe.from_yaml(find_recipe(recipe), overrides or ())
        data = settings.data
        encoder = load_encoder(
            model,
            device=device,
            dtype=dtype,
            num_frames=num_frames,
            trust_remote_code=trust_remote_code,
            model_class=import_model_class(settings.model.class_, PigForRetrieval),
        )
        benchmark = load_data(data)
        if split not in benchmark:
            raise ValueError(f"{data.benchmark} has no split {split}: give one of {', '.join(benchmark)}.")
        if qb_norm and bank is None:
            if "train" not in benchmark:
                raise ValueError(f"{data.benchmark} has no split train for --qb-norm: load it, or give --querybank.")
            bank = [caption for captions in benchmark["train"]["captions"] for caption in captions]
        rows = benchmark[split]
        evaluation = evaluate_model(
            encoder,
            rows,
            batch_size=settings.evaluation.batch_size,
            ties=ties,
            max_text_tokens=data.max_text_tokens,
            dual_softmax=dual_softmax,
            num_bootstrap=bootstrap,
            rerank=rerank,
            querybank=bank,
        )
        if bank is not None:
            evaluation.querybank = str(querybank) if querybank else "training captions"
        record = result_record(evaluation, encoder, split, settings.to_dict(), rows.info.description)
        print_evaluation(record)
        print_failures(evaluation.failures, f"see {output}" if output else "--output FILE.json lists all of them")
        if output:
            write_text(output, json.dumps(record.to_dict(), indent=2) + "\n")
            draw_ranks(record.to_dict(), output.with_suffix(".png"))
            typer.echo(f"metrics: {output}, {output.with_suffix('.png')}")
        if save_ranks:
            details.save_ranks(save_ranks, record, evaluation.details)
            typer.echo(f"ranks: {save_ranks}")
        if save_embeddings:
            details.save_embeddings(save_embeddings, evaluation.details)
            typer.echo(f"embeddings: {save_embeddings}")
