"""Write a benchmark as a dataset, parquet files and a card that `load_dataset` reads, and publish it on the Hub.

python hub_scripts/push_benchmark.py msvd --annotations data/msvd --videos data/msvd/videos --output msvd_dataset
python hub_scripts/push_benchmark.py msvd --annotations data/msvd --videos data/msvd/videos --repo-id org/msvd

The videos are named by their files in the folder of the videos; `--with-videos` puts their bytes into the table.
With --dry-run the files and the card are shown, and nothing is kept. A repository is private unless --public is
given. All changes are one commit; a second push of the same benchmark makes none. A push that was interrupted is run
again: what has arrived is not sent twice. Then `load_dataset` reads the repository into an empty cache, and every row
must be what it is here. The token is the client's own (`hf auth login`, or HF_TOKEN).
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
from datasets.exceptions import DatasetsError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from hub_repository import add_push_arguments, check_push_arguments, one_line_errors, print_files, push, sha256
from huggingface_hub import DatasetCard, DatasetCardData, constants

from modeling_pig import __version__
from modeling_pig.benchmarks import load_benchmark
from modeling_pig.benchmarks.prepare import parse_options


SHARD_BYTES = 500_000_000  # of videos in a parquet file
NUM_LISTED = 20  # missing videos that the card names
# What a push puts into a repository. Parquet files that a push lacks are those of an earlier one: they go.
OURS = ["data/*-?????-of-?????.parquet"]


def write_benchmark(
    name: str,
    *,
    videos: str | os.PathLike,
    output: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    with_videos: bool = False,
    license: str | None = None,
    **options: Any,
) -> str:
    """Writes a benchmark as a dataset folder: `data/*.parquet`, and the card, `README.md`.

    Args:
        name (`str`): name of the benchmark.
        videos (`str` or `os.PathLike`): folder of its videos.
        output (`str` or `os.PathLike`): a folder that is not there, is empty, or holds this dataset already.
        annotations (`str` or `os.PathLike`, *optional*): folder of its annotation files.
        with_videos (`bool`): whether the table holds the bytes of the videos (`datasets.Video(decode=False)`, `None`
            where one is missing), not just their file names in the folder of the videos (empty where one is missing).
        license (`str`, *optional*): the licence that the card states, by its name on the Hub.
        options: what [`load_benchmark`] takes besides.

    Returns:
        `str`: what was written, in one line.

    Raises:
        ValueError: an output with something else in it, or in a file; folders of frames, whose bytes are not
            those of one file; whatever [`load_benchmark`] refuses. Nothing is written then.
    """
    videos, output = Path(videos).expanduser(), Path(output).expanduser()
    taken = f"The output {output} is neither an empty folder nor this dataset: give another one, or remove it."
    is_written = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if is_written and not (output / "README.md").is_file():
        raise ValueError(taken)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"The output {output} lies in a file, not in a folder: give a folder.") from error
    files = {"annotations": annotations} if annotations is not None else {}
    # Beside the output, so that it appears as a whole.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as work:
        splits = load_benchmark(name, videos=videos, cache_dir=os.path.join(work, "cache"), **files, **options)
        folder = Path(work, "dataset")
        (folder / "data").mkdir(parents=True)
        for split, rows in splits.items():
            _write_split(rows, split, folder / "data", videos, with_videos)
        card = _make_card(name, splits, folder, work, annotations, with_videos, license, options)
        card.save(folder / "README.md")
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        counts = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
        num_missing = sum(not path for rows in splits.values() for path in rows["video"])
        if not is_written:
            folder.rename(output)
        elif _digests(folder) != _digests(output):
            raise ValueError(taken)
    return f"{name}: {counts} videos, {num_missing:,} of them missing, {num_bytes / 1e6:.1f} MB"


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their paths in it, in order."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _digests(folder: Path) -> dict[str, str]:
    return {name: sha256(path) for name, path in files_of(folder).items()}


def _features(rows: datasets.Dataset, with_videos: bool) -> datasets.Features:
    video = datasets.Video(decode=False) if with_videos else datasets.Value("string")
    return datasets.Features({**rows.features, "video": video})


def _write_split(rows: datasets.Dataset, split: str, folder: Path, videos: Path, with_videos: bool) -> None:
    paths = [path for path in rows["video"] if path]
    num_shards = 1
    if with_videos:
        if frames := next(filter(os.path.isdir, paths), None):
            raise ValueError(
                f"{frames} is a folder of frames, whose bytes are not those of one file: leave out --with-videos, or "
                "put a video file in its place."
            )
        num_shards = min(-(-sum(map(os.path.getsize, paths)) // SHARD_BYTES) or 1, len(rows))

    def relative(row: dict[str, Any]) -> dict[str, Any]:
        path = row["video"]
        file = Path(os.path.relpath(path, videos.absolute())).as_posix() if path else ""
        if not with_videos:
            return {"video": file}
        return {"video": {"path": file, "bytes": Path(path).read_bytes()} if path else None}

    for number in range(num_shards):
        shard = rows.shard(num_shards, number, contiguous=True)
        # A few at a time: what waits to be written is held in memory.
        shard = shard.map(relative, features=_features(rows, with_videos), writer_batch_size=16)
        shard.to_parquet(folder / f"{split}-{number:05d}-of-{num_shards:05d}.parquet")


def _make_card(
    name: str,
    splits: datasets.DatasetDict,
    folder: Path,
    work: str,
    annotations: str | os.PathLike | None,
    with_videos: bool,
    license: str | None,
    options: dict[str, Any],
) -> DatasetCard:
    features = _features(next(iter(splits.values())), with_videos)
    data = DatasetCardData(
        language="en", license=license or "unknown", pretty_name=name, tags=["text-to-video-retrieval", "video"]
    )
    paths = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    MetadataConfigs({"default": {"data_files": paths}}).to_dataset_card_data(data)
    DatasetInfosDict({"default": datasets.DatasetInfo(features=features)}).to_dataset_card_data(data)

    missing = {split: [r["video_id"] for r in rows if not r["video"]] for split, rows in splits.items()}
    table = ["| split | videos | captions | videos missing |", "|---|---|---|---|"]
    for split, rows in splits.items():
        num_captions = sum(map(len, rows["captions"]))
        table.append(f"| {split} | {len(rows):,} | {num_captions:,} | {len(missing[split]):,} |")
    protocols: dict[str, list[str]] = {}  # what is said of splits -> the splits
    for split, rows in splits.items():
        # Notes on files of this machine are left out.
        lines = [line for line in rows.info.description.strip().splitlines() if Path(work).name not in line]
        protocols.setdefault("\n".join(map(escape, lines)), []).append(split)
    meanings = {
        "video_id": "the id of the video in the annotations",
        "video": "the bytes of the file" if with_videos else "the file, named from the folder of the videos",
        "captions": "the sentences that describe it",
        "start": "seconds at which the part of it begins that is used, empty for all of it",
        "end": "seconds at which that part ends",
    }
    example = next(iter(splits.values()))[0]
    lines = [
        f"# {escape(name)}",
        "",
        "A benchmark of text-to-video retrieval: a row is a video with its captions.",
        "",
        *table,
        "",
        *(f"**{', '.join(names)}.** {text}\n" for text, names in protocols.items()),
        "## Columns",
        "",
        *(f"- `{column}`: {meanings[column]}" for column in features if column in meanings),
        "",
        f"The first one, {escape(example['video_id'])}: {escape(example['captions'][0])}",
        "",
        "## How it was made",
        "",
        f"- By `hub_scripts/push_benchmark.py` of modeling\\_pig {escape(__version__)}, as {escape(name)}"
        + "".join(f", {escape(f'{key}={_without_folders(value)}')}" for key, value in options.items()),
    ]
    if annotations is not None:
        root = Path(annotations).expanduser()
        files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
        shown = [path for path in files if not any(part.startswith(".") for part in path.parts)]
        lines.append(f"- From the annotations {', '.join(escape(path.as_posix()) for path in shown)}")
    for split, ids in missing.items():
        if ids:
            more = f" and {len(ids) - NUM_LISTED:,} more" if len(ids) > NUM_LISTED else ""
            listed = ", ".join(map(escape, ids[:NUM_LISTED]))
            lines.append(f"- Missing in {split}, or not to be opened, {len(ids):,} videos: {listed}{more}")
    lines += [
        "",
        "## Licence",
        "",
        "The annotations and the videos are under the licences that their owners gave them, which this folder does "
        "not change. Who publishes it must hold the rights to do so.",
    ]
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def escape(text: str) -> str:
    """Text in one line that shows as it is: nothing in it is markup to Markdown or HTML."""
    text = re.sub(r"([\\`*_{}\[\]#|~!$@]|^[-+=]|:(?=//)|(?<=www)\.)", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _without_folders(value: Any) -> Any:
    """The value of an option without the folders of this machine."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


