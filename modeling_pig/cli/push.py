"""`pig push`: push models, benchmarks and search pages to the Hub."""

from pathlib import Path
from typing import Annotated

import typer

from .common import IndexesOption, MovedModelOption, YamlOption, one_line_errors, require_modules


push = typer.Typer(
    help="Push a model, a benchmark or a search page to the Hub. Log in first: hf auth login.", no_args_is_help=True
)

PublicOption = Annotated[bool, typer.Option("--public", help="Make a repository that the push creates public.")]
CreatePrOption = Annotated[bool, typer.Option("--create-pr", help="Propose the changes in a pull request.")]
RevisionOption = Annotated[str | None, typer.Option(metavar="BRANCH", help="Branch to push to instead of main.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the files and the card, without the network.")]
MessageOption = Annotated[str, typer.Option(help="Commit message.")]
LicenseOption = Annotated[str | None, typer.Option(help="Licence that the card states, such as apache-2.0.")]
RepoIdOption = Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Repository to push to.")]


@push.command("model")
def push_model(
    run: Annotated[Path, typer.Argument(help="Run folder that `pig train` wrote.")],
    repo_id: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository to push to.")],
    remote_code: Annotated[
        bool, typer.Option("--remote-code", help="Add the code of the model, for trust_remote_code=True.")
    ] = False,
    license: LicenseOption = None,
    dataset: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="Benchmark on the Hub to link.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the latency here, and write it to RUN/efficiency.json.")
    ] = False,
    public: PublicOption = False,
    create_pr: CreatePrOption = False,
    revision: RevisionOption = None,
    dry_run: DryRunOption = False,
    message: MessageOption = "Upload the model, its records and its card",
) -> None:
    """Push the model of a run folder, with its records, figures and model card."""
    with one_line_errors():
        require_modules("train", "matplotlib", "pydantic", "yaml")
        from ..publishing import push_model as publishing

        publishing.push_model(
            run,
            repo_id,
            remote_code=remote_code,
            license=license,
            dataset=dataset,
            measure=measure,
            dry_run=dry_run,
            message=message,
            public=public,
            create_pr=create_pr,
            revision=revision,
        )


@push.command("benchmark")
def push_benchmark(
    benchmark: Annotated[str, typer.Argument(help="Name of the benchmark, such as msvd.")],
    videos: Annotated[str, typer.Option(help="Folder of the videos.")],
    annotations: Annotated[str | None, typer.Option(help="Folder of the annotation files.")] = None,
    option: YamlOption = None,
    with_videos: Annotated[
        bool, typer.Option("--with-videos", help="Put the bytes of the videos into the table.")
    ] = False,
    license: LicenseOption = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write the dataset to.")] = None,
    repo_id: RepoIdOption = None,
    public: PublicOption = False,
    create_pr: CreatePrOption = False,
    revision: RevisionOption = None,
    dry_run: DryRunOption = False,
    message: MessageOption = "Upload the benchmark and its card",
) -> None:
    """Write a benchmark as a dataset to a folder (--output), push it to the Hub (--repo-id), or both."""
    with one_line_errors():
        require_modules("train", "datasets", "pydantic", "yaml")
        from ..benchmarks.prepare import parse_options
        from ..publishing import push_benchmark as publishing

        publishing.push_benchmark(
            benchmark,
            videos=videos,
            annotations=annotations,
            output=output,
            repo_id=repo_id,
            with_videos=with_videos,
            license=license,
            benchmark_options=parse_options(option or []),
            dry_run=dry_run,
            message=message,
            public=public,
            create_pr=create_pr,
            revision=revision,
        )


@push.command("space")
def push_space(
    index: IndexesOption,
    model: MovedModelOption = None,
    captions: Annotated[
        Path | None, typer.Option(help="Text file, one caption per line: the Space shows captions that fit a video.")
    ] = None,
    with_videos: Annotated[bool, typer.Option("--with-videos", help="Put the videos into the Space.")] = False,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="Largest video to upload, in MB.")] = 200,
    title: Annotated[str, typer.Option(help="Title of the Space.")] = "Search videos",
    license: LicenseOption = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write the Space to.")] = None,
    repo_id: RepoIdOption = None,
    public: PublicOption = False,
    create_pr: CreatePrOption = False,
    revision: RevisionOption = None,
    dry_run: DryRunOption = False,
    message: MessageOption = "Upload the app, its index and its card",
) -> None:
    """Write a Space that searches an index to a folder (--output), push it to the Hub (--repo-id), or both."""
    with one_line_errors():
        require_modules("app", "fastapi", "uvicorn")
        from ..publishing import push_space as publishing

        publishing.push_space(
            index,
            model=model,
            captions=captions,
            with_videos=with_videos,
            max_upload_mb=max_upload_mb,
            title=title,
            license=license,
            output=output,
            repo_id=repo_id,
            dry_run=dry_run,
            message=message,
            public=public,
            create_pr=create_pr,
            revision=revision,
        )
