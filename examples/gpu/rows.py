"""Turn checks into rows of a table: a failure is a row, too."""

from collections.abc import Callable
from typing import Any

import torch


Row = dict[str, Any]


class NotRun(Exception):
    """A check cannot run on this machine; the message says why."""


def attempt(check: str, measure: Callable[[], Row]) -> Row:
    """Return the row of a check, whose `result` is "passed", or says why the check failed or did not run."""
    try:
        return {"check": check, "result": "passed", **measure()}
    except NotRun as reason:
        return {"check": check, "result": f"not run: {reason}"}
    except Exception as error:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # out of memory: the next check starts afresh
        lines = str(error).strip().splitlines() or [""]
        return {"check": check, "result": f"failed: {type(error).__name__}: {lines[0][:200]}"}


def verdict(passed: bool, otherwise: str) -> str:
    """Return the `result` of a check."""
    return "passed" if passed else f"failed: {otherwise}"