def compare_download(folder: Path, repo_id: str, sha: str) -> str:
    """Reads a commit with `load_dataset` into an empty cache, and compares every row with those of the folder.

    Returns:
        `str`: that they are equal, in one line.

    Raises:
        ValueError: what differs, or could not be downloaded.
    """
    # Downloads of `load_dataset` go where the client keeps its own, which no argument of it changes.
    with tempfile.TemporaryDirectory() as cache, patch.object(constants, "HF_HUB_CACHE", os.path.join(cache, "hub")):
        here = datasets.load_dataset(str(folder), cache_dir=os.path.join(cache, "here"))
        with one_line_errors(repo_id, "dataset"):
            try:
                there = datasets.load_dataset(repo_id, revision=sha, cache_dir=os.path.join(cache, "there"))
            except DatasetsError as error:
                raise ValueError(f"{repo_id} at {sha} was pushed, but cannot be read: {error}") from error
        different = [name for name in {**here, **there} if not _are_equal(here.get(name), there.get(name))]
    if different:
        raise ValueError(
            f"{repo_id} at {sha} does not hold the rows of {folder} in {', '.join(different)}. Push again."
        )
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in there.items())
    return f"read into an empty cache by load_dataset: all rows are equal ({counts})"


def _are_equal(here: datasets.Dataset | None, there: datasets.Dataset | None) -> bool:
    if here is None or there is None:
        return False
    return here.features == there.features and here.data.table.equals(there.data.table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a benchmark as a dataset folder, or publish it on the Hub.")
    parser.add_argument("benchmark", help="its name, like msvd")
    parser.add_argument("--annotations", help="folder of the annotation files")
    parser.add_argument("--videos", required=True, help="folder of the videos")
    parser.add_argument("--output", help="a folder for the dataset")
    parser.add_argument("--repo-id", metavar="ORG/NAME", help="the repository that it is pushed to")
    add_push_arguments(parser, message="Upload the benchmark and its card")
    parser.add_argument("--with-videos", action="store_true", help="put the bytes of the videos into the table")
    parser.add_argument("--license", help="the licence that the card states, like cc-by-4.0")
    parser.add_argument("--option", action="append", default=[], metavar="key=value", help="of the benchmark")
    args = parser.parse_args()
    try:
        if args.repo_id:
            check_push_arguments(args)
        elif not args.output:
            raise ValueError("Give --output for a folder, --repo-id for a repository on the Hub, or both.")
        elif args.public or args.create_pr or args.revision or args.dry_run:
            raise ValueError("--public, --create-pr, --revision and --dry-run are of a push: give --repo-id.")
        with tempfile.TemporaryDirectory() as work:
            is_kept = args.output and not args.dry_run
            folder = Path(args.output).expanduser() if is_kept else Path(work, "dataset")
            summary = write_benchmark(
                args.benchmark,
                videos=args.videos,
                output=folder,
                annotations=args.annotations,
                with_videos=args.with_videos,
                license=args.license,
                **parse_options(args.option),
            )
            print(f"{summary}: {folder}" if is_kept else summary)
            if not args.repo_id:
                return
            files = files_of(folder)
            if args.dry_run:
                print_files(files)
                return
            sha, summary = push(
                files,
                args.repo_id,
                ours=OURS,
                message=args.message,
                repo_type="dataset",
                public=args.public,
                create_pr=args.create_pr,
                revision=args.revision,
            )
            print(summary)
            print(compare_download(folder, args.repo_id, sha))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
