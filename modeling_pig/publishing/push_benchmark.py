"""Write a benchmark as a dataset folder that `load_dataset` reads (Parquet files and a card), and push it."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack
from unittest.mock import patch

import datasets
from datasets.exceptions import DatasetsError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData, constants

from modeling_pig import __version__

from ..benchmarks import load_benchmark
from ..files import hash_file
from .markdown import escape
from .repository import PushOptions, check_target, one_line_errors, print_files, push


SHARD_BYTES = 500_000_000  # bytes of videos per Parquet file
NUM_LISTED = 20  # missing videos that the card names
# Patterns of the paths that only pushes of this kind write, see [`push`].
OWNED = ["data/*-?????-of-?????.parquet"]
COLUMNS = {
    "video_id": "id of the video in the annotations",
    "video": "path of the video file, relative to the folder of the videos; empty if the video is missing",
    "captions": "sentences that describe the video",
    "start": "start of the used segment in seconds; empty for the whole video",
    "end": "end of the used segment in seconds; empty for the whole video",
}


def push_benchmark(
    name: str,
    *,
    videos: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    repo_id: str | None = None,
    with_videos: bool = False,
    license: str | None = None,
    benchmark_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    message: str = "Upload the benchmark and its card",
    **options: Unpack[PushOptions],
) -> None:
    """Write a benchmark as a dataset folder, push it to a repository on the Hub, or both. Prints the results.

    The push is one commit; a second push of the same benchmark makes no commit. After the push, `load_dataset` reads
    the repository into an empty cache, and all rows must be equal.

    Args:
        name (`str`): name of the benchmark.
        videos (`str` or `os.PathLike`): folder of the videos.
        annotations (`str` or `os.PathLike`, *optional*): folder of the annotation files.
        output (`str` or `os.PathLike`, *optional*): folder to write, see [`write_benchmark`].
        repo_id (`str`, *optional*): dataset repository to push to, `organisation/name`. At least one of `output` and
            `repo_id` is required.
        with_videos (`bool`): put the bytes of the videos into the table.
        license (`str`, *optional*): licence that the card states, by its name on the Hub.
        benchmark_options (`Mapping[str, Any]`, *optional*): further options of [`load_benchmark`].
        dry_run (`bool`): print the files and the card; keep nothing and use no network.
        message (`str`): commit message.
        **options: see [`PushOptions`].

    Raises:
        ValueError: the arguments contradict each other, the benchmark cannot be loaded or written, or the push failed.
    """
    check_target(output, repo_id, dry_run, **options)
    with tempfile.TemporaryDirectory() as work:
        kept = Path(output).expanduser() if output and not dry_run else None
        folder = kept or Path(work, "dataset")
        summary = write_benchmark(
            name,
            videos=videos,
            output=folder,
            annotations=annotations,
            with_videos=with_videos,
            license=license,
            **(benchmark_options or {}),
        )
        print(f"{summary}: {folder}" if kept else summary)
        files = list_files(folder)
        if dry_run:
            print_files(files)
        elif repo_id:
            pushed = push(files, repo_id, owned=OWNED, message=message, repo_type="dataset", **options)
            print(pushed.summary)
            print(compare_download(folder, repo_id, pushed.sha))


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
    """Write a benchmark as a dataset folder: `data/*.parquet`, and the card `README.md`.

    Args:
        name (`str`): name of the benchmark.
        videos (`str` or `os.PathLike`): folder of the videos.
        output (`str` or `os.PathLike`): folder that does not exist, is empty, or already holds this dataset.
        annotations (`str` or `os.PathLike`, *optional*): folder of the annotation files.
        with_videos (`bool`): put the bytes of the videos into the table (`datasets.Video(decode=False)`, `None` if a
            video is missing). By default the table holds their paths, relative to `videos` (empty if a video is
            missing).
        license (`str`, *optional*): licence that the card states, by its name on the Hub.
        **options: further options of [`load_benchmark`].

    Returns:
        `str`: summary of the dataset in one line.

    Raises:
        ValueError: `output` holds other files or lies in a file; a video is a folder of frames although `with_videos`
            is set; or see [`load_benchmark`]. Nothing is written then.
    """
    videos, output = os.path.expanduser(videos), Path(output).expanduser()
    taken = f"The output {output} is neither an empty folder nor this dataset: give another --output, or remove it."
    is_written = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if is_written and not (output / "README.md").is_file():
        raise ValueError(taken)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"The output {output} lies in a file, not in a folder: give a folder.") from error
    files = {"annotations": annotations} if annotations is not None else {}
    # The folder is written beside the output and then renamed: the output appears complete or not at all.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as work:
        splits = load_benchmark(name, videos=videos, cache_dir=os.path.join(work, "cache"), **files, **options)
        folder = Path(work, "dataset")
        (folder / "data").mkdir(parents=True)
        for split, rows in splits.items():
            _write_split(rows, split, folder / "data", videos, with_videos)
        card = _make_card(name, splits, work, annotations, with_videos, license, options)
        card.save(folder / "README.md")
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        counts = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
        num_missing = sum(not path for rows in splits.values() for path in rows["video"])
        if not is_written:
            folder.rename(output)
        elif _hash_files(folder) != _hash_files(output):
            raise ValueError(taken)
    return f"{name}: {counts} videos, {num_missing:,} of them missing, {num_bytes / 1e6:.1f} MB"


def list_files(folder: Path) -> dict[str, Path]:
    """List the files of a folder, sorted: path relative to the folder -> path."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _hash_files(folder: Path) -> dict[str, str]:
    return {name: hash_file(path) for name, path in list_files(folder).items()}


