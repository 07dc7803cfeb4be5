"""`pig push model` to a local Hub: one complete commit, without the token and without folders of the machine."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.publishing import push_model, repository
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import Recipe

from .hub_server import TOKEN
from .test_model_card import MTEB
from .test_remote_code import WITHOUT_PACKAGE
from .test_training import DEMO, ROOT, tiny_run


pytest_plugins = ["tests.hub_server"]

REPO = "org/pig-tiny"
IDENTICAL = "bit-identical inputs and outputs"
AGAIN = "Run the same command again"


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(Recipe.from_yaml(DEMO, tiny_run(videos)), folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """Return a copy of the run, which the test may change."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def no_auto_class(monkeypatch):
    """Undo the registration by an export, after which the classes write their code whenever they are saved."""
    for pig_class in (PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor):
        monkeypatch.setattr(pig_class, "_auto_class", None)


@pytest.fixture
def push(run_pig):
    return partial(run_pig, "push", "model")


def commits(hub, ref: str = "main") -> list:
    return list(hub.repository(REPO).resolve(ref).history())


def pushed(hub, ref: str = "main") -> dict[str, bytes]:
    return {path: file.content for path, file in commits(hub, ref)[0].files.items()}


# --- files


def test_a_run_is_pushed_in_one_private_commit_and_reads_back_bit_identical(hub, run, push):
    printed = push(run, REPO, "--license", "apache-2.0")
    assert "one commit" in printed and f"{REPO} (private)" in printed
    assert f"{IDENTICAL}: input_ids, attention_mask, pixel_values_videos" in printed and "text_embeds" in printed
    files = pushed(hub)
    assert hub.repository(REPO).private and len(commits(hub)) == 2  # the first commit creates the repository
    model_files = {file.name for file in (run / "model").iterdir()}
    records = {"recipe.yaml", "environment.json", "metrics.jsonl", "test.json", "curves.png", "ranks.png", "README.md"}
    assert files.keys() == model_files | records | {".eval_results/pig_moving_shapes_test.yaml", ".gitattributes"}
    for name in model_files:
        assert files[name] == (run / "model" / name).read_bytes()
    assert (
        json.loads(files["test.json"])["text_to_video"] == json.loads((run / "test.json").read_text())["text_to_video"]
    )
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0" and "![Learning curves](curves.png)" in card.text
    assert "![Recall at k, over k](ranks.png)" in card.text
    assert files["ranks.png"] == (run / "ranks.png").read_bytes()
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/pig_moving_shapes_test.yaml"]))
    assert entries[0].task_id == "text_to_video_recall_at_1"

    again = push(run, REPO, "--license", "apache-2.0")
    assert "no commit" in again and IDENTICAL in again and len(commits(hub)) == 2


def test_neither_folders_nor_the_token_are_published(hub, run, push, tmp_path, trained, videos):
    environment = json.loads((run / "environment.json").read_text())
    environment[0]["command"] = ["train.py", f"data.videos={tmp_path}", TOKEN]
    (run / "environment.json").write_text(json.dumps(environment))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] |= {"annotations": str(tmp_path / "My Folder"), "frame_cache": str(tmp_path)}
    recipe["model"]["checkpoint"] = str(tmp_path / "before")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    test = json.loads((run / "test.json").read_text())
    test |= {"failures": [f"{tmp_path}/My Folder/a.mp4: cannot be decoded"], "model": str(run / "model")}
    (run / "test.json").write_text(json.dumps(test))
    config = json.loads((run / "model/config.json").read_text())
    (run / "model/config.json").write_text(json.dumps(config | {"_name_or_path": str(tmp_path)}))

    assert IDENTICAL in push(run, REPO)
    for path, content in pushed(hub).items():
        for secret in (TOKEN, str(tmp_path), str(trained.parent), str(videos.parent), str(ROOT)):
            assert secret.encode() not in content, (path, secret)
    record = json.loads(pushed(hub)["test.json"])
    assert record["failures"] == ["a.mp4: cannot be decoded"] and record["model"] == "model"


def test_a_dry_run_prints_all_files_and_sends_no_request(hub, run, push, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    printed = push(run, REPO, "--dry-run")
    assert not hub.requests and not hub.repositories
    listing, card = printed.split("\n\n", 1)
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listing.splitlines()}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(run, REPO)
    files = pushed(hub)
    del files[".gitattributes"]
    assert listed == {path: len(content) for path, content in files.items()}
    assert card.strip() == files["README.md"].decode().strip()


