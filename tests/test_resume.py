"""Test that runs which are killed, interrupted or find the disk full resume, with bit-identical weights."""

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from modeling_pig.training.checkpoint import Checkpoints, Progress
from modeling_pig.training.loop import EXIT_INTERRUPTED, TrainingInterrupted, train
from modeling_pig.training.recipe import Recipe

from .kill_and_resume import differing_weights, run_to_the_end, start, train_with_kills, training_command
from .test_training import DEMO, tiny_run, validations


def short_run(videos: Path, *more: str) -> list[str]:
    settings = ["training.checkpoint_every_steps=3", "training.log_every_steps=1", "evaluation.test=false"]
    return tiny_run(videos, *settings, "evaluation.every_epochs=4", "training.epochs=8", *more)


def test_killed_run_resumes_bit_identically(videos, tmp_path):
    overrides = short_run(videos, "data.num_workers=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_to_the_end(training_command(DEMO, whole, overrides), whole, num_processes=2)
    command = training_command(DEMO, killed, overrides)
    assert len(train_with_kills(command, killed, num_kills=1, seed=2, num_processes=2)) == 1
    assert differing_weights(whole, killed) == []
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert validations(killed) == validations(whole)
    assert json.loads((whole / "environment.json").read_text())[0]["num_processes"] == 2
    assert len(list((killed / "checkpoints").iterdir())) == 2  # the limit, without partial checkpoints


def test_sigterm_saves_a_checkpoint_and_sets_the_exit_status(videos, tmp_path):
    run = tmp_path / "run"
    overrides = short_run(videos, "training.checkpoint_every_steps=1000", "training.epochs=200")
    [process] = start(training_command(DEMO, run, overrides), tmp_path / "log")
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text().strip():
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == EXIT_INTERRUPTED
    checkpoint = max((run / "checkpoints").glob("step_*"))  # the epoch's checkpoint may exist too
    step = json.loads((checkpoint / "progress.json").read_text())["step"]
    assert f"Stopped by a signal at step {step}" in (tmp_path / "log").read_text()


def test_interrupted_run_in_python_resumes_bit_identically(videos, tmp_path, monkeypatch):
    recipe = Recipe.from_yaml(DEMO, short_run(videos))
    handler = signal.getsignal(signal.SIGINT)
    save = Checkpoints.save

    def save_and_press_ctrl_c(self, progress: Progress) -> bool:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return save(self, progress)

    monkeypatch.setattr(Checkpoints, "save", save_and_press_ctrl_c)
    with pytest.raises(TrainingInterrupted, match=r"Stopped by a signal at step 4 of 16.*--resume"):
        train(recipe, tmp_path / "run")
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(ValueError, match=r"holds a run that is not finished: resume it \(--resume\)"):
        train(recipe, tmp_path / "run")
    other = Recipe.from_yaml(DEMO, short_run(videos, "training.epochs=9", "data.num_workers=1"))
    with pytest.raises(ValueError, match="a run of another recipe: training.epochs is 9 and was 8[.]"):
        train(other, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "run", resume=True)
    train(recipe, tmp_path / "whole")
    assert differing_weights(tmp_path / "whole", tmp_path / "run") == []
    starts = json.loads((tmp_path / "run/environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 4]
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert train(recipe, tmp_path / "run", resume=True).to_dict() in [
        r["validation"] for r in validations(tmp_path / "run")
    ]
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_full_disk_loses_only_the_checkpoint_that_does_not_fit(videos, tmp_path, monkeypatch, caplog):
    save = Checkpoints.save

    def save_with_little_room(self, progress: Progress) -> bool:
        if progress.step != 6:
            return save(self, progress)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a real limit, at which writing fails
        try:
            done = save(self, progress)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not done
        assert [folder.name for folder in self.folder.iterdir()] == ["step_00000003", "step_00000004_evaluated"]
        return done

    monkeypatch.setattr(Checkpoints, "save", save_with_little_room)
    train(Recipe.from_yaml(DEMO, short_run(videos, "training.epochs=4")), tmp_path / "run")
    assert "The checkpoint of step 6 could not be written" in caplog.text
    assert "step_00000004_evaluated" in caplog.text
    assert sorted(folder.name for folder in (tmp_path / "run/checkpoints").iterdir())[-1] == "step_00000008_evaluated"


@pytest.fixture(scope="module")
def short(videos, tmp_path_factory) -> tuple[Recipe, Path]:
    """Recipe and folder of a run of two epochs, without the mark that it is finished."""
    recipe, run = Recipe.from_yaml(DEMO, short_run(videos, "training.epochs=2")), tmp_path_factory.mktemp("short")
    train(recipe, run / "run")
    (run / "run/.finished").unlink()
    return recipe, run / "run"


def test_resuming_with_another_number_of_processes_is_refused(short, tmp_path):
    recipe, run = short
    shutil.copytree(run, tmp_path / "run")
    progress = sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"num_processes": 2}))
    with pytest.raises(ValueError, match="was written by 2 processes, and this run has 1"):
        train(recipe, tmp_path / "run", resume=True)


def test_interrupted_replacement_of_the_best_model_is_undone(short, tmp_path):
    recipe, run = short
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/model").rename(tmp_path / "run/.model.old")
    train(recipe, tmp_path / "run", resume=True)
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_damaged_checkpoint_raises_an_error_with_advice(short, tmp_path):
    recipe, run = short
    shutil.copytree(run, tmp_path / "run")
    newest = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    message = f"{newest.name} is damaged: remove it, and --resume uses the previous checkpoint"
    for damaged in ("model.safetensors", "optimizer.bin", "progress.json"):
        content = (newest / damaged).read_bytes()
        (newest / damaged).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=message):
            train(recipe, tmp_path / "run", resume=True)
        (newest / damaged).write_bytes(content)


def test_run_folder_of_another_process_is_refused(videos, tmp_path):
    run = tmp_path / "run"
    overrides = short_run(videos, "training.epochs=200")
    [process] = start(training_command(DEMO, run, overrides), tmp_path / "log")
    try:
        while not (run / "recipe.yaml").exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        with pytest.raises(ValueError, match="is being trained by another process"):
            train(Recipe.from_yaml(DEMO, overrides), run, resume=True)
    finally:
        process.kill()
