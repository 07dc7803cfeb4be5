"""Check on a GPU what the tests check on the CPU, measure speed and memory, and write one page.

    python examples/gpu_report.py --output docs/gpu.md                             # at most 20 minutes on a GPU
    python examples/gpu_report.py --device cpu --quick --output runs/gpu.md        # tiny shapes, to see that it runs
    python examples/gpu_report.py --parts golden steps --output runs/gpu.md        # some parts only

Each part runs in a process of its own, with a time limit. A part that fails or takes too long keeps the rows that it
has measured, and gets a row that says so. The functions in `examples/gpu` describe what they check and measure.
"""

import argparse
import contextlib
import inspect
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from benchmark_page import markdown_table
from gpu import numbers, runs, speed
from gpu.rows import Row

from modeling_pig.files import write_text


# Part -> its function and the seconds that it may take; together 20 minutes.
PARTS = {
    "golden": (numbers.golden, 60),
    "attention": (numbers.attention, 90),
    "compiled": (numbers.compiled, 240),
    "precisions": (runs.precisions, 120),
    "resumed": (runs.resumed, 120),
    "processes": (runs.processes, 120),
    "indexing": (speed.indexing, 210),
    "steps": (speed.steps, 240),
}
PAGE = Path(__file__).parents[1] / "docs/gpu.md"
INTRODUCTION = """# Does it run on a GPU?

`make gpu` on a machine with CUDA checks on the GPU what the tests check on the CPU, measures speed and memory, and
writes this page within 20 minutes. A check that fails is a row of the page, with its error.
"""
NOT_RUN = "**Nothing here has been run on a GPU yet**: the machines that test this package have none."


def describe(device: str) -> str:
    """Return the device, the versions and the date, as one line."""
    if device == "cpu":
        name = f"CPU with {os.cpu_count()} cores (a trial of the script: these are no figures of a GPU)"
    else:
        properties = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        name = f"{count} x {properties.name} with {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    versions["transformers"] = transformers.__version__
    listed = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{name}; {listed}; {datetime.now(UTC).date().isoformat()}"


def run_part(name: str, device: str, quick: bool, limit: float) -> list[Row]:
    """Run a part in a process of its own, and return its rows; the last row reports a crash or a time limit."""
    with tempfile.TemporaryDirectory() as folder:
        rows, errors = Path(folder) / "rows.jsonl", Path(folder) / "errors.txt"
        command = [sys.executable, __file__, "--device", device, "--run-part", name, "--output", str(rows)]
        failure = None
        with errors.open("w") as file:
            # A session of its own: the part may have started processes, which end with it.
            part = subprocess.Popen(
                [*command, *(["--quick"] if quick else [])], stdout=file, stderr=file, start_new_session=True
            )
            try:
                if part.wait(limit) != 0:
                    last = (errors.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
                    failure = f"failed: the process ended with status {part.returncode}: {last[:200]}"
            except subprocess.TimeoutExpired:
                failure = f"failed: not finished within {limit:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(part.pid, signal.SIGKILL)
                part.wait()
        measured = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    return [*measured, {"check": f"part {name}", "result": failure}] if failure else measured


def write_rows(name: str, device: str, quick: bool, path: str) -> None:
    """Run a part in this process, and append each row to a file of JSON lines as soon as it is measured."""
    measure, _ = PARTS[name]
    with open(path, "w", encoding="utf-8") as file:
        for row in measure(device, quick):
            print(json.dumps(row), file=file, flush=True)


def make_page(measured: dict[str, list[Row]], about: str | None = None) -> str:
    """Format the rows of all parts as a page in Markdown. `about` describes the machine; `None`: nothing has run."""
    parts = [INTRODUCTION.strip(), NOT_RUN if about is None else f"{about}."]
    if about is not None:
        results = [row.get("result", "") for rows in measured.values() for row in rows]
        counts = {kind: sum(result.startswith(kind) for result in results) for kind in ("passed", "failed", "not run")}
        parts.append(", ".join(f"{count} {kind}" for kind, count in counts.items()) + ".")
    for name, (function, _) in PARTS.items():
        parts += [f"## {name.capitalize()}", inspect.getdoc(function)]
        if name in measured:
            parts.append(markdown_table(measured[name]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Check and measure on a GPU, and write one page.")
    parser.add_argument("--output", required=True, help="page to write, in Markdown")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--minutes", type=float, default=20, help="time limit of all parts together")
    parser.add_argument("--run-part", choices=PARTS, help=argparse.SUPPRESS)  # in a process of `run_part`
    args = parser.parse_args()
    if args.run_part:
        write_rows(args.run_part, args.device, args.quick, args.output)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU with CUDA: run this on a machine with one, or try it with --device cpu")
    if (args.device == "cpu" or args.quick) and Path(args.output).resolve() == PAGE:
        sys.exit(f"error: {args.output} holds figures of a GPU only: give another --output")

    about = describe(args.device)
    print(about)
    end = time.monotonic() + 60 * args.minutes
    measured: dict[str, list[Row]] = {}
    for name in args.parts:
        limit = min(PARTS[name][1], end - time.monotonic())
        if limit <= 0:
            measured[name] = [{"check": f"part {name}", "result": f"not run: {args.minutes:g} minutes were over"}]
        else:
            measured[name] = run_part(name, args.device, args.quick, limit)
        for row in measured[name]:
            values = (
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print(f"{name}: {', '.join(values)}", flush=True)
        write_text(args.output, make_page(measured, about))  # after each part: an interrupted run keeps its rows
    print(f"page: {args.output}")


if __name__ == "__main__":
    main()
