"""Kill training at random moments, resume it, and compare the final weights with those of an uninterrupted run.

python -m tests.kill_and_resume --kills 50 --processes 2 --folder FOLDER

The signal is SIGKILL, sent to all processes of the run at once: at a random moment after a random number of steps, or
while a checkpoint is written.
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from .warm_python import Program, warm_python


ROOT = Path(__file__).parent.parent


def training_command(recipe: Path, output: Path, overrides: list[str]) -> list[str]:
    script = [str(ROOT / "examples/train.py"), "--recipe", str(recipe), "--output", str(output), "--resume"]
    return [*script, *overrides]


def start(command: list[str], log: Path, num_processes: int = 1) -> list[Program]:
    """Start a training in `num_processes` processes."""
    return warm_python().start_processes(command, log, num_processes)


def num_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_once(command: list[str], output: Path, log: Path, rng: random.Random, num_processes: int) -> str | None:
    """Run a training, kill it, and return the moment of the kill; `None` if the run ended before."""
    processes = start(command, log, num_processes)
    metrics, checkpoints = output / "metrics.jsonl", output / "checkpoints"
    in_checkpoint = rng.random() < 0.5
    steps_before_kill = rng.randint(1, 4)
    first_lines: int | None = None
    while all([process.poll() is None for process in processes]):
        if in_checkpoint:
            is_time = any(checkpoints.glob(".step_*.part"))
        else:
            # A resumed run first truncates the file: count the lines that this run adds.
            lines = num_lines(metrics)
            first_lines = lines if first_lines is None or lines < first_lines else first_lines
            is_time = lines >= first_lines + steps_before_kill
        if is_time:
            time.sleep(rng.random() * (0.02 if in_checkpoint else 0.2))
            kill(processes)
            return "in a checkpoint" if in_checkpoint else "between steps"
        time.sleep(0.001)
    wait_for_success(processes, log)
    return None


def kill(processes: list[Program]) -> None:
    """Kill all processes of a run at once, and wait for their end."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def wait_for_success(processes: list[Program], log: Path) -> None:
    if any([process.wait() != 0 for process in processes]):
        raise RuntimeError(f"the training failed:\n{log.read_text()[-3000:]}")


def train_with_kills(command: list[str], output: Path, num_kills: int, seed: int, num_processes: int) -> list[str]:
    """Kill and resume a training at most `num_kills` times, then let it end. Return the moments of the kills."""
    rng = random.Random(seed)
    log = output.with_suffix(".log")
    kills = []
    while len(kills) < num_kills:
        moment = kill_once(command, output, log, rng, num_processes)
        if moment is None:
            return kills
        kills.append(moment)
    run_to_the_end(command, output, num_processes)
    return kills


def run_to_the_end(command: list[str], output: Path, num_processes: int) -> None:
    log = output.with_suffix(".log")
    wait_for_success(start(command, log, num_processes), log)


def differing_weights(one: Path, other: Path) -> list[str]:
    """List tensors of the best model and the last checkpoint that differ in any bit between two run folders."""
    different = []
    for pattern in ("model/model.safetensors", "checkpoints/*/model.safetensors"):
        first, second = (load_file(sorted(run.glob(pattern))[-1]) for run in (one, other))
        assert first.keys() == second.keys()
        different += [
            name for name, value in first.items() if value.numpy().tobytes() != second[name].numpy().tobytes()
        ]
    return different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="for the videos and the runs")
    args = parser.parse_args()
    from .test_training import tiny_run

    args.folder.mkdir(parents=True, exist_ok=True)
    steps = args.kills * 4  # so many that the run does not end before the last kill
    overrides = tiny_run(
        args.folder / "videos",
        f"training.epochs={steps // 2}",
        "evaluation.every_epochs=20",
        "evaluation.test=false",
        "training.checkpoint_every_steps=3",
        "training.log_every_steps=1",
        "data.num_workers=2",
    )
    recipe = ROOT / "configuration/recipes/moving_shapes.yaml"
    whole, killed = args.folder / "whole", args.folder / "killed"
    run_to_the_end(training_command(recipe, whole, overrides), whole, args.processes)
    command = training_command(recipe, killed, overrides)
    kills = train_with_kills(command, killed, args.kills, args.seed, args.processes)
    different = differing_weights(whole, killed)
    moments = ", ".join(f"{kills.count(moment)} {moment}" for moment in sorted(set(kills)))
    print(f"{len(kills)} kills ({moments}) with {args.processes} processes: {len(different)} tensors differ")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
