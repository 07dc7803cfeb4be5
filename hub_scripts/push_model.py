"""Publish the model of a run folder, with its records, its figures and a model card, as a repository on the Hub.

python hub_scripts/push_model.py runs/demo org/name --license apache-2.0 --dry-run
python hub_scripts/push_model.py runs/demo org/name --license apache-2.0

The repository is private unless --public is given. All changes are one commit; a second push of the same run makes
none. A push that was interrupted is run again: what has arrived is not sent twice. Then the repository is downloaded
into an empty cache, and what the model computes must be what it computes here, to the bit. The token is the client's
own (`hf auth login`, or HF_TOKEN). Folders of this machine are not published.
"""

import argparse
import json
import os
import pickle
import re
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from export_remote_code import SENTENCE_TRANSFORMERS_FILES, export_remote_code
from hub_repository import (
    Content,
    add_push_arguments,
    check_push_arguments,
    one_line_errors,
    print_files,
    push,
    sha256,
)
from huggingface_hub import snapshot_download
from huggingface_hub.utils import validate_repo_id
from model_card import FIGURES, make_eval_results, make_model_card, read_run
from safetensors import SafetensorError, safe_open

import modeling_pig
from modeling_pig import PigForRetrieval
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.training.run_folder import processor_name
from modeling_pig.visualization.ranks import draw_ranks


INSTALLED = Path(modeling_pig.__file__).parent
# What `save_pretrained` writes for a model, its processor and its tokenizer. Other files of a model folder stay here.
MODEL_FILES = ["config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"]
MODEL_FILES += ["model.safetensors.index.json", "processor_config.json", "preprocessor_config.json"]
MODEL_FILES += ["video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
MODEL_FILES += ["merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.json"]
MODEL_FILES += ["chat_template.jinja", *SENTENCE_TRANSFORMERS_FILES]
PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
# What a push puts into a repository. Files of this kind that a push lacks are those of an earlier one: they go.
OURS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "*_pig.py", "recipe.yaml"]
OURS += ["environment.json", "metrics.jsonl", "test.json", "efficiency.json", ".eval_results/pig_*.yaml"]
OURS += [*FIGURES, *SENTENCE_TRANSFORMERS_FILES]
SENTENCES = ["a red circle moves left", "two people talk on a stage, then a dog runs across it"]
NUM_RUNS = 20  # of which a latency is the median


# --- what is pushed