def _features(rows: datasets.Dataset, with_videos: bool) -> datasets.Features:
    video = datasets.Video(decode=False) if with_videos else datasets.Value("string")
    return datasets.Features({**rows.features, "video": video})


def _write_split(rows: datasets.Dataset, split: str, folder: Path, videos: str, with_videos: bool) -> None:
    paths = [path for path in rows["video"] if path]
    num_shards = 1
    if with_videos:
        if frames := next(filter(os.path.isdir, paths), None):
            raise ValueError(
                f"{frames} is a folder of frames, not a video file: leave out --with-videos, or replace the folder "
                "by a video file."
            )
        num_shards = min(-(-sum(map(os.path.getsize, paths)) // SHARD_BYTES) or 1, len(rows))

    def with_relative_path(row: dict[str, Any]) -> dict[str, Any]:
        path = row["video"]
        file = Path(os.path.relpath(path, os.path.abspath(videos))).as_posix() if path else ""
        if file.startswith("../"):  # of a data set, whose videos are in a cache
            file = os.path.basename(path)
        if not with_videos:
            return {"video": file}
        return {"video": {"path": file, "bytes": Path(path).read_bytes()} if path else None}

    for number in range(num_shards):
        shard = rows.shard(num_shards, number, contiguous=True)
        # Small batches: rows that wait to be written are held in memory.
        shard = shard.map(with_relative_path, features=_features(rows, with_videos), writer_batch_size=16)
        shard.to_parquet(folder / f"{split}-{number:05d}-of-{num_shards:05d}.parquet")


def _make_card(
    name: str,
    splits: datasets.DatasetDict,
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
    protocols: dict[str, list[str]] = {}  # description -> splits with this description
    for split, rows in splits.items():
        # Lines that name a folder of this machine are left out.
        lines = [line for line in rows.info.description.strip().splitlines() if Path(work).name not in line]
        protocols.setdefault("\n".join(map(escape, lines)), []).append(split)
    columns = COLUMNS | ({"video": "bytes of the video file, empty if the video is missing"} if with_videos else {})
    example = next(iter(splits.values()))[0]
    lines = [
        f"# {escape(name)}",
        "",
        "A benchmark of text-to-video retrieval. Each row is a video with its captions.",
        "",
        *table,
        "",
        *(f"**{', '.join(names)}.** {text}\n" for text, names in protocols.items()),
        "## Columns",
        "",
        *(f"- `{column}`: {columns[column]}" for column in features if column in columns),
        "",
        f"The first caption of the first video, {escape(example['video_id'])}: {escape(example['captions'][0])}",
        "",
        "## How it was made",
        "",
        f"- By `pig push benchmark` of modeling\\_pig {escape(__version__)}, as {escape(name)}"
        + "".join(f", {escape(f'{key}={_without_folders(value)}')}" for key, value in options.items()),
    ]
    if annotations is not None:
        root = Path(annotations).expanduser()
        files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()] or [Path(root.name)]
        shown = [path for path in files if not any(part.startswith(".") for part in path.parts)]
        lines.append(f"- From the annotation files {', '.join(escape(path.as_posix()) for path in shown)}")
    for split, ids in missing.items():
        if ids:
            more = f" and {len(ids) - NUM_LISTED:,} more" if len(ids) > NUM_LISTED else ""
            listed = ", ".join(map(escape, ids[:NUM_LISTED]))
            lines.append(f"- {len(ids):,} videos of {split} are missing or do not open: {listed}{more}")
    lines += [
        "",
        "## Licence",
        "",
        "The annotations and the videos keep the licences of their owners. Whoever publishes this dataset must hold "
        "the rights to do so.",
    ]
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def _without_folders(value: Any) -> Any:
    """Replace each absolute path in the value of an option by its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


def compare_download(folder: Path, repo_id: str, sha: str) -> str:
    """Read a commit with `load_dataset` into an empty cache, and compare all rows with the dataset folder.

    Returns:
        `str`: summary of the comparison in one line.

    Raises:
        ValueError: the download failed, or rows differ; the message names the splits.
    """
    # `load_dataset` downloads to the cache of `huggingface_hub`; it has no argument for another folder.
    with tempfile.TemporaryDirectory() as cache, patch.object(constants, "HF_HUB_CACHE", os.path.join(cache, "hub")):
        local = datasets.load_dataset(str(folder), cache_dir=os.path.join(cache, "local"))
        with one_line_errors(repo_id, "dataset"):
            try:
                remote = datasets.load_dataset(repo_id, revision=sha, cache_dir=os.path.join(cache, "remote"))
            except DatasetsError as error:
                raise ValueError(f"{repo_id} at {sha} was pushed, but cannot be read: {error}") from error
        different = [name for name in {**local, **remote} if not _are_equal(local.get(name), remote.get(name))]
    if different:
        raise ValueError(
            f"{repo_id} at {sha} does not hold the rows of {folder} in {', '.join(different)}: push again."
        )
    counts = ", ".join(f"{split} {len(rows):,}" for split, rows in remote.items())
    return f"load_dataset read the repository into an empty cache: all rows are equal ({counts})"


def _are_equal(local: datasets.Dataset | None, remote: datasets.Dataset | None) -> bool:
    if local is None or remote is None:
        return False
    return local.features == remote.features and local.data.table.equals(remote.data.table)


__all__ = ["compare_download", "push_benchmark", "write_benchmark"]
