"""Make a Space that searches an index in the browser, as `pig app` does: as a folder, or on the Hub.

The Space holds the index without any folder of this machine, the code of the installed package, and the model unless
the model is on the Hub. It runs in a container (`sdk: docker`).
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Unpack

import numpy as np
from huggingface_hub import SpaceCardData

import modeling_pig
from modeling_pig import __version__

from ..extras import list_requirements
from ..retrieval.search import VideoSearcher
from ..stores.index import VideoIndex
from ..stores.results import EmbeddedEntry, EntryBatch
from ..stores.transfer import write_export
from ..visualization.text import read_captions
from .markdown import escape
from .remote_code import MODEL_FILES
from .repository import Content, PushOptions, check_empty, check_target, print_files, push


PACKAGE = Path(modeling_pig.__file__).parent
TEMPLATES = Path(__file__).parent / "space"
CODE_FOLDERS = ("", "app", "encoding", "retrieval", "stores", "visualization")  # of the package; the app imports them
CODE_SUFFIXES = {".py", ".html", ".css", ".js"}
EXTRAS = ("search", "app")
PORT = 7860
FILES_PER_BATCH = 1000  # files whose entries are in memory
# Patterns of the paths that only pushes of this kind write, see [`push`].
OWNED = ["index.parquet", "model/*", "modeling_pig/*", "modeling_pig/*/*", *("videos" + "/*" * n for n in range(1, 9))]


def push_space(
    index: str | Sequence[str],
    *,
    storage_options: Mapping[str, str] | None = None,
    model: str | None = None,
    captions: str | os.PathLike | None = None,
    with_videos: bool = False,
    max_upload_mb: float = 200,
    title: str = "Search videos",
    license: str | None = None,
    output: str | os.PathLike | None = None,
    repo_id: str | None = None,
    dry_run: bool = False,
    message: str = "Upload the app, its index and its card",
    **options: Unpack[PushOptions],
) -> None:
    """Make a Space that searches an index, as a folder, on the Hub, or both. Prints the results.

    The push is one commit; a second push of the same content makes no commit.

    Args:
        index, storage_options, model, captions, with_videos, max_upload_mb, title, license: see [`collect_files`].
        output (`str` or `os.PathLike`, *optional*): folder to write; it is empty or does not exist.
        repo_id (`str`, *optional*): Space to push to, `organisation/name`. At least one of `output` and `repo_id` is
            required, except for a dry run.
        dry_run (`bool`): print the files and the card; keep nothing and use no network.
        message (`str`): commit message.
        **options: see [`PushOptions`].

    Raises:
        FileNotFoundError: the index or the file of captions does not exist.
        ValueError: the arguments contradict each other, `output` is not empty, the model did not make the index, a
            video no longer exists, or the push failed.
    """
    check_target(output, repo_id, dry_run, **options)
    folder = Path(output).expanduser() if output else None
    if folder:
        check_empty(folder)
    with tempfile.TemporaryDirectory() as work:
        files = collect_files(
            index,
            work,
            storage_options=storage_options,
            model=model,
            captions=captions,
            with_videos=with_videos,
            max_upload_mb=max_upload_mb,
            title=title,
            license=license,
        )
        if dry_run:
            print_files(files)
            return
        if folder:
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            print(f"{len(files)} files: {output}")
        if repo_id:
            pushed = push(
                files, repo_id, owned=OWNED, message=message, repo_type="space", space_sdk="docker", **options
            )
            print(pushed.summary)


def collect_files(
    index: str | Sequence[str],
    work: str | os.PathLike,
    *,
    storage_options: Mapping[str, str] | None = None,
    model: str | None = None,
    captions: str | os.PathLike | None = None,
    with_videos: bool = False,
    max_upload_mb: float = 200,
    title: str = "Search videos",
    license: str | None = None,
) -> dict[str, Content]:
    """Collect the files of a Space.

    Args:
        index (`str` or `Sequence[str]`): URI of the index; several indexes become one.
        work (`str` or `os.PathLike`): empty folder for the index of the Space.
        storage_options (`Mapping[str, str]`, *optional*): options for indexes in object storage, see [`VideoIndex`].
        model (`str`, *optional*): model that made the index, as a folder or by its name on the Hub; by default the
            model that the index names. The files of a folder are copied into the Space.
        captions (`str` or `os.PathLike`, *optional*): file with one caption per line. The app shows the captions that
            fit a video.
        with_videos (`bool`): copy the videos into the Space. Without them, the Space ranks and names videos, and plays
            none.
        max_upload_mb (`float`): maximum size of a video that a visitor uploads, in megabytes.
        title (`str`): title of the Space.
        license (`str`, *optional*): licence that the card states, by its name on the Hub.

    Returns:
        `dict[str, Content]`: path in the Space -> content of the file, sorted by path.

    Raises:
        FileNotFoundError: the index or the file of captions does not exist.
        ValueError: another model made the index, the model is a `single_tower`, or a video no longer exists.
    """
    searcher = VideoSearcher.from_pretrained(model, index, storage_options=storage_options)
    name = searcher.name
    if searcher.is_single_tower:
        raise ValueError(f"{name} is a single_tower, and a Space does not re-rank: use an index of another model.")
    is_folder = Path(name).is_dir()
    files: dict[str, Content] = {path.name: path for path in TEMPLATES.iterdir() if path.is_file()}
    for folder in CODE_FOLDERS:
        for path in (PACKAGE / folder).iterdir():
            if path.suffix in CODE_SUFFIXES:
                files[f"modeling_pig/{path.relative_to(PACKAGE).as_posix()}"] = path
    if is_folder:
        for path in Path(name).iterdir():
            if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in MODEL_FILES):
                files[f"model/{path.name}"] = path
    new_paths = _map_paths(path for store in searcher.indexes for path in store.files())
    if with_videos:
        if missing := [path for path in new_paths if not os.path.isfile(path)]:
            raise ValueError(
                f"{missing[0]} is in the index but no longer exists, and so are {len(missing) - 1} other files: run "
                "`pig index` with --prune, or leave out --with-videos."
            )
        files |= {new_path: Path(path) for path, new_path in new_paths.items()}
    model_name = "model" if is_folder else name
    # Without a creation time, the same embeddings give the same bytes. The Space does not re-rank.
    info = replace(searcher.indexes[0].info, model=model_name, created="", num_context_tokens=None)
    info = replace(info, format=info.required_format)
    write_export(Path(work, "index.parquet"), info, _iterate_entries(searcher.indexes, new_paths))
    files["index.parquet"] = Path(work, "index.parquet")
    settings = {
        "model": model_name,
        "captions": read_captions(Path(captions)) if captions else [],
        "max_upload_bytes": int(max_upload_mb * 1e6),
    }
    files["space.json"] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    files["requirements.txt"] = "".join(f"{line}\n" for line in list_requirements(EXTRAS, with_core=True)).encode()
    hub_model = None if is_folder else name
    files["README.md"] = _make_card(title, license, hub_model, len(new_paths), with_videos).encode()
    return dict(sorted(files.items()))


def _map_paths(paths: Iterable[str]) -> dict[str, str]:
    """Map paths of this machine to paths in the Space, which name no folder above the common folder of all videos."""
    paths = sorted(set(paths))
    if not paths:
        raise ValueError("The index is empty: add videos to it with `pig index`.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {path: f"videos/{Path(os.path.relpath(path, root)).as_posix()}" for path in paths}


def _iterate_entries(indexes: Sequence[VideoIndex], new_paths: dict[str, str]) -> Iterator[EntryBatch]:
    """Yield all entries with their paths in the Space, sorted by path and key, without modification times.

    If several indexes hold a file, its entries are those of the last of them.
    """
    paths = sorted(new_paths, key=new_paths.__getitem__)
    for first in range(0, len(paths), FILES_PER_BATCH):
        by_path: dict[str, list[EmbeddedEntry]] = {}
        for index in indexes:
            of_index: dict[str, list[EmbeddedEntry]] = {}
            batch = index.entries(paths[first : first + FILES_PER_BATCH])
            for entry, embedding in zip(batch.entries, batch.embeddings, strict=True):
                moved = replace(entry, path=new_paths[entry.path], modified=None)
                of_index.setdefault(moved.path, []).append(EmbeddedEntry(moved, embedding))
            by_path |= of_index
        if pairs := sorted(chain.from_iterable(by_path.values()), key=lambda pair: (pair.entry.path, pair.entry.key)):
            entries, embeddings, _ = zip(*pairs, strict=True)
            yield EntryBatch(list(entries), np.stack(embeddings))


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
        "The videos are in this Space and keep the licences of their owners. Whoever publishes this Space must hold "
        "the rights to do so."
        if with_videos
        else "The videos are not in this Space: it ranks and names them, and plays none."
    )
    lines = [
        f"# {escape(title)}",
        "",
        f"Write a sentence, and the app ranks {num_videos:,} videos by how well they fit it. {playing}",
        "",
        f"The model is {escape(model) if model else 'in `model/`'}, the embeddings are in `index.parquet`. "
        "A video that a visitor uploads is searched with once and not kept.",
        "",
        f"Made by `pig push space` of modeling\\_pig {escape(__version__)}, whose code is in `modeling_pig/`.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


__all__ = ["collect_files", "push_space"]
