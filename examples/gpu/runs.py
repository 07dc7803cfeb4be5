"""Checks of whole training runs, each in processes of its own: precisions, resumed runs, several GPUs."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from .rows import NotRun, Row, attempt, verdict


ROOT = Path(__file__).parents[2]
TINY_TOWER = "{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2"
# Without dropout, processes that draw different random numbers have the same loss.
QUICK = [
    "data.options={train: 16, validation: 6, test: 6, seed: 0}",
    "model.overrides={interaction_dropout: 0.0, projection_dim: 32, generator_num_hidden_layers: 1, "
    f"text_config: {TINY_TOWER}, vocab_size: 600, max_position_embeddings: 77}}, "
    f"vision_config: {TINY_TOWER}, image_size: 32, patch_size: 16, num_frames: 2}}}}",
    "training.batch_size=8",
]
FULL = ["data.options={train: 256, validation: 32, test: 64, seed: 0}", "model.overrides={interaction_dropout: 0.0}"]
COMMON = ["data.num_workers=0", "training.epochs=2", "training.log_every_steps=1", "evaluation.select=last"]
SAME_LOSS = 0.01  # largest relative difference of the first loss between launchers
SAME_WEIGHTS = 1e-3  # largest relative difference between the weights of a resumed and of an uninterrupted run


class Runs:
    """Train models by the demo's recipe in a folder; the first run draws the videos."""

    def __init__(self, folder: str, device: str, quick: bool):
        self.folder = Path(folder)
        self.overrides = [f"data.videos={self.folder / 'videos'}", *(QUICK if quick else FULL), *COMMON]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if device == "cpu":
            self.environment["ACCELERATE_USE_CPU"] = "true"

    def command(self, name: str, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
        script = [str(ROOT / "examples/train.py"), "--recipe", "moving_shapes", "--resume"]
        return [sys.executable, *launcher, *script, "--output", str(self.folder / name), *self.overrides, *overrides]

    def train(self, name: str, *overrides: str, launcher: tuple[str, ...] = ()) -> list[float]:
        """Train, or resume, and return the losses of all steps."""
        command = self.command(name, *overrides, launcher=launcher)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip().splitlines() or ["the training failed"])[-1])
        return self.losses(name)

    def losses(self, name: str) -> list[float]:
        file = self.folder / name / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        return [record["loss"] for record in records if "learning_rate" in record or "lr" in record]

    def precision(self, name: str) -> str:
        """Return the precision in which a run was trained."""
        return json.loads((self.folder / name / "environment.json").read_text(encoding="utf-8"))[-1]["mixed_precision"]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model/model.safetensors")

    def difference(self, first: str, second: str) -> float:
        """Return the relative difference between the weights of two runs."""
        one, other = self.weights(first), self.weights(second)
        squares = [((one[key] - other[key]).double().norm() ** 2, one[key].double().norm() ** 2) for key in one]
        return math.sqrt(sum(float(gap) for gap, _ in squares) / sum(float(size) for _, size in squares))


def precisions(device: str, quick: bool) -> Iterator[Row]:
    """Train a small model from random weights in float32, bfloat16, and float16 with a gradient scaler."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(folder, device, quick)
        for precision in ("no", "bf16", "fp16"):

            def compare(precision: str = precision) -> Row:
                losses = runs.train(precision, f"training.mixed_precision='{precision}'")
                if (effective := runs.precision(precision)) != precision:
                    raise NotRun(f"this device trains in {'float32' if effective == 'no' else effective} instead")
                tail = losses[-4:]
                is_lower = all(map(math.isfinite, losses)) and sum(tail) / len(tail) < losses[0]
                return {
                    "result": verdict(is_lower, "the loss did not fall"),
                    "steps": len(losses),
                    "first loss": losses[0],
                    "last loss": losses[-1],
                }

            yield attempt({"no": "float32", "bf16": "bfloat16", "fp16": "float16 with a scaler"}[precision], compare)


def resumed(device: str, quick: bool) -> Iterator[Row]:
    """Kill a training with SIGKILL, resume it, and compare its final weights with those of a run without a kill.

    GPU kernels may add in any order: two runs without a kill show how far weights differ for this reason alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(folder, device, quick)
        runs.overrides.append("training.checkpoint_every_steps=1")

        def repeat() -> Row:
            runs.train("first")
            runs.train("second")
            return {"relative difference of the weights": f"{runs.difference('first', 'second'):.1e}"}

        def kill_and_resume() -> Row:
            command = runs.command("killed")
            with subprocess.Popen(command, env=runs.environment, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None and len(runs.losses("killed")) < 2:
                    time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
            if process.returncode != -signal.SIGKILL:
                raise NotRun(f"the run ended with status {process.returncode} before the kill")
            runs.train("killed")
            difference = runs.difference("first", "killed")
            return {
                "result": verdict(difference <= SAME_WEIGHTS, "the weights differ"),
                "relative difference of the weights": f"{difference:.1e}",
            }

        yield attempt("two runs without a kill", repeat)
        yield attempt("killed after two steps, resumed", kill_and_resume)


def processes(device: str, quick: bool) -> Iterator[Row]:
    """Train with the same global batch on one GPU, on two with DDP, and on two with FSDP2 (sharded weights)."""
    profiles = {"DDP": "multi_gpu.yaml", "FSDP2": "fsdp2.yaml"}
    if device == "cpu":
        profiles = {"DDP": "cpu_processes.yaml", "FSDP2": ""}
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(folder, device, quick)
        alone: list[float] = []

        def train_alone() -> Row:
            alone.extend(runs.train("one"))
            return {"first loss": alone[0], "last loss": alone[-1]}

        yield attempt("one process", train_alone)
        for name, profile in profiles.items():

            def compare(name: str = name, profile: str = profile) -> Row:
                if device == "cpu" and not profile:
                    raise NotRun("accelerate shards on GPUs only")
                if device != "cpu" and (count := torch.cuda.device_count()) < 2:
                    raise NotRun(f"needs two GPUs, and this machine has {count}")
                file = str(ROOT / "configuration/accelerate" / profile)
                launcher = ("-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2")
                losses = runs.train(name, launcher=launcher)
                is_same = abs(losses[0] / alone[0] - 1) <= SAME_LOSS
                return {
                    "result": verdict(is_same, f"the first loss differs by more than {SAME_LOSS:.0%}"),
                    "first loss": losses[0],
                    "last loss": losses[-1],
                }

            yield attempt(f"two processes, {name}", compare)
