"""Checks that the tests of the commands share."""

from pathlib import Path


def assert_one_line_error(result: tuple[int, str, str], *parts: str) -> None:
    status, output, error = result
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 1 and not output and len(lines) == 1, result
    for part in parts:
        assert part in lines[0], lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
