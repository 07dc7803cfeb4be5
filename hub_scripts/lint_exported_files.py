"""Check the exported files with the rules of transformers for its own model files.

    python hub_scripts/lint_exported_files.py

Runs transformers-mlinter over `modeling_pig/*_pig.py`. `EXCEPTIONS` lists the rules that do not apply, with reasons.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


EXCEPTIONS = {
    "TRF019": "transformers 5.10, the lowest version in setup.py, reads the defaults of a processor from there only",
    "TRF041": "branches on a configuration must name checkpoints that take them, but no checkpoint is published yet",
    "TRF057": "@auto_docstring inserts text from transformers' tables, but our docstrings give the shapes themselves",
}


def main() -> None:
    package = Path(__file__).parent.parent / "modeling_pig"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "mlinter", "--no-progress", "--no-cache", "--output-json", str(report)]
        done = subprocess.run([*command, *sorted(map(str, package.glob("*_pig.py")))], capture_output=True, text=True)
        if not report.exists():
            sys.exit(f"error: transformers-mlinter wrote no report: {done.stderr.strip()}")
        findings = json.loads(report.read_text(encoding="utf-8"))["findings"]
    broken = [finding for finding in findings if finding["rule"] not in EXCEPTIONS]
    for finding in broken:
        print(f"{finding['path']}:{finding['line']}: {finding['message']}")
    stale = EXCEPTIONS.keys() - {finding["rule"] for finding in findings}
    if stale:
        print(f"remove from EXCEPTIONS, no file breaks them: {', '.join(sorted(stale))}")
    sys.exit(1 if broken or stale else 0)


if __name__ == "__main__":
    main()
