"""Decode mutated videos of all kinds, and report crashes, hangs, memory beyond the limit, and unexpected exceptions.

python -m tests.fuzz_decoding --inputs 20000 --seed 0 --jobs 2 --folder FOLDER

Each input is made from (seed, number) and the videos in FOLDER/kinds, which are drawn once. It is decoded in a
separate process, and may yield frames or a `VideoDecodingError`. Failing inputs are written to FOLDER.
"""

import argparse
import re
import resource
import shlex
import sys
import time
import warnings
from collections import Counter
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from modeling_pig.video_decoding_pig import VideoDecodingError, decode_segments, decode_video
from modeling_pig.video_file_pig import VideoDecodingWarning

from .videos.kinds import KINDS


MAX_SECONDS = 10  # per input
MAX_GROWTH = 2**30  # bytes of resident memory of a process since its start
MAX_ADDRESS_SPACE = 2**32  # bytes beyond those at the start; protects the machine until the process is stopped
NUM_FRAMES, SIZE = 4, 32
EDGE = 2048  # bytes at the start and the end of a file, where headers and indexes are: they get half of the mutations

PROCESSES = get_context("forkserver")  # imports the modules once
PROCESSES.set_forkserver_preload(["modeling_pig.video_decoding_pig", "tests.videos.kinds"])


class Result(NamedTuple):
    """Outcome of an input: `decoded`, `refused` or `failed`, and the growth of resident memory in bytes."""

    outcome: str
    growth: int
    num_warnings: int = 0
    error: str = ""


def mutate(kinds: list[tuple[str, bytes]], rng: np.random.Generator) -> tuple[str, bytes]:
    """Return the name and the mutated content of a random video."""
    name, content = kinds[rng.integers(len(kinds))]
    for _ in range(rng.choice([1, 1, 2, 4])):
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        data = bytearray(content)
        if mutation is _splice:
            other = kinds[rng.integers(len(kinds))][1]
            content = bytes(data[: _position(data, rng)] + other[_position(other, rng) :])
        else:
            mutation(data, rng)
            content = bytes(data)
    return name, content


def _position(data: bytes | bytearray, rng: np.random.Generator) -> int:
    size = max(len(data), 1)
    start, stop = [(0, size), (0, size), (0, min(EDGE, size)), (max(size - EDGE, 0), size)][rng.integers(4)]
    return int(rng.integers(start, stop))


def _block(data: bytearray, rng: np.random.Generator) -> slice:
    start = _position(data, rng)
    return slice(start, start + int(2 ** rng.uniform(0, 12)))


def _flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(2 ** rng.uniform(0, 6))):
        if data:
            data[_position(data, rng)] ^= 1 << int(rng.integers(8))


def _fill(data: bytearray, rng: np.random.Generator) -> None:
    block = _block(data, rng)
    size = len(data[block])
    data[block] = rng.bytes(size) if rng.integers(2) else bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * size


def _truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[_position(data, rng) :]


def _copy(data: bytearray, rng: np.random.Generator) -> None:
    block = data[_block(data, rng)]
    at = _position(data, rng)
    data[at : at + len(block)] = block


def _insert(data: bytearray, rng: np.random.Generator) -> None:
    block = data[_block(data, rng)]
    at = _position(data, rng)
    data[at:at] = block


def _remove(data: bytearray, rng: np.random.Generator) -> None:
    del data[_block(data, rng)]


def _overwrite_number(data: bytearray, rng: np.random.Generator) -> None:
    """Overwrite 32 bits, half of the time before or after four letters: those may be the size of a box or a chunk."""
    at = _position(data, rng)
    names = [match.start() for match in re.finditer(rb"[A-Za-z]{4}", data)]
    if names and rng.integers(2):
        at = max(names[rng.integers(len(names))] + int(rng.choice([-4, 4, 8, 12, 16])), 0)
    extremes = [0, 1, 7, 8, 2**16, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1, len(data)]
    data[at : at + 4] = extremes[rng.integers(len(extremes))].to_bytes(4, ("big", "little")[rng.integers(2)])


def _splice(data: bytearray, rng: np.random.Generator) -> None:
    """Marks the splice of two videos in [`mutate`]."""


MUTATIONS = [_flip_bits, _fill, _truncate, _copy, _insert, _remove, _overwrite_number, _splice]


def _resize(frame: np.ndarray) -> np.ndarray:
    rows, columns = (np.linspace(0, length - 1, SIZE).astype(int) for length in frame.shape[:2])
    return frame[rows[:, None], columns]