def collect(
    run: str | os.PathLike,
    repo_id: str,
    work: str | os.PathLike,
    *,
    remote_code: bool = False,
    license: str | None = None,
    dataset: str | None = None,
) -> tuple[dict[str, Content], list[str]]:
    """The files of a repository for the model of a run.

    Args:
        run (`str` or `os.PathLike`): the run folder.
        repo_id (`str`): the repository's name.
        work (`str` or `os.PathLike`): an empty folder, for the model with its code and the picture of the ranks.
        remote_code (`bool`): put the model's code beside it.
        license (`str`, *optional*): licence of the weights, by its name on the Hub.
        dataset (`str`, *optional*): the benchmark's name on the Hub.

    Returns:
        the content of each file (`bytes`, or the `Path` of a file) by its path in the repository, in order, and notes
        on what was left out or rewritten.

    Raises:
        ValueError: no model or no recipe in `run`; a pickle; a file that is a link out of `run`; code that is not the
            package's; an evaluation of another model.
    """
    run, work = Path(run), Path(work)
    source = run / "model"
    records = read_run(run)
    _refuse_what_is_not_safetensors(source)
    _refuse_links_out(run, source)
    model, _ = load_pretrained(PigForRetrieval, str(source))
    fingerprint = model_fingerprint(str(source))
    if records["test"] and records["test"].get("model_fingerprint") != fingerprint:
        raise ValueError(
            f"{run / 'test.json'} is the evaluation of another model (fingerprint "
            f"{records['test'].get('model_fingerprint')}, the model's is {fingerprint}): run examples/evaluate.py "
            f"again with --output {run / 'test.json'}, or remove the file."
        )
    if records["efficiency"] and records["efficiency"]["model_fingerprint"] != fingerprint:
        raise ValueError(f"{run / 'efficiency.json'} was measured with another model: --measure again, or remove it.")

    notes = []
    differing = sorted(file.name for file in source.glob("*.py") if not _is_installed_code(file))
    if differing and not remote_code:
        raise ValueError(
            f"The code in {source} differs from the installed package's: {', '.join(differing)}. Give --remote-code "
            "to push the installed code in its place, or install the version that the model was exported with."
        )
    if remote_code:
        export_remote_code(str(source), str(work / "exported"))
        notes += [f"rewritten: {name}" for name in differing if (INSTALLED / name).is_file()]
        source = work / "exported"
    files: dict[str, Content] = {}
    for file in sorted(source.iterdir()):
        if file.is_file() and _is_of_model(file):
            files[file.name] = _without_origin(file) if file.name.endswith("config.json") else file
        elif file.suffix == ".py" and _is_installed_code(file):
            files[file.name] = file
        elif file.name != "README.md":
            notes.append(f"left out: {file.name}")
    if (run / "curves.png").is_file():
        files["curves.png"] = run / "curves.png"
    if records["test"] and "recall_curve" in records["test"]:
        # Not the picture that training left, which is of another evaluation where there has been one since.
        draw_ranks(records["test"], work / "ranks.png")
        files["ranks.png"] = work / "ranks.png"
    files["recipe.yaml"] = yaml.safe_dump(records["recipe"], sort_keys=False, allow_unicode=True).encode()
    if records["metrics"]:
        files["metrics.jsonl"] = "".join(json.dumps(record) + "\n" for record in records["metrics"]).encode()
    for name in ("environment", "test", "efficiency"):
        if records[name]:
            files[f"{name}.json"] = (json.dumps(records[name], indent=2) + "\n").encode()
    if test := records["test"]:
        name = re.sub(r"\W", "_", f"{test['benchmark']}_{test['split']}")
        files[f".eval_results/pig_{name}.yaml"] = make_eval_results(test, dataset).encode()
    card = make_model_card(
        records,
        model,
        repo_id,
        license=license,
        dataset=dataset,
        figures=[name for name in FIGURES if name in files],
        has_code="modeling_pig.py" in files,
    )
    files["README.md"] = str(card).encode()
    return dict(sorted(files.items())), notes


def _refuse_what_is_not_safetensors(folder: Path) -> None:
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(
                    f"{file} is no safetensors file ({error}): train or convert the model again."
                ) from error
        elif _is_pickle(file):
            raise ValueError(
                f"{file} is a pickle, which runs code when it is loaded and is never pushed: remove it. The model is "
                "in its safetensors files."
            )


def _is_of_model(file: Path) -> bool:
    return any(fnmatchcase(file.name, pattern) for pattern in MODEL_FILES)


def _refuse_links_out(run: Path, source: Path) -> None:
    """Refuses a file that would be pushed and is a link to a file elsewhere: what is there may not be the model's."""
    folders = (run.resolve(), source.resolve())  # the model's own folder may lie on another disk
    for file in (run / "curves.png", *sorted(filter(_is_of_model, source.iterdir()))):
        if file.is_symlink() and not any(file.resolve().is_relative_to(folder) for folder in folders):
            raise ValueError(
                f"{file} is a link out of {run}, which is not followed: put the file itself in its place."
            )


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as content:
        start = content.read(2)
    has_protocol = len(start) == 2 and start[:1] == pickle.PROTO and 2 <= start[1] <= pickle.HIGHEST_PROTOCOL
    return file.suffix in PICKLE_SUFFIXES or has_protocol or zipfile.is_zipfile(file)


def _is_installed_code(file: Path) -> bool:
    installed = INSTALLED / file.name
    return installed.is_file() and installed.read_bytes() == file.read_bytes()


def _without_origin(file: Path) -> Content:
    """A configuration without the name of the folder that it was loaded from, which older versions write."""
    config = json.loads(file.read_text(encoding="utf-8"))
    named = [key for key in ("_name_or_path", "name_or_path") if key in config]
    if not named:
        return file
    return (json.dumps({k: v for k, v in config.items() if k not in named}, indent=2) + "\n").encode()


# --- measuring, comparing


