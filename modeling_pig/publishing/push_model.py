"""Push the model of a run folder to the Hub, with its records, its figures and a model card."""

import json
import os
import pickle
import re
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

import modeling_pig
from modeling_pig import PigForRetrieval

from ..encoding.loading import load_pretrained
from ..encoding.model_files import model_fingerprint
from ..files import write_text
from ..training.records import EfficiencyRecord
from ..training.run_folder import processor_name
from ..visualization.ranks import draw_ranks
from .model_card import FIGURES, make_eval_results, make_model_card
from .remote_code import MODEL_FILES, SENTENCE_TRANSFORMERS_FILES, export_remote_code
from .repository import Content, PushOptions, check_push, hash_content, one_line_errors, print_files, push
from .run_records import RunRecords, read_run


PACKAGE = Path(modeling_pig.__file__).parent
PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
# Patterns of the paths that only pushes of this kind write, see [`push`].
OWNED = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "*_pig.py", "recipe.yaml"]
OWNED += ["environment.json", "metrics.jsonl", "test.json", "mteb.json", "efficiency.json", ".eval_results/pig_*.yaml"]
OWNED += [*FIGURES, *SENTENCE_TRANSFORMERS_FILES]
QUERIES = ["a red circle moves left", "two people talk on a stage, then a dog runs across it"]
NUM_RUNS = 20  # timed runs per latency, which is their median
NUM_WARMUP_RUNS = 3


class CollectedFiles(NamedTuple):
    """Files of a repository by path, and notes on the files of a model folder that are left out or replaced."""

    files: dict[str, Content]
    notes: list[str]


