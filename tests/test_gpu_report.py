"""The report of `make gpu`: its parts run on the CPU with tiny shapes, and a part that fails is a row of the page."""

import sys

import gpu_report
import pytest
from gpu import numbers, runs, speed
from gpu.rows import attempt


def results(rows) -> dict[str, str]:
    return {row["check"]: row["result"] for row in rows}


def test_checks_of_numbers_pass_on_the_cpu():
    assert results(numbers.golden("cpu", True)) == {"eager, float32": "passed", "sdpa, float32": "passed"}
    kernels = results(numbers.attention("cpu", True))
    assert kernels["sdpa, flash, bfloat16"] == kernels["eager, float16"] == "passed"
    assert kernels["sdpa, cuDNN, float16"] == "not run: a kernel of GPUs"
    assert next(numbers.compiled("cpu", True))["result"] == "passed"


def test_golden_numbers_that_differ_are_a_failure(monkeypatch):
    monkeypatch.setattr(numbers, "OUTPUT_TOLERANCE", 0.0)
    assert set(results(numbers.golden("cpu", True)).values()) == {"failed: the numbers differ"}


def test_measurements_run_on_the_cpu():
    indexed, *_ = speed.indexing("cpu", True)
    assert indexed["result"] == "passed" and indexed["limited by"] in ("decoding", "the model")
    rows = list(speed.steps("cpu", True))
    assert [row["check"] for row in rows] == ["tiny, CLIP on frames", "tiny, ours", "tiny, chunks of 2"]
    assert all(row["result"] == "passed" and row["seconds"] > 0 and row["time / CLIP"] for row in rows)


def test_a_training_run_is_checked():
    row = next(runs.precisions("cpu", True))
    assert row["result"] == "passed" and row["steps"] == 4 and row["last loss"] < row["first loss"]


@pytest.mark.bench
def test_whole_trainings_are_checked():
    assert results(runs.precisions("cpu", True))["float16 with a scaler"].startswith("not run: this device trains in")
    assert set(results(runs.resumed("cpu", True)).values()) == {"passed"}
    assert results(runs.processes("cpu", True)) == {
        "one process": "passed",
        "two processes, DDP": "passed",
        "two processes, FSDP2": "not run: accelerate shards on GPUs only",
    }


def test_errors_become_rows():
    def fail() -> dict:
        raise RuntimeError("CUDA out of memory\nmore")

    assert attempt("b16", fail) == {"check": "b16", "result": "failed: RuntimeError: CUDA out of memory"}


def test_parts_that_crash_or_take_too_long_become_rows(monkeypatch):
    assert gpu_report.run_part("golden", "cpu", True, 0.01) == [
        {"check": "part golden", "result": "failed: not finished within 0 s"}
    ]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (row,) = gpu_report.run_part("golden", "cpu", True, 60)
    assert row["result"] == "failed: the process ended with status 1: no message"


def test_a_page_is_written_for_some_parts(tmp_path, monkeypatch, capsys):
    page = tmp_path / "gpu.md"
    command = ["gpu_report.py", "--device", "cpu", "--quick", "--output", str(page)]
    monkeypatch.setattr(sys, "argv", [*command, "--parts", "golden"])
    gpu_report.main()
    text = page.read_text()
    assert "| sdpa, float32 | passed |" in text and "a trial of the script" in text
    assert "\n2 passed, 0 failed, 0 not run.\n" in text and gpu_report.NOT_RUN not in text
    monkeypatch.setattr(sys, "argv", [*command, "--minutes", "0"])
    gpu_report.main()
    assert page.read_text().count("not run: 0 minutes were over") == len(gpu_report.PARTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "runs/gpu.md"], "error: torch finds no GPU with CUDA: run this on a machine with one"),
        (["--output", str(gpu_report.PAGE), "--device", "cpu"], "holds figures of a GPU only: give another --output"),
    ],
)
def test_figures_of_a_cpu_are_never_written_as_those_of_a_gpu(options, message, monkeypatch):
    monkeypatch.setattr(gpu_report.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *options])
    before = gpu_report.PAGE.read_bytes()
    with pytest.raises(SystemExit, match=message):
        gpu_report.main()
    assert gpu_report.PAGE.read_bytes() == before


def test_page_says_that_nothing_has_run_until_it_has():
    page = gpu_report.PAGE.read_text(encoding="utf-8")
    if gpu_report.NOT_RUN in page:
        assert page == gpu_report.make_page({})