def decode(path: Path, content: bytes, rng: np.random.Generator) -> Result:
    """Decode a video, or its content, with random options."""
    source = path if rng.integers(2) else content
    settings = {"sampling": str(rng.choice(["time", "index"])), "transform": _resize}
    how = rng.integers(3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", VideoDecodingWarning)
        try:
            if how == 0:
                segments = [decode_video(source, NUM_FRAMES, **settings)]
            elif how == 1:
                start, end = np.sort(rng.uniform(0, 5, 2))
                segments = [decode_video(source, NUM_FRAMES, start=start, end=end, **settings)]
            else:
                segments = list(decode_segments(source, NUM_FRAMES, _quarters, **settings))
            for frames, metadata in segments:
                indices = metadata.frames_indices
                assert frames.shape == (NUM_FRAMES, SIZE, SIZE, 3) and frames.dtype == np.uint8
                assert indices == sorted(indices) and 0 <= indices[0] <= indices[-1] < metadata.total_num_frames
                assert metadata.duration is None or 0 < metadata.duration < np.inf
            outcome, error = "decoded", ""
        except VideoDecodingError as refused:
            outcome, error = "refused", refused.reason
        except Exception as failed:
            outcome, error = "failed", f"{type(failed).__name__}: {failed}"
    return Result(outcome, _peak(), len(caught), error)


def _quarters(duration: float | None) -> list[tuple[float | None, float | None]]:
    if duration is None:
        return [(None, None)]
    return [(number * duration / 4, (number + 1) * duration / 4) for number in range(4)]


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_kinds(folder: Path) -> list[tuple[str, bytes]]:
    """Return name and content of each kind of video; those that are missing in the folder are drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        if not (folder / kind.file).exists():
            kind.draw(folder / kind.file)
    return [(kind.file, (folder / kind.file).read_bytes()) for kind in KINDS]


def make_input(kinds: list[tuple[str, bytes]], seed: int, number: int) -> tuple[str, bytes, np.random.Generator]:
    """Return name, content and random generator of an input."""
    rng = np.random.default_rng([seed, number])
    return *mutate(kinds, rng), rng


def work(connection: Connection, seed: int, kinds_folder: Path, folder: Path) -> None:
    """Decode the inputs whose numbers arrive, and send the result of each."""
    kinds = read_kinds(kinds_folder)
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + MAX_ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _peak()
    connection.send(None)
    while (number := connection.recv()) is not None:
        name, content, rng = make_input(kinds, seed, number)
        path = folder / f"{number}-{name}"
        path.write_bytes(content)
        result = decode(path, content, rng)
        path.unlink()
        connection.send(result._replace(growth=result.growth - before))


class Worker:
    """Process that decodes one input after the other.

    Attributes:
        number (`int`, *optional*): number of the input that is being decoded.
        since (`float`): when decoding of this input started.
    """

    def __init__(self, seed: int, kinds_folder: Path, folder: Path):
        self.connection, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=work, args=(theirs, seed, kinds_folder, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()  # the process is ready
        self.number: int | None = None
        self.since = 0.0

    def send(self, number: int | None) -> None:
        self.number, self.since = number, time.monotonic()
        self.connection.send(number)

    def result(self) -> Result | None:
        """Return the result of the current input, `None` as long as it is being decoded."""
        try:
            if self.connection.poll():
                result = self.connection.recv()
                if result.growth > MAX_GROWTH:
                    return Result("failed", result.growth, error=f"memory: {result.growth / 2**20:.0f} MB")
                return result
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Result("failed", 0, error=f"the process died with exit code {self.process.exitcode}")
        if time.monotonic() - self.since > MAX_SECONDS:
            return Result("failed", 0, error=f"more than {MAX_SECONDS} s")
        return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def fuzz(numbers: range, seed: int, jobs: int, folder: Path) -> int:
    """Decode the inputs of these numbers, print progress and a summary, and return the number of failures."""
    kinds = read_kinds(folder / "kinds")
    start, slowest, growth = time.monotonic(), 0.0, 0
    counts: Counter[str] = Counter()
    remaining = iter(numbers)
    with TemporaryDirectory() as scratch:
        places = seed, folder / "kinds", Path(scratch)
        workers = [Worker(*places) for _ in range(min(jobs, len(numbers)))]
        for worker in workers:
            worker.send(next(remaining))
        while workers:
            wait([worker.connection for worker in workers], timeout=0.5)
            for worker in list(workers):
                if (result := worker.result()) is None:
                    continue
                number = worker.number
                slowest, growth = max(slowest, time.monotonic() - worker.since), max(growth, result.growth)
                counts.update({result.outcome: 1, "warnings": result.num_warnings, "inputs": 1})
                if result.outcome == "failed":
                    name, content, _ = make_input(kinds, seed, number)
                    path = folder / f"{seed}-{number}-{name}"
                    path.write_bytes(content)
                    command = f"python -m tests.fuzz_decoding --seed {seed} --first {number} --inputs 1 --folder"
                    print(f"failed: {path}: {result.error}\n  {command} {shlex.quote(str(folder))}", flush=True)
                    worker.stop()
                    workers[workers.index(worker)] = worker = Worker(*places)
                elif len(numbers) == 1:
                    print(f"{result.outcome} {result.error}")
                if counts["inputs"] % 1000 == 0:
                    print(f"{counts['inputs']} inputs, {time.monotonic() - start:.0f} s", flush=True)
                if (following := next(remaining, None)) is None:
                    workers.remove(worker)
                    worker.stop()
                else:
                    worker.send(following)
    print(
        f"{counts['inputs']} inputs: {counts['decoded']} decoded, {counts['refused']} refused, "
        f"{counts['warnings']} warnings, {counts['failed']} failures; {time.monotonic() - start:.0f} s, slowest input "
        f"{slowest:.1f} s, peak memory {growth / 2**20:.0f} MB more than at the start"
    )
    return counts["failed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20000, help="number of inputs")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="for videos, and inputs that fail")
    options = parser.parse_args()
    numbers = range(options.first, options.first + options.inputs)
    sys.exit(1 if fuzz(numbers, options.seed, options.jobs, options.folder) else 0)


if __name__ == "__main__":
    main()