@torch.inference_mode()
def measure(model_folder: str) -> dict[str, Any]:
    """Latency on this machine of one sentence and of one video (its frames decoded), each a median in milliseconds."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    model.to(device)
    frames = _frames(processor.video_processor.num_frames, 240, 320)

    def encode_text() -> torch.Tensor:
        inputs = processor(text=SENTENCES[0], return_tensors="pt").to(device)
        return model.get_text_features(**inputs).pooler_output.cpu()

    def encode_video() -> None:
        inputs = processor(videos=[frames], do_sample_frames=False, return_tensors="pt").to(device)
        features = model.get_video_features(**inputs)
        (features.context_embeds if features.pooler_output is None else features.pooler_output).cpu()

    return {
        "model_fingerprint": model_fingerprint(model_folder),
        "text_ms": _median_ms(encode_text),
        "video_ms": _median_ms(encode_video),
        "num_tokens": len(processor.tokenizer(SENTENCES[0])["input_ids"]),
        "num_frames": len(frames),
        "frame_size": "320 x 240 pixels",
        "num_runs": NUM_RUNS,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor_name(),
        "num_threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def _median_ms(encode: Any) -> float:
    seconds = []
    for number in range(NUM_RUNS + 3):
        started = time.perf_counter()
        encode()
        if number >= 3:  # the first ones set things up
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def _frames(num_frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def outputs(model_folder: str) -> dict[str, torch.Tensor]:
    """What a model and its processor make of two fixed sentences and a fixed video: inputs and outputs, by name."""
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    frames = _frames(processor.video_processor.num_frames + 3, 48, 64)
    inputs = processor(text=SENTENCES, videos=[frames], return_tensors="pt")
    tensors = {name: value for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)}
    return {**inputs, **tensors}


def compare_download(files: Mapping[str, Content], repo_id: str, sha: str, model_folder: str) -> str:
    """Downloads a commit into an empty cache, and compares its files and what its model computes with those here.

    Returns:
        `str`: that they are equal, in one line.

    Raises:
        ValueError: what differs, or could not be downloaded.
    """
    with tempfile.TemporaryDirectory() as cache:
        with one_line_errors(repo_id, "model"):
            folder = Path(snapshot_download(repo_id, revision=sha, cache_dir=cache))
        different = [
            path
            for path, content in files.items()
            if not (folder / path).is_file() or sha256(content) != sha256(folder / path)
        ]
        if different:
            raise ValueError(f"{repo_id} at {sha} does not hold what was pushed: {', '.join(different)}. Push again.")
        here, there = outputs(model_folder), outputs(str(folder))
    different = [name for name in here if name not in there or not torch.equal(here[name], there[name])]
    if different:
        raise ValueError(
            f"{repo_id} at {sha} does not compute what {model_folder} does: {', '.join(different)} differ. "
            "The commit was made: do not use it."
        )
    return f"downloaded into an empty cache: {len(files)} files are equal, and so to the bit are {', '.join(here)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Publish the model of a run folder on the Hub.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("repo_id", help="the repository, organisation/name")
    add_push_arguments(parser, message="Upload the model, its records and its card")
    parser.add_argument("--remote-code", action="store_true", help="with the code, for trust_remote_code=True")
    parser.add_argument("--license", help="the licence of the weights, like apache-2.0")
    parser.add_argument("--dataset", metavar="ORG/NAME", help="the benchmark's name on the Hub, if it is there")
    parser.add_argument("--measure", action="store_true", help="measure latency here, kept as RUN/efficiency.json")
    args = parser.parse_args()
    try:
        check_push_arguments(args)
        if args.dataset:
            validate_repo_id(args.dataset)
        model_folder = str(Path(args.run) / "model")
        if args.measure:
            figures = json.dumps(measure(model_folder), indent=2) + "\n"
            (Path(args.run) / "efficiency.json").write_text(figures, encoding="utf-8")
        with tempfile.TemporaryDirectory() as work:
            files, notes = collect(
                args.run,
                args.repo_id,
                work,
                remote_code=args.remote_code,
                license=args.license,
                dataset=args.dataset,
            )
            for note in notes:
                print(note)
            if args.dry_run:
                print_files(files)
                return
            sha, summary = push(
                files,
                args.repo_id,
                ours=OURS,
                message=args.message,
                public=args.public,
                create_pr=args.create_pr,
                revision=args.revision,
            )
            print(summary)
            print(compare_download(files, args.repo_id, sha, model_folder))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
