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
    TrustOption,
    find_recipe,
    one_line_errors,
    print_failures,
    read_launcher,
    read_lines,
    require_modules,
)


MIN_BOOTSTRAP = 100  # samples; fewer give no usable interval
MTEB_OPTIONS = {"model", "mteb", "output", "num_frames", "dtype", "device", "trust_remote_code"}


def evaluate(
    model: ModelOption,
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose benchmark to run: a YAML file, or the name of a recipe of the package."),
    ] = None,
    mteb: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK", help="Run a task of the mteb package instead, such as MSRVTTT2V. May be repeated."
        ),
    ] = None,
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
    """Evaluate a model on the benchmark of a recipe, from text to video and from video to text, or on tasks of MTEB.

    data.videos=FOLDER and data.annotations=FOLDER replace the folders that the recipe names.
    """
    with one_line_errors():
        if (num_processes := read_launcher("WORLD_SIZE", 1)) > 1:
            if read_launcher("RANK", 0) > 0:
                raise typer.Exit(EXIT_ERROR)
            raise ValueError(
                f"{num_processes} processes were launched, and pig evaluate runs in one: run it without torchrun or "
                "accelerate launch."
            )
        if mteb:
            _check_mteb_options(context)
            _evaluate_with_mteb(model, mteb, output, num_frames, dtype, device, trust_remote_code)
            return
        if recipe is None:
            raise ValueError("There is nothing to evaluate on: give --recipe RECIPE or --mteb TASK.")
        require_modules("train", "datasets", "matplotlib", "pydantic", "yaml")
        for name, file in (("--output", output), ("--save-ranks", save_ranks)):
            _check_output(file, name)
        if save_ranks and output and save_ranks.resolve() == output.resolve():
            raise ValueError(f"--output and --save-ranks are both {output}: give --save-ranks another file.")
        bank = read_lines(querybank, "queries") if querybank else None
        if 0 < bootstrap < MIN_BOOTSTRAP:
            raise ValueError(f"--bootstrap is {bootstrap}: expected 0, or {MIN_BOOTSTRAP} or more.")
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
            raise ValueError(f"{data.title} has no split {split}: give one of {', '.join(benchmark)}.")
        if qb_norm and bank is None:
            if "train" not in benchmark:
                raise ValueError(f"{data.title} has no split train for --qb-norm: load it, or give --querybank.")
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


def _check_output(output: Path | None, option: str = "--output") -> None:
    """Raise an error before the evaluation if the file cannot be written."""
    if output is None:
        return
    if output.suffix != ".json":
        raise ValueError(f"{option} is {output}: expected a file named .json.")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.open("a").close()


def _check_mteb_options(context: typer.Context) -> None:
    """Raise `ValueError` if the command line has options that tasks of MTEB do not have."""
    given = [
        max(parameter.opts, key=len) if parameter.param_type_name == "option" else "section.key=value"
        for parameter in context.command.params
        if parameter.name not in MTEB_OPTIONS
        and (source := context.get_parameter_source(parameter.name or "")) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise ValueError(
            f"{', '.join(given)} cannot be combined with --mteb: a task of MTEB has its own data, split and metrics."
        )


def _evaluate_with_mteb(
    model: str,
    names: list[str],
    output: Path | None,
    num_frames: int | None,
    dtype: DTypeOption,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Run tasks of MTEB, write their results after each of them, and print them."""
    require_modules("mteb", "mteb", "datasets", "pydantic")
    from ..encoding.loading import load_encoder
    from ..evaluation.mteb_encoder import find_tasks, run_tasks
    from ..evaluation.report import mteb_record, print_mteb
    from ..files import write_text

    tasks = find_tasks(names)
    _check_output(output)
    encoder = load_encoder(
        model, device=device, dtype=dtype, num_frames=num_frames, trust_remote_code=trust_remote_code
    )
    results = []
    for result in run_tasks(encoder, tasks):
        results.append(result)
        record = mteb_record(results, encoder)
        if output:
            write_text(output, json.dumps(record.to_dict(), indent=2) + "\n")
    print_mteb(record)
    if output:
        typer.echo(f"results: {output}")