def test_the_code_of_the_card_runs(hub, run, push, tmp_path, shape_videos, monkeypatch, capsys):
    shutil.copy(shape_videos[0], tmp_path / "video.mp4")
    monkeypatch.chdir(tmp_path)

    def run_python(*arguments) -> str:
        home = tmp_path / "elsewhere"
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=hub.environment(home, TOKEN),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert not any(TOKEN.encode() in path.read_bytes() for path in home.rglob("*") if path.is_file())
        return done.stdout.strip().splitlines()[-1]

    assert IDENTICAL in push(run, REPO, "--remote-code")
    parts = pushed(hub)["README.md"].decode().split("```python\n")[1:]
    six_lines, with_code = (part.split("```")[0] for part in parts)
    exec(six_lines, {})
    assert capsys.readouterr().out.startswith("tensor([[0.")
    report = "print(type(processor).__name__, type(model).__module__)"
    assert run_python("-c", WITHOUT_PACKAGE + with_code + report).startswith("PigProcessor transformers_modules.")


def test_code_is_pushed_only_with_the_option_remote_code(hub, run, push):
    push(run, REPO, "--remote-code")
    files = pushed(hub)
    for name in ("modeling_pig.py", "configuration_pig.py", "processing_pig.py", "modules.json"):
        assert name in files
    assert files["modeling_pig.py"] == (ROOT / "modeling_pig/modeling_pig.py").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "transformers" and "trust_remote_code=True" in card.text
    assert "no commit" in push(run, REPO, "--remote-code")
    assert "one commit" in push(run, REPO)  # without --remote-code, the code is deleted
    assert not any(name.endswith(".py") or name == "modules.json" for name in pushed(hub))


def test_code_that_differs_from_the_installed_code_is_refused_or_replaced(hub, run, push):
    (run / "model/modeling_pig.py").write_text("import os\n")
    (run / "model/more_pig.py").write_text("import os\n")
    shutil.copy(ROOT / "modeling_pig/loss_pig.py", run / "model")
    message = push(run, REPO)
    assert (
        "differs from the code of the installed package: modeling_pig.py, more_pig.py. Give --remote-code" in message
    )
    assert not hub.requests
    printed = push(run, REPO, "--remote-code")
    assert "replaced by the installed code: modeling_pig.py" in printed and "left out: more_pig.py" in printed
    assert pushed(hub)["modeling_pig.py"] == (ROOT / "modeling_pig/modeling_pig.py").read_bytes()
    assert "more_pig.py" not in pushed(hub)


def test_pickles_are_refused_by_name(hub, run, push):
    for name in ("training_args.bin", "deep/optimizer.pt", "notes.txt", "vocab.json"):
        file = run / "model" / name
        file.parent.mkdir(exist_ok=True)
        before = file.read_bytes() if file.exists() else None
        if name == "vocab.json":
            torch.save({}, file)  # a zip with a pickle in it
        else:
            file.write_bytes(pickle.dumps({"a": 1}))
        message = push(run, REPO)
        assert f"{file} is a pickle, which can run code when it is loaded and is never pushed" in message
        file.unlink() if before is None else file.write_bytes(before)
    assert not hub.requests


