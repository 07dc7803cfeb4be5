"""Gather figures that `examples/benchmark.py` wrote with `--json` into one page: their tables, and when, with which
command and on what machine they were taken.

    python examples/benchmark_page.py runs/benchmark-*.json --output docs/benchmarks.md
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any


INTRODUCTION = """# What it costs

Each table is of one run, in which ours and its peers were measured side by side, in turns: read the ratios, the times
are those of one machine. `make bench` measures everything again and writes this page. What the models are worth is on
[another page](evidence/README.md).
"""


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a table, numbers to the right; a row that lacks a key has a dash there."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    ends = {column: "---" if any(isinstance(row.get(column), str) for row in rows) else "---:" for column in columns}
    lines = [columns, [ends[column] for column in columns]]
    lines += [[_write_out(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write_out(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


def section(path: str) -> str:
    """The page's part of one file of figures."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    about, figures = content.pop("measured"), content
    described = importlib.import_module(f"benchmarks.{about['subject']}").__doc__.split(":", 1)[1].strip()
    machine = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    parts = [
        f"## {about['subject'].capitalize()}",
        described[0].upper() + described[1:],
        f"`{about['command']}`, {about['date']}; {machine}.",
    ]
    for name, rows in figures.items():
        parts += [f"### {name[0].upper()}{name[1:]}", markdown_table(rows)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Gather the figures of benchmarks into one page.")
    parser.add_argument("figures", nargs="+", help="files that examples/benchmark.py wrote with --json")
    parser.add_argument("--output", required=True, help="the page, in Markdown")
    args = parser.parse_args()
    try:
        sections = [section(path) for path in args.figures]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        sys.exit(f"error: no figures of examples/benchmark.py: {error}")
    Path(args.output).write_text("\n\n".join([INTRODUCTION.strip(), *sections]) + "\n", encoding="utf-8")
    print(f"page: {args.output}")


if __name__ == "__main__":
    main()
