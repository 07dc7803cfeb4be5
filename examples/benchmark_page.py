"""Gather the figures of `examples/benchmark.py --json` into one page: tables with date, command and machine.

python examples/benchmark_page.py runs/benchmark-*.json --output docs/benchmarks.md
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from modeling_pig.files import write_text


INTRODUCTION = """# What it costs

Each table comes from one run with interleaved rounds of our code and its peers: compare the ratios; the absolute times
depend on the machine. `make bench` repeats all measurements and writes this page. [Another page](evidence/README.md)
reports the quality of the models.
"""


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Format rows as a Markdown table, with numbers aligned right and a dash for a missing key."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    ends = {column: "---" if any(isinstance(row.get(column), str) for row in rows) else "---:" for column in columns}
    lines = [columns, [ends[column] for column in columns]]
    lines += [[_format_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")


def section(path: str) -> str:
    """Format one file of figures as a section of the page."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    about, figures = content.pop("measured"), content
    description = importlib.import_module(f"benchmarks.{about['subject']}").__doc__.split(":", 1)[1].strip()
    machine = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    parts = [
        f"## {about['subject'].capitalize()}",
        description[0].upper() + description[1:],
        f"`{about['command']}`, {about['date']}; {machine}.",
    ]
    for name, rows in figures.items():
        parts += [f"### {name[0].upper()}{name[1:]}", markdown_table(rows)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="Gather the figures of benchmarks into one page.")
    parser.add_argument("figures", nargs="+", help="files written by examples/benchmark.py --json")
    parser.add_argument("--output", required=True, help="page to write, in Markdown")
    args = parser.parse_args()
    try:
        sections = [section(path) for path in args.figures]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        sys.exit(f"error: no figures of examples/benchmark.py: {error}")
    write_text(args.output, "\n\n".join([INTRODUCTION.strip(), *sections]) + "\n")
    print(f"page: {args.output}")


if __name__ == "__main__":
    main()