def test_unknown_files_and_links_out_of_the_run_are_not_pushed(hub, run, push, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (run / "model/.env.json").write_text("{}")
    (run / "model/README.md").write_text("another card")
    (run / "model/notes.txt").symlink_to(tmp_path / "secret")
    for code in ([], ["--remote-code"]):
        printed = push(run, REPO, "--dry-run", *code)
        assert "left out: .env.json\nleft out: notes.txt\n" in printed
        assert not re.search(r"^ *[\d,]+ +(\.env\.json|notes\.txt)$", printed, re.MULTILINE)
        assert re.search(r"^ *[\d,]+ +tokenizer\.json$", printed, re.MULTILINE)
    for file in (run / "model/vocab.json", run / "curves.png"):
        file.unlink(missing_ok=True)
        file.symlink_to(tmp_path / "secret")
        assert f"{file} is a link out of {run}" in push(run, REPO)
        file.unlink()
    assert not hub.requests

    shutil.move(run / "model", tmp_path / "elsewhere")  # the model on another disk, with a link within its folder
    (run / "model").symlink_to(tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere/config.json", tmp_path / "elsewhere/first.json")
    (tmp_path / "elsewhere/config.json").symlink_to("first.json")
    assert IDENTICAL in push(run, REPO)
    assert pushed(hub)["config.json"] == (tmp_path / "elsewhere/first.json").read_bytes()
    assert b"another card" not in pushed(hub)["README.md"] and ".env.json" not in pushed(hub)


def test_a_run_without_evaluation_deletes_the_records_of_an_earlier_push(hub, run, push):
    push(run, REPO)
    HfApi().upload_file(
        path_or_fileobj=b"- mine\n", path_in_repo=".eval_results/other.yaml", repo_id=REPO, commit_message="others"
    )
    (run / "test.json").unlink()
    push(run, REPO)
    files = pushed(hub)
    assert b"**not evaluated**" in files["README.md"] and "test.json" not in files
    assert (run / "ranks.png").is_file() and "ranks.png" not in files and b"ranks.png" not in files["README.md"]
    assert ".eval_results/pig_moving_shapes_test.yaml" not in files
    assert files[".eval_results/other.yaml"] == b"- mine\n" and len(commits(hub)) == 4


def test_the_figure_of_the_ranks_is_drawn_from_test_json(hub, run, push):
    test = json.loads((run / "test.json").read_text())
    test["recall_curve"]["text_to_video"][0] = 50.0  # evaluated again: the figure in the run folder is older
    (run / "test.json").write_text(json.dumps(test))
    push(run, REPO)
    assert pushed(hub)["ranks.png"].startswith(b"\x89PNG")
    assert pushed(hub)["ranks.png"] != (run / "ranks.png").read_bytes()
    del test["recall_curve"]  # as older versions write it
    (run / "test.json").write_text(json.dumps(test))
    push(run, REPO)
    assert "ranks.png" not in pushed(hub) and "test.json" in pushed(hub)


def test_latency_is_measured_once_and_pushed(hub, run, push, monkeypatch):
    monkeypatch.setattr(push_model, "NUM_RUNS", 3)
    push(run, REPO, "--measure")
    figures = json.loads((run / "efficiency.json").read_text())
    assert figures["text_ms"] > 0 and figures["video_ms"] > 0 and figures["num_frames"] == 2 and figures["device"]
    card = pushed(hub)["README.md"].decode()
    assert f"| {figures['video_ms']:,.1f} |" in card and f"| {figures['text_ms']:,.1f} |" in card
    assert json.loads(pushed(hub)["efficiency.json"]) == figures
    assert "no commit" in push(run, REPO)


# --- repositories and branches


def test_a_push_keeps_the_visibility_of_a_repository(hub, run, push):
    assert f"{REPO} (public)" in push(run, REPO, "--public")
    assert not hub.repository(REPO).private
    (run / "curves.png").unlink()
    assert f"{REPO} (public)" in push(run, REPO)


def test_a_pull_request_is_opened_once_and_main_is_unchanged(hub, run, push):
    HfApi().create_repo(REPO)
    assert "one commit" in push(run, REPO, "--create-pr", "--message", "A better model")
    assert "pull request 1 of org/pig-tiny (public) already proposes all changes" in push(run, REPO, "--create-pr")
    assert len(commits(hub)) == 1 and len(hub.repository(REPO).discussions) == 1
    assert commits(hub, "refs/pr/1")[0].title == "A better model" and "README.md" in pushed(hub, "refs/pr/1")
    push(run, REPO)
    assert "no commit" in push(run, REPO, "--create-pr") and len(hub.repository(REPO).discussions) == 1
    (run / "curves.png").unlink()
    assert "one commit" in push(run, REPO, "--create-pr") and len(hub.repository(REPO).discussions) == 2


def test_a_branch_is_created_and_main_is_unchanged(hub, run, push):
    HfApi().create_repo(REPO)
    assert "one commit" in push(run, REPO, "--revision", "epoch-2")
    assert "no commit" in push(run, REPO, "--revision", "epoch-2")
    assert len(commits(hub)) == 1 and len(commits(hub, "epoch-2")) == 2 and "README.md" in pushed(hub, "epoch-2")


# --- errors


def test_a_cut_connection_leaves_no_partial_commit(hub, run, push):
    hub.cut(after_bytes=100_000, method="PUT", next=20)
    message = push(run, REPO)
    assert message.startswith("error: The connection failed") and AGAIN in message
    assert len(commits(hub)) == 1 and pushed(hub).keys() == {".gitattributes"}
    hub.heal()

    hub.cut(path_contains="/commit/main", method="POST")  # after the uploads
    assert AGAIN in push(run, REPO) and len(commits(hub)) == 1
    uploads = len(hub.requested("PUT"))
    assert "one commit" in push(run, REPO) and len(commits(hub)) == 2
    assert len(hub.requested("PUT")) == uploads  # no file was sent twice


def test_short_faults_are_retried(hub, run, push):
    hub.fail(status=503, method="PUT")
    hub.cut(after_bytes=1000, method="PUT")
    assert "one commit" in push(run, REPO)


def test_a_commit_during_the_push_is_not_overwritten(hub, run, push, monkeypatch):
    push(run, REPO)
    find_changes = repository._find_changes

    def changes_and_a_commit(*arguments):
        operations = find_changes(*arguments)
        HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="other.txt", repo_id=REPO, commit_message="others")
        return operations

    monkeypatch.setattr(repository, "_find_changes", changes_and_a_commit)
    (run / "curves.png").unlink()
    assert "Someone else committed to org/pig-tiny during the push (412): run the same command again." in push(
        run, REPO
    )
    assert len(commits(hub)) == 3 and {"curves.png", "other.txt"} <= pushed(hub).keys()


@pytest.mark.parametrize(
    ("arguments", "fault", "message"),
    [
        ([], {"status": 503, "path_contains": "/commit/"}, rf"busy or out of order \(503: .*{AGAIN}"),
        ([], {"status": 429, "path_contains": "/api/models", "next": 20}, rf"busy or out of order \(429: .*{AGAIN}"),
        ([], {"status": 412, "path_contains": "/commit/"}, "Someone else committed to org/pig-tiny during the push"),
        ([], {"status": 409, "path_contains": "repos/create"}, "The name org/pig-tiny is taken"),
        (
            [],
            {"status": 400, "path_contains": "/preupload/", "x_error_message": f"You sent {TOKEN}"},
            r"The Hub refused the push .400.: .*You sent \[token\]",
        ),
        (["--create-pr"], {}, "There is no model repository org/pig-tiny that this token may see"),
        (["--create-pr", "--revision", "x"], {}, "leave out --revision"),
    ],
)
def test_a_failed_push_is_one_line_and_commits_nothing(hub, run, push, arguments, fault, message):
    if fault:
        hub.fail(**fault)
    assert re.search(message, push(run, REPO, *arguments))
    assert ("model", REPO) not in hub.repositories or len(commits(hub)) == 1


def test_tokens_without_write_access_are_refused(hub, run, push, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.add_user("eve", "hf_reads", rights="read", organizations=["org"]))
    assert "The token may not write to org/pig-tiny (403)" in push(run, REPO)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("bob", "hf_bob"))
    assert "The token may not write to org/pig-tiny (403)" in push(run, REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = push(run, REPO)
    assert "The Hub does not know the token (401)" in message and "hf_wrong" not in message
    monkeypatch.delenv("HF_TOKEN")
    assert push(run, REPO) == "error: There is no token: log in with `hf auth login`, or set HF_TOKEN."
    assert not hub.repositories


def test_offline_mode_is_an_error(hub, run, push, tmp_path):
    with hub.connected(tmp_path / "home", TOKEN, offline=True):
        assert "HF_HUB_OFFLINE is set" in push(run, REPO)


def test_invalid_run_folders_are_refused(hub, run, push, tmp_path):
    assert "no_such_run" in push(tmp_path / "no_such_run", REPO)
    assert "organisation/name; got 'name'" in push(run, "name")
    weights = run / "model/model.safetensors"
    shutil.move(weights, tmp_path / "weights")
    assert "cannot be loaded" in push(run, REPO)
    weights.write_bytes(pickle.dumps({}))
    assert "model.safetensors is not a safetensors file" in push(run, REPO)
    shutil.move(tmp_path / "weights", weights)
    (run / "recipe.yaml").unlink()
    assert "is not a run folder: it has no recipe.yaml" in push(run, REPO)
    assert not hub.requests


def test_an_evaluation_of_another_model_is_refused(hub, run, push):
    weights = load_file(run / "model/model.safetensors")
    save_file(
        {name: weight + 1 for name, weight in weights.items()}, run / "model/model.safetensors", {"format": "pt"}
    )
    assert "test.json is the evaluation of another model" in push(run, REPO) and not hub.requests
    (run / "test.json").unlink()
    (run / "mteb.json").write_text(json.dumps(MTEB))
    assert "mteb.json is the evaluation of another model" in push(run, REPO) and not hub.requests


def test_results_of_mteb_are_pushed(hub, run, push):
    mteb = MTEB | {"model": str(run / "model"), "model_fingerprint": model_fingerprint(str(run / "model"))}
    (run / "mteb.json").write_text(json.dumps(mteb))
    assert IDENTICAL in push(run, REPO)
    files = pushed(hub)
    assert json.loads(files["mteb.json"]) == mteb | {"model": "model"} and b"ShapesT2V" in files["README.md"]


def test_a_download_that_differs_is_an_error(hub, run, push, make_config, processor, tmp_path):
    push(run, REPO)
    sha = commits(hub)[0].sha
    PigForRetrieval(make_config()).save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"does not compute the outputs of .*other: .*text_embeds.* differ"):
        push_model.compare_download({}, REPO, sha, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="does not hold the files that were pushed: missing.txt, recipe.yaml"):
        push_model.compare_download({"missing.txt": b"", "recipe.yaml": b""}, REPO, sha, str(run / "model"))
