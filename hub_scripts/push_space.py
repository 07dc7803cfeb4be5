"""Make a Space that searches an index in the browser, as `pig app` does, as a folder or on the Hub.

python hub_scripts/push_space.py --index videos.lance --output SPACE
python hub_scripts/push_space.py --index videos.lance --repo-id org/name --with-videos

The Space holds the index, in which no folder of this machine is named, the code of the installed package, and the
model unless that is on the Hub. The videos stay here unless --with-videos is given: without them the Space ranks and
names them, and plays none. It runs in a container (`sdk: docker`). With --dry-run the files and the card are shown,
and nothing is kept. A Space is private unless --public is given. All changes are one commit; a second push of the same
makes none. The token is the client's own (`hf auth login`, or HF_TOKEN).
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

import numpy as np
from hub_repository import Content, add_push_arguments, check_push_arguments, print_files, push
from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement
from push_benchmark import escape
from push_model import MODEL_FILES

import modeling_pig
from modeling_pig import VideoSearcher, __version__
from modeling_pig.stores.index import VideoEntry, VideoIndex
from modeling_pig.stores.transfer import write_export
from modeling_pig.visualization.text import read_captions


INSTALLED = Path(modeling_pig.__file__).parent
TEMPLATES = Path(__file__).parent / "space"
PARTS = ("", "app", "retrieval", "visualization")  # of the package: what the app imports
CODE_SUFFIXES = {".py", ".html", ".css", ".js"}
EXTRAS = ("search", "app")
PORT = 7860
FILES_AT_ONCE = 1000  # of which the entries are in memory
# What a push puts into a repository. Files of this kind that a push lacks are those of an earlier one: they go.
OURS = ["index.parquet", "model/*", "modeling_pig/*", "modeling_pig/*/*", *("videos" + "/*" * n for n in range(1, 9))]


def collect(
    index: str | Sequence[str],
    work: str | os.PathLike,
    *,
    model: str | None = None,
    captions: str | os.PathLike | None = None,
    with_videos: bool = False,
    max_upload_mb: float = 200,
    title: str = "Search videos",
    license: str | None = None,
) -> dict[str, Content]:
    """The files of a Space.

    Args:
        index (`str` or `Sequence[str]`): the index's URI; several become one.
        work (`str` or `os.PathLike`): an empty folder, for the index as it goes into the Space.
        model (`str`, *optional*): the name on the Hub or the folder of the model; by default the one that made the
            index. A folder's files go into the Space.
        captions (`str` or `os.PathLike`, *optional*): a file of sentences, of which the app chooses those that fit.
        with_videos (`bool`): whether the videos go into the Space.
        max_upload_mb (`float`): of a video that a visitor uploads.
        title (`str`): the Space's.
        license (`str`, *optional*): the licence that the card states, by its name on the Hub.

    Returns:
        the content of each file (`bytes`, or the `Path` of a file) by its path in the Space, in order.

    Raises:
        FileNotFoundError: no such index, or no captions.
        ValueError: another model than the one that made the index; a video that is not there any more.
    """
    searcher = VideoSearcher.from_pretrained(model, index)
    name = searcher.name
    is_folder = Path(name).is_dir()
    files: dict[str, Content] = {path.name: path for path in TEMPLATES.iterdir() if path.is_file()}
    for part in PARTS:
        for path in (INSTALLED / part).iterdir():
            if path.suffix in CODE_SUFFIXES:
                files[f"modeling_pig/{path.relative_to(INSTALLED).as_posix()}"] = path
    if is_folder:
        for path in Path(name).iterdir():
            if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in MODEL_FILES):
                files[f"model/{path.name}"] = path
    places = _places(path for store in searcher.indexes for path in store.files())
    if with_videos:
        if lost := [path for path in places if not os.path.isfile(path)]:
            raise ValueError(
                f"{lost[0]} is in the index and not there any more, as are {len(lost) - 1} others: run `pig index` "
                "with --prune, or leave out --with-videos."
            )
        files |= {place: Path(path) for path, place in places.items()}
    model_name = "model" if is_folder else name
    _write_index(searcher.indexes, places, model_name, Path(work, "index.parquet"))
    files["index.parquet"] = Path(work, "index.parquet")
    settings = {
        "model": model_name,
        "captions": read_captions(captions) if captions else [],
        "max_upload_bytes": int(max_upload_mb * 1e6),
    }
    files["space.json"] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in _requirements()).encode()
    hub_model = None if is_folder else name
    files["README.md"] = _make_card(title, license, hub_model, len(places), with_videos).encode()
    return dict(sorted(files.items()))


def _places(paths: Iterable[str]) -> dict[str, str]:
    """path -> its place in the Space, which names no folder above the one that all videos lie in."""
    paths = sorted(set(paths))
    if not paths:
        raise ValueError("The index is empty: a Space needs something to search.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {path: f"videos/{Path(os.path.relpath(path, root)).as_posix()}" for path in paths}


def _write_index(indexes: Sequence[VideoIndex], places: dict[str, str], model: str, path: Path) -> None:
    """Writes what [`import_index`] reads, the same bytes for the same embeddings: in order, and without times."""
    write_export(path, replace(indexes[0].info, model=model, created=""), _moved(indexes, places))


def _moved(indexes: Sequence[VideoIndex], places: dict[str, str]) -> Iterator[tuple[list[VideoEntry], np.ndarray]]:
    """All entries as those of files in the Space, in order of place and key; of several indexes, those of the last."""
    paths = sorted(places, key=places.__getitem__)
    for first in range(0, len(paths), FILES_AT_ONCE):
        rows: dict[str, list[tuple[VideoEntry, np.ndarray]]] = {}
        for index in indexes:
            held: dict[str, list[tuple[VideoEntry, np.ndarray]]] = {}
            for entry, vector in zip(*index.entries(paths[first : first + FILES_AT_ONCE]), strict=True):
                moved = replace(entry, path=places[entry.path], modified=None)
                held.setdefault(moved.path, []).append((moved, vector))
            rows |= held
        if pairs := sorted(chain.from_iterable(rows.values()), key=lambda pair: (pair[0].path, pair[0].key)):
            entries, vectors = zip(*pairs, strict=True)
            yield list(entries), np.stack(vectors)


def _requirements() -> list[str]:
    """What the installed package asks for, with what the app takes."""
    found = set()
    for requirement in map(Requirement, requires("modeling-pig") or ()):
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
            found.add(str(requirement))
    return sorted(found)


def _make_card(title: str, license: str | None, model: str | None, num_videos: int, with_videos: bool) -> str:
    data = SpaceCardData(
        title=title,
        sdk="docker",
        app_file="app.py",
        app_port=PORT,
        license=license,
        models=[model] if model else None,
        tags=["text-to-video-retrieval", "video"],
    )
    playing = (
        "They are in this Space, under the licences of their owners. Who publishes it must hold the rights to do so."
        if with_videos
        else "They are not in this Space, which ranks and names them and plays none."
    )
    lines = [
        f"# {escape(title)}",
        "",
        f"Write a sentence, and the app ranks {num_videos:,} videos by how well they fit it. {playing}",
        "",
        f"The model is {escape(model) if model else 'in `model/`'}, the embeddings are in `index.parquet`. "
        "A video that a visitor uploads is looked at and not kept.",
        "",
        f"Made by `hub_scripts/push_space.py` of modeling\\_pig {escape(__version__)}, whose code is in "
        "`modeling_pig/`.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def write_folder(files: dict[str, Content], output: str | os.PathLike) -> None:
    """Writes the files of a Space into a folder that is not there, or is empty.

    Raises:
        ValueError: a folder with something in it, or a file.
    """
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"The output {output} is there already and not an empty folder: give another one.")
    for name, content in files.items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a Space that searches an index, as a folder or on the Hub.")
    parser.add_argument("--index", action="append", required=True, help="its URI; may be repeated")
    parser.add_argument(
        "--model", help="folder, or name on the Hub, of the model that made the index, if it has moved"
    )
    parser.add_argument("--captions", help="file of sentences, one a line, to choose those that fit a video")
    parser.add_argument("--with-videos", action="store_true", help="put the videos into the Space")
    parser.add_argument("--max-upload-mb", type=float, default=200, help="the largest video that a visitor can upload")
    parser.add_argument("--title", default="Search videos", help="of the Space")
    parser.add_argument("--license", help="the licence that the card states, like cc-by-4.0")
    parser.add_argument("--output", help="a folder for the Space")
    parser.add_argument("--repo-id", metavar="ORG/NAME", help="the Space that it is pushed to")
    add_push_arguments(parser, message="Upload the app, its index and its card")
    args = parser.parse_args()
    try:
        if args.repo_id:
            check_push_arguments(args)
        elif not args.output and not args.dry_run:
            raise ValueError("Give --output for a folder, --repo-id for a Space on the Hub, or both.")
        elif args.public or args.create_pr or args.revision:
            raise ValueError("--public, --create-pr and --revision are of a push: give --repo-id.")
        with tempfile.TemporaryDirectory() as work:
            files = collect(
                args.index,
                work,
                model=args.model,
                captions=args.captions,
                with_videos=args.with_videos,
                max_upload_mb=args.max_upload_mb,
                title=args.title,
                license=args.license,
            )
            if args.dry_run:
                print_files(files)
                return
            if args.output:
                write_folder(files, args.output)
                print(f"{len(files)} files: {args.output}")
            if args.repo_id:
                _, summary = push(
                    files,
                    args.repo_id,
                    ours=OURS,
                    message=args.message,
                    repo_type="space",
                    space_sdk="docker",
                    public=args.public,
                    create_pr=args.create_pr,
                    revision=args.revision,
                )
                print(summary)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
