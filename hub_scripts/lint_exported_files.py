"""Hold the files that travel to the Hub with a model to the rules that transformers has for its own model files.

    python hub_scripts/lint_exported_files.py

Runs transformers-mlinter over `modeling_pig/*_pig.py`; the rules that we leave aside, and why, stand in EXCEPTIONS.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


EXCEPTIONS = {
    "TRF041": "a branch on a configuration names the checkpoints that take it: none of ours is published yet",
    "TRF057": "@auto_docstring fills in from transformers' own tables; our docstrings give the shapes by hand",
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
        print(f"EXCEPTIONS no longer needed: {', '.join(sorted(stale))}")
    sys.exit(1 if broken or stale else 0)


if __name__ == "__main__":
    main()
