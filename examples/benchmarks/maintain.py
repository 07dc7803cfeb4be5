"""`maintain`: what maintenance of an index takes, compared with a plain copy of its folder.

An index with 512 dimensions, written in 20,000 entries per write, with embeddings as in `search`. Each operation runs
once, in the order of the table, with all files in the file cache.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeling_pig.stores.index import VideoIndex
from modeling_pig.stores.transfer import export_index, import_index

from .measure import print_table
from .search import fill, make_embeddings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)


def run(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows += _measure(Path(folder), size, args.dim)
    print_table("seconds, and MB on disk afterwards", rows)
    return {"maintain": rows}


def _measure(folder: Path, size: int, embedding_dim: int) -> list[dict[str, Any]]:
    uri, export = folder / "v.lance", folder / "v.parquet"
    videos, queries = make_embeddings(size, 1, embedding_dim)
    fill(str(uri), videos)
    index = VideoIndex(uri)
    index.search(queries)
    paths = list(index.files())
    tenth = paths[: size // 10]
    operations: dict[str, Callable[[], Any]] = {
        "copy the folder": lambda: shutil.copytree(uri, folder / "copy.lance"),
        "keep a version": lambda: index.keep_version("before"),
        "set a column of all videos": lambda: index.set_metadata({path: {"category": "news"} for path in paths}),
        "set a column of one video": lambda: index.set_metadata({paths[0]: {"category": "film"}}),
        "delete a tenth": lambda: index.delete(tenth),
        "list the versions": index.versions,
        "restore the version": lambda: index.restore("before"),
        "first search after it": lambda: index.search(queries),
        "export": lambda: export_index(index, export),
        "import": lambda: import_index(export, folder / "new.lance"),
    }
    rows = []
    for name, operation in operations.items():
        start = time.perf_counter()
        operation()
        seconds = time.perf_counter() - start
        used = sum(file.stat().st_size for file in uri.rglob("*") if file.is_file()) / 1e6
        rows.append({"videos": size, "what": name, "s": seconds, "index MB": used})
    return rows
