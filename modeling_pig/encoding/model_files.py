"""Find the files of a model in a folder or on the Hub, and fingerprint its weights. Importing it imports no torch."""

import hashlib
import json
import os
from pathlib import Path


WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


def check_model_name(name_or_folder: str) -> None:
    """Raise `ValueError` unless this is a folder with a model, or may be the name of a model on the Hub."""
    folder = Path(name_or_folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{name_or_folder} holds no model (no config.json): give the folder that training wrote.")
    if not folder.is_dir() and (folder.is_absolute() or name_or_folder.count("/") != 1 or folder.parent.exists()):
        raise ValueError(f"There is no model folder {name_or_folder}: train one, or give the name of one on the Hub.")


def model_file(name_or_folder: str, filename: str) -> str | None:
    """Return the path of a file of a model, or `None` if the model has no such file. Download it from the Hub.

    Args:
        name_or_folder (`str`): model on the Hub, or folder with a model.
        filename (`str`): name of the file, such as `config.json`.

    Raises:
        ValueError: the model on the Hub does not exist, or cannot be accessed.
    """
    if os.path.isdir(name_or_folder):
        path = os.path.join(name_or_folder, filename)
        return path if os.path.isfile(path) else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        return hf_hub_download(name_or_folder, filename)
    except (OSError, ValueError, httpx.HTTPError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise ValueError(f"The model {name_or_folder} cannot be loaded: {' '.join(str(error).split())}") from error


def weight_files(name_or_folder: str) -> list[str]:
    """Return the paths of the safetensors files of a model.

    Raises:
        ValueError: the model has no safetensors files, or one of them is missing.
    """
    problem = None
    try:
        if weights := model_file(name_or_folder, WEIGHTS):
            return [weights]
    except ValueError as error:  # without a connection it is unknown whether the model has this file
        problem = error
    try:
        index = model_file(name_or_folder, WEIGHTS_INDEX)
    except ValueError as error:
        raise problem or error from error
    if index is None:
        raise ValueError(
            f"{name_or_folder} has no weights that can be read: expected {WEIGHTS}. Save it with save_pretrained."
        )
    # Large models are saved in several files, which the index file lists.
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    files = [(name, model_file(name_or_folder, name)) for name in names]
    if missing := [name for name, path in files if path is None]:
        raise ValueError(f"{name_or_folder} lacks {missing[0]}, a file of its weights: copy or download it again.")
    return [path for _, path in files if path is not None]


def model_fingerprint(name_or_folder: str) -> str:
    """Return a fingerprint of the weights of a model: 16 hexadecimal digits.

    Hash the size, the header and 64 evenly spaced samples of each safetensors file. The samples of two trained models
    all differ; those of a copy are all equal.
    """
    digest = hashlib.sha256()
    for shard in weight_files(name_or_folder):
        size = os.path.getsize(shard)
        digest.update(str(size).encode())
        with open(shard, "rb") as file:
            for position in range(0, size, max(size // 64, 1)):
                file.seek(position)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


__all__ = ["check_model_name", "model_file", "model_fingerprint", "weight_files"]