def push_model(
    run: str | os.PathLike,
    repo_id: str,
    *,
    remote_code: bool = False,
    license: str | None = None,
    dataset: str | None = None,
    measure: bool = False,
    dry_run: bool = False,
    message: str = "Upload the model, its records and its card",
    **options: Unpack[PushOptions],
) -> None:
    """Push the model of a run folder, with its records, figures and model card, to the Hub. Prints the results.

    The push is one commit; a second push of the same run makes no commit. After the push, the repository is downloaded
    into an empty cache, and its files and the outputs of its model must be bit-identical to the local ones. Folders of
    this machine are not published.

    Args:
        run (`str` or `os.PathLike`): run folder that a training wrote.
        repo_id (`str`): repository, `organisation/name`.
        remote_code (`bool`): add the code of the model, for `trust_remote_code=True`.
        license (`str`, *optional*): licence of the weights, by its name on the Hub, such as `"apache-2.0"`.
        dataset (`str`, *optional*): name of the benchmark on the Hub, `organisation/name`.
        measure (`bool`): measure the latency on this machine, and write it to `efficiency.json` in the run folder.
        dry_run (`bool`): print the files and the card; use no network.
        message (`str`): commit message.
        **options: see [`PushOptions`].

    Raises:
        ValueError: the run folder cannot be published, see [`collect_files`], or the push failed.

    Example:

    ```python
    >>> push_model("runs/demo", "org/name", license="apache-2.0", dry_run=True)
    ```
    """
    check_push(repo_id, **options)
    if dataset:
        validate_repo_id(dataset)
    model_folder = str(Path(run) / "model")
    if measure:
        record = measure_latency(model_folder).to_dict()
        write_text(Path(run) / "efficiency.json", json.dumps(record, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as work:
        files, notes = collect_files(run, repo_id, work, remote_code=remote_code, license=license, dataset=dataset)
        for note in notes:
            print(note)
        if dry_run:
            print_files(files)
            return
        pushed = push(files, repo_id, owned=OWNED, message=message, **options)
        print(pushed.summary)
        print(compare_download(files, repo_id, pushed.sha, model_folder))


# --- files


def collect_files(
    run: str | os.PathLike,
    repo_id: str,
    work: str | os.PathLike,
    *,
    remote_code: bool = False,
    license: str | None = None,
    dataset: str | None = None,
) -> CollectedFiles:
    """Collect the files of a repository for the model of a run.

    Args:
        run (`str` or `os.PathLike`): run folder.
        repo_id (`str`): repository, `organisation/name`.
        work (`str` or `os.PathLike`): empty folder for the model with its code and the figure of the ranks.
        remote_code (`bool`): add the code of the model.
        license (`str`, *optional*): licence of the weights, by its name on the Hub.
        dataset (`str`, *optional*): name of the benchmark on the Hub.

    Returns:
        `CollectedFiles`: the files, sorted by path, and the notes.

    Raises:
        ValueError: `run` holds no model, no recipe or an invalid record; the folder of the model holds a pickle, a
            link out of `run`, or code that differs from the package's code; or a record belongs to another model.
    """
    run, work = Path(run), Path(work)
    source = run / "model"
    records = read_run(run)
    _check_formats(source)
    _check_links(run, source)
    model, _ = load_pretrained(PigForRetrieval, str(source))
    _check_fingerprints(run, records, model_fingerprint(str(source)))

    notes = []
    different = sorted(file.name for file in source.glob("*.py") if not _is_package_code(file))
    if different and not remote_code:
        raise ValueError(
            f"The code in {source} differs from the code of the installed package: {', '.join(different)}. Give "
            "--remote-code to push the installed code instead, or install the version that exported the model."
        )
    if remote_code:
        export_remote_code(source, work / "exported")
        notes += [f"replaced by the installed code: {name}" for name in different if (PACKAGE / name).is_file()]
        source = work / "exported"
    files: dict[str, Content] = {}
    for file in sorted(source.iterdir()):
        if file.is_file() and _is_model_file(file):
            files[file.name] = _without_name_or_path(file) if file.name.endswith("config.json") else file
        elif file.suffix == ".py" and _is_package_code(file):
            files[file.name] = file
        elif file.name != "README.md":
            notes.append(f"left out: {file.name}")
    files |= _collect_records(run, work, records, dataset)
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
    return CollectedFiles(dict(sorted(files.items())), notes)


def _check_formats(folder: Path) -> None:
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(
                    f"{file} is not a safetensors file ({error}): train or convert the model again."
                ) from error
        elif _is_pickle(file):
            raise ValueError(
                f"{file} is a pickle, which can run code when it is loaded and is never pushed: remove it. The "
                "weights are in the safetensors files."
            )


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as content:
        start = content.read(2)
    has_protocol = len(start) == 2 and start[:1] == pickle.PROTO and 2 <= start[1] <= pickle.HIGHEST_PROTOCOL
    return file.suffix in PICKLE_SUFFIXES or has_protocol or zipfile.is_zipfile(file)


def _check_links(run: Path, source: Path) -> None:
    """Raise `ValueError` if a file to push is a link out of the run: its target may not belong to the model."""
    folders = (run.resolve(), source.resolve())  # the folder of the model may itself be a link to another disk
    for file in (run / "curves.png", *sorted(filter(_is_model_file, source.iterdir()))):
        if file.is_symlink() and not any(file.resolve().is_relative_to(folder) for folder in folders):
            raise ValueError(f"{file} is a link out of {run}, which is not followed: replace it by the file itself.")


def _check_fingerprints(run: Path, records: RunRecords, fingerprint: str) -> None:
    """Raise `ValueError` if an evaluation or the latency in a run folder belongs to another model."""
    for name, record in {"test.json": records.test, "mteb.json": records.mteb}.items():
        if record and record.model_fingerprint != fingerprint:
            raise ValueError(
                f"{run / name} is the evaluation of another model (fingerprint {record.model_fingerprint}, this model "
                f"has {fingerprint}): run `pig evaluate` again with --output {run / name}, or remove the file."
            )
    if records.efficiency and records.efficiency.model_fingerprint != fingerprint:
        raise ValueError(
            f"{run / 'efficiency.json'} was measured with another model: push with --measure, or remove the file."
        )


def _is_model_file(file: Path) -> bool:
    return any(fnmatchcase(file.name, pattern) for pattern in MODEL_FILES)


def _is_package_code(file: Path) -> bool:
    installed = PACKAGE / file.name
    return installed.is_file() and installed.read_bytes() == file.read_bytes()


def _without_name_or_path(file: Path) -> Content:
    """Return a configuration without its source folder, which older versions of transformers write into it."""
    config = json.loads(file.read_text(encoding="utf-8"))
    named = [key for key in ("_name_or_path", "name_or_path") if key in config]
    if not named:
        return file
    return (json.dumps({k: v for k, v in config.items() if k not in named}, indent=2) + "\n").encode()


def _collect_records(run: Path, work: Path, records: RunRecords, dataset: str | None) -> dict[str, Content]:
    """Collect the records of a run without folders of this machine, and its figures."""
    files: dict[str, Content] = {}
    if (run / "curves.png").is_file():
        files["curves.png"] = run / "curves.png"
    files["recipe.yaml"] = yaml.safe_dump(records.recipe, sort_keys=False, allow_unicode=True).encode()
    if records.metrics:
        files["metrics.jsonl"] = "".join(json.dumps(line.to_dict()) + "\n" for line in records.metrics).encode()
    if records.environment:
        starts = [start.to_dict() for start in records.environment]
        files["environment.json"] = (json.dumps(starts, indent=2) + "\n").encode()
    if records.efficiency:
        files["efficiency.json"] = (json.dumps(records.efficiency.to_dict(), indent=2) + "\n").encode()
    if records.mteb:
        files["mteb.json"] = (json.dumps(records.mteb.to_dict(), indent=2) + "\n").encode()
    if records.test:
        test = records.test.to_dict()
        files["test.json"] = (json.dumps(test, indent=2) + "\n").encode()
        name = re.sub(r"\W", "_", f"{records.test.benchmark}_{records.test.split}")
        files[f".eval_results/pig_{name}.yaml"] = make_eval_results(records.test, dataset).encode()
        if "recall_curve" in test:
            # Drawn again: the figure in the run folder may show an earlier evaluation.
            draw_ranks(test, work / "ranks.png")
            files["ranks.png"] = work / "ranks.png"
    return files


# --- measuring and comparing


@torch.inference_mode()
def measure_latency(model_folder: str) -> EfficiencyRecord:
    """Measure the latency of one query and of one video whose frames are decoded, on this machine.

    Args:
        model_folder (`str`): folder of a model with its processor.

    Returns:
        `EfficiencyRecord`: medians in milliseconds, and the conditions of the measurement.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    model.to(device)
    frames = _make_frames(processor.video_processor.num_frames, 240, 320)

    def encode_query() -> None:
        inputs = processor(text=QUERIES[0], return_tensors="pt").to(device)
        model.get_text_features(**inputs).pooler_output.cpu()  # waits for the device

    def encode_video() -> None:
        inputs = processor(videos=[frames], do_sample_frames=False, return_tensors="pt").to(device)
        features = model.get_video_features(**inputs)
        (features.context_embeds if features.pooler_output is None else features.pooler_output).cpu()

    return EfficiencyRecord(
        model_fingerprint=model_fingerprint(model_folder),
        text_ms=_median_ms(encode_query),
        video_ms=_median_ms(encode_video),
        num_tokens=len(processor.tokenizer(QUERIES[0])["input_ids"]),
        num_frames=len(frames),
        frame_size="320 x 240 pixels",
        num_runs=NUM_RUNS,
        device=torch.cuda.get_device_name() if device.type == "cuda" else processor_name(),
        num_threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
        torch=torch.__version__,
    )


def _median_ms(encode: Callable[[], None]) -> float:
    seconds = []
    for number in range(NUM_WARMUP_RUNS + NUM_RUNS):
        started = time.perf_counter()
        encode()
        if number >= NUM_WARMUP_RUNS:
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def _make_frames(num_frames: int, height: int, width: int) -> np.ndarray:
    """Draw random frames (num_frames, height, width, 3) uint8, the same on every call."""
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def compute_outputs(model_folder: str) -> dict[str, torch.Tensor]:
    """Compute inputs and outputs of a model, by name, for two fixed queries and a fixed video."""
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    frames = _make_frames(processor.video_processor.num_frames + 3, 48, 64)
    inputs = processor(text=QUERIES, videos=[frames], return_tensors="pt")
    tensors = {name: value for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)}
    return {**inputs, **tensors}


def compare_download(files: Mapping[str, Content], repo_id: str, sha: str, model_folder: str) -> str:
    """Download a commit into an empty cache, and compare its files and the outputs of its model with the local ones.

    Args:
        files (`Mapping[str, Content]`): path in the repository -> local content.
        repo_id (`str`): repository, `organisation/name`.
        sha (`str`): commit.
        model_folder (`str`): folder of the local model.

    Returns:
        `str`: summary of the comparison in one line.

    Raises:
        ValueError: the download failed, or files or outputs differ; the message names them.
    """
    with tempfile.TemporaryDirectory() as cache:
        with one_line_errors(repo_id, "model"):
            folder = Path(snapshot_download(repo_id, revision=sha, cache_dir=cache))
        different = [
            path
            for path, content in files.items()
            if not (folder / path).is_file() or hash_content(content) != hash_content(folder / path)
        ]
        if different:
            raise ValueError(
                f"{repo_id} at {sha} does not hold the files that were pushed: {', '.join(different)} differ. Push "
                "again."
            )
        local, remote = compute_outputs(model_folder), compute_outputs(str(folder))
    different = [name for name in local if name not in remote or not torch.equal(local[name], remote[name])]
    if different:
        raise ValueError(
            f"{repo_id} at {sha} does not compute the outputs of {model_folder}: {', '.join(different)} differ. The "
            "commit was made: do not use it."
        )
    names = ", ".join(local)
    return f"downloaded into an empty cache: {len(files)} files are equal; bit-identical inputs and outputs: {names}"


__all__ = ["collect_files", "compare_download", "measure_latency", "push_model"]
