"""Kill `pig index` at random moments, resume it each time, and compare the index with fresh encodings.

python tests/kill_and_index.py --kills 30 --videos 300 --model MODEL --folder FOLDER

The signal is SIGKILL, sent at a random moment after the first write of a run, or during a write.
"""

import argparse
import os
import random
import signal
import sys
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np


ROOT = Path(__file__).parent.parent
PROCESSES = get_context("forkserver")  # imports the modules once; not LanceDB, which starts threads
PROCESSES.set_forkserver_preload(
    [
        "modeling_pig.retrieval.indexing",
        "modeling_pig.modeling_pig",
        "modeling_pig.processing_pig",
        "modeling_pig.cli",
        "av",
        "lance_namespace",
        "pyarrow.dataset",
    ]
)


def start_pig(
    *arguments: object, log: Path, environment: dict[str, str] | None = None, disk_is_full: bool = False
) -> BaseProcess:
    """Start a `pig` command in a separate process, and append its output to `log`."""
    command = [str(argument) for argument in arguments]
    process = PROCESSES.Process(target=_run_pig, args=(command, log, environment or {}, disk_is_full))
    process.start()
    return process


def _run_pig(arguments: list[str], log: Path, environment: dict[str, str], disk_is_full: bool) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by background processes of a shell
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    from modeling_pig.cli import app
    from modeling_pig.stores.index import VideoIndex

    if disk_is_full:
        VideoIndex.upsert = _fail
    app(arguments)


def _fail(*arguments: object, **options: object) -> None:
    raise OSError("no space left")


def wait_for_success(process: BaseProcess, log: Path) -> None:
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"pig failed:\n{log.read_text()[-3000:]}")


def index_with_kills(videos: Path, model: str | Path, index: Path, num_kills: int, seed: int = 0) -> list[str]:
    """Index a folder, and kill and restart `pig index` at most `num_kills` times. Return the moments of the kills."""
    rng = random.Random(seed)
    log = index.with_suffix(".log")
    command = ("index", videos, "--model", model, "--index", index, "--batch-size", 2)
    kills: list[str] = []
    while len(kills) < num_kills:
        moment = kill_once(command, index, log, rng)
        if moment is None:
            return kills
        kills.append(moment)
    wait_for_success(start_pig(*command, log=log), log)
    return kills


def kill_once(command: tuple, index: Path, log: Path, rng: random.Random) -> str | None:
    """Run `pig index`, kill it, and return the moment of the kill; `None` if the run ended before."""
    is_in_write = rng.random() < 0.5
    num_writes = rng.randint(1, 2)
    before = files_in(index)
    process = start_pig(*command, log=log)
    while process.is_alive():
        # A write first adds files to `data`, and finally a version of the index to `_versions`.
        folders = [path.parent.name for path in files_in(index) - before]
        if folders.count("data" if is_in_write else "_versions") >= num_writes:
            time.sleep(rng.random() * (0.01 if is_in_write else 0.2))
            process.kill()
            process.join()
            return "during a write" if is_in_write else "between writes"
        time.sleep(0.001)
    wait_for_success(process, log)
    return None


def files_in(index: Path) -> set[Path]:
    return set(index.glob("*/*/*"))


def compare_with_fresh_encodings(index: Path, videos: Path, model: str | Path) -> tuple[int, int, float]:
    """Compare an index with fresh encodings of its videos, converted to the storage type of the index.

    Returns:
        `tuple`: number of entries, number of entries that are bit-identical to the fresh encoding, and largest
        difference of all values.

    Raises:
        AssertionError: an entry is missing or occurs twice.
    """
    from modeling_pig import VideoIndex
    from modeling_pig.encoding.loading import load_encoder
    from modeling_pig.encoding.videos import encode_videos

    store = VideoIndex(index)
    paths = sorted(str(path) for path in videos.glob("*.mp4"))
    assert sorted(entry.key for batch in store.batches() for entry in batch.entries) == paths
    batches = encode_videos(load_encoder(str(model), with_texts=False), paths, [])
    fresh: dict[str, np.ndarray] = {}
    for batch in batches:
        fresh |= zip(batch.paths, batch.embeddings.numpy(), strict=True)
    num_equal, largest = 0, 0.0
    for path in paths:
        (found,) = store.get(path)
        stored = found.embedding
        expected = fresh[path].astype(store.info.storage).astype(np.float32)
        num_equal += np.array_equal(stored, expected)
        largest = max(largest, float(np.abs(stored - expected).max()))
    return len(store), num_equal, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", required=True, help="a slow model: a fast run ends before it is killed")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the videos and the index")
    args = parser.parse_args()
    from modeling_pig.benchmarks.moving_shapes import make_scene
    from modeling_pig.benchmarks.shapes_drawing import write_video

    videos, index = args.folder / "videos", args.folder / "videos.lance"
    videos.mkdir(parents=True, exist_ok=True)
    for number in range(args.videos):
        write_video(make_scene("train", number), videos / f"{number:04d}.mp4")
    kills = index_with_kills(videos, args.model, index, args.kills, args.seed)
    num_entries, num_equal, largest = compare_with_fresh_encodings(index, videos, args.model)
    moments = ", ".join(f"{kills.count(moment)} {moment}" for moment in sorted(set(kills)))
    print(
        f"{len(kills)} kills ({moments}): {num_entries} entries of {args.videos} videos, {num_equal} bit-identical to "
        f"a fresh encoding, largest difference {largest:.1e}"
    )
    sys.exit(len(kills) < args.kills or num_entries != args.videos or largest > 1e-3)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
