"""Measure interleaved rounds and peak memory in a separate process; print tables and write JSON."""

import contextlib
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from modeling_pig.files import write_text


def interleave(candidates: dict[str, Callable], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Run all candidates in each round, after one warm-up round.

    Returns:
        `tuple[dict, dict]`: seconds, and CPU seconds, of each run by candidate. CPU seconds include all threads and
        finished child processes; they are more reliable if other programs share the machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(repeats + 1):
        for name, run in candidates.items():
            start, start_cpu = time.perf_counter(), cpu_seconds()
            run()
            if round_number > 0:
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(cpu_seconds() - start_cpu)
    return seconds, cpu


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its finished child processes."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def median_ratio(seconds: list[float], baseline: list[float]) -> float:
    """Return the median over rounds of the ratio within a round."""
    return statistics.median(ours / theirs for ours, theirs in zip(seconds, baseline, strict=True))


def judge(figure: float | None, at_most: float | None = None, at_least: float | None = None) -> dict[str, str]:
    """Return the columns `bar`, the required value of a figure, and `met`, whether the figure meets it."""
    if figure is None or (at_most is None and at_least is None):
        return {"bar": "-", "met": "-"}
    if at_most is not None:
        return {"bar": f"at most {at_most:.2f}", "met": "yes" if figure <= at_most else "no"}
    return {"bar": f"at least {at_least:.2f}", "met": "yes" if figure >= at_least else "no"}


def flops(run: Callable) -> int:
    """Count the floating point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_memory(run: Callable) -> tuple[Any, float | None]:
    """Return the result of `run`, and the MB of resident memory that it adds at its peak (`None` without /proc)."""
    if not Path("/proc/self/clear_refs").exists():
        return run(), None
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and initialisation
    before = _status("VmRSS")
    result = run()
    return result, (_status("VmHWM") - before) * 1024 / 1e6


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def added_memory(make: Callable, *candidate, start_method: str = "spawn") -> float | None:
    """Measure in a separate process the MB that a run adds at its peak to its model and inputs (`None` off Linux).

    Args:
        make (`Callable`): function that returns the model and the run.
        candidate: arguments of `make`.
        start_method (`str`, *optional*, defaults to `"spawn"`): start method of the process.
    """
    return in_separate_process(_added_memory, make, *candidate, start_method=start_method)


def _added_memory(make: Callable, *candidate) -> float | None:
    torch.set_num_threads(1)
    _, run = make(*candidate)
    return peak_memory(run)[1]


def in_separate_process(function: Callable, *arguments, start_method: str = "spawn") -> Any:
    """Return the result of a function that is called in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(start_method)) as pool:
        return pool.submit(function, *arguments).result()


def fork_after_imports(*modules: str) -> None:
    """Let processes of start method "forkserver" fork from a process that has imported the package and `modules` only.

    With small shapes the imports would take longer than the measurement.
    """
    names = ["transformers.models.clip.modeling_clip", "modeling_pig.modeling_pig", *modules]
    multiprocessing.set_forkserver_preload(names)


def describe_machine(threads: int) -> dict[str, Any]:
    """Return the processor, cores, threads and versions of the machine."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "precision": "float32 unless stated otherwise",
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def print_table(title: str, rows: list[dict]) -> None:
    """Print rows with the same keys as a table."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else "-" if v is None else str(v) for v in row.values()))
    Console(width=140).print(table)


def write_json(path: str, subject: str, machine: dict[str, Any], figures: dict[str, list[dict]]) -> None:
    """Write the figures of a subject with command, date and machine, for examples/benchmark_page.py."""
    measured = {
        "subject": subject,
        "command": shlex.join(["python", "examples/benchmark.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"measured": measured, **figures}, indent=2) + "\n")
    print(f"figures: {path}")
