"""Find and read the files of a model in a folder or on the Hub. Importing this module imports no torch."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..weights_pig import WEIGHTS, WEIGHTS_INDEX, safetensors_revision


CONFIG = "config.json"
MODULES = "modules.json"  # lists the parts of a model of sentence-transformers
PIG_MODELS = ("pig", "pig_text_model")  # values of `model_type`
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors -> NumPy, which has no bfloat16


def check_model_name(name_or_folder: str) -> None:
    """Raise `ValueError` unless this is a folder with a model, or may be the name of a model on the Hub."""
    folder = Path(name_or_folder)
    if folder.is_dir() and not any((folder / name).is_file() for name in (CONFIG, MODULES)):
        raise ValueError(f"{name_or_folder} holds no model (no config.json): give the folder that training wrote.")
    if not folder.is_dir() and (folder.is_absolute() or name_or_folder.count("/") != 1 or folder.parent.exists()):
        raise ValueError(f"There is no model folder {name_or_folder}: train one, or give the name of one on the Hub.")


def model_file(name_or_folder: str, filename: str, revision: str = "main") -> str | None:
    """Return the path of a file of a model, or `None` if the model has no such file. Download it from the Hub.

    Args:
        name_or_folder (`str`): model on the Hub, or folder with a model.
        filename (`str`): name of the file, such as `config.json`.
        revision (`str`): revision of a model on the Hub.

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
        return hf_hub_download(name_or_folder, filename, revision=revision)
    except (OSError, ValueError, httpx.HTTPError) as error:
        is_missing = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        if is_missing or _lacks_in_cache(name_or_folder, filename):
            return None
        raise ValueError(f"The model {name_or_folder} cannot be loaded: {' '.join(str(error).split())}") from error


def _lacks_in_cache(name: str, filename: str) -> bool:
    """Return whether the cache shows that a model has no `config.json` or no `modules.json`: it has the other one."""
    from huggingface_hub import try_to_load_from_cache

    others = {CONFIG: MODULES, MODULES: CONFIG}
    return filename in others and isinstance(try_to_load_from_cache(name, others[filename]), str)


def modules_file(name_or_folder: str) -> str | None:
    """Return the path of `modules.json`, which a model of sentence-transformers has; `None` for other models.

    The Hub is not asked if the cache knows: its clients try for half a minute to reach a Hub that does not answer.

    Raises:
        ValueError: the model on the Hub does not exist, or cannot be accessed.
    """
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    if not os.path.isdir(name_or_folder):
        cached = try_to_load_from_cache(name_or_folder, MODULES)
        if cached is _CACHED_NO_EXIST:
            return None
        if isinstance(cached, str):
            return cached
    return model_file(name_or_folder, MODULES)


def read_config(name_or_folder: str) -> dict[str, Any]:
    """Read the configuration of a model; `{}` if the model has none.

    Raises:
        ValueError: the model cannot be accessed, or its `config.json` is not a JSON object.
    """
    if (file := model_file(name_or_folder, CONFIG)) is None:
        return {}
    try:
        if isinstance(config := read_json(file), dict):
            return config
        problem = "it is not a JSON object"
    except (OSError, ValueError) as error:
        problem = str(error)
    raise ValueError(f"The model {name_or_folder} cannot be loaded: {file} cannot be read ({problem}).")


def weight_files(name_or_folder: str, folder: str = "") -> list[str]:
    """Return the paths of the safetensors files of a model.

    Args:
        name_or_folder (`str`): model on the Hub, or folder with a model.
        folder (`str`): folder of the weights inside the model's folder.

    Raises:
        ValueError: the model has no safetensors files, or one of them is missing.
    """
    revision = "main" if folder else safetensors_revision(name_or_folder)
    problem = None
    try:
        if weights := model_file(name_or_folder, os.path.join(folder, WEIGHTS), revision):
            return [weights]
    except ValueError as error:  # without a connection it is unknown whether the model has this file
        problem = error
    try:
        index = model_file(name_or_folder, os.path.join(folder, WEIGHTS_INDEX), revision)
    except ValueError as error:
        raise problem or error from error
    if index is None:
        raise ValueError(
            f"{name_or_folder} has no weights that can be read in {folder}: expected {WEIGHTS} (pickle files are not "
            "read). Save it with save_pretrained."
        )
    # Large models are saved in several files, which the index file lists.
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    files = [(name, model_file(name_or_folder, os.path.join(folder, name), revision)) for name in names]
    if missing := [name for name, path in files if path is None]:
        raise ValueError(f"{name_or_folder} lacks {missing[0]}, a file of its weights: copy or download it again.")
    return [path for _, path in files if path is not None]


def read_weights(path: str, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read the weights whose names begin with one of `prefixes` from a safetensors file, as float32; skip all others.

    Integers are skipped too: early CLIP checkpoints hold the numbers of the positions.

    File format: length of the header (8 bytes), header (JSON: type, shape and offsets of each tensor), tensors.

    Raises:
        ValueError: the file is not a safetensors file.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < os.path.getsize(path):
            raise ValueError(f"{path} is not a safetensors file: copy or download it again.")
        header = json.loads(file.read(length))
        tensors = {}
        for name, entry in header.items():
            if name.startswith(prefixes) and entry["dtype"] in _DTYPES:
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                values = np.frombuffer(file.read(end - start), _DTYPES[entry["dtype"]])
                if entry["dtype"] == "BF16":  # the upper half of a float32
                    values = (values.astype("<u4") << 16).view("<f4")
                tensors[name] = values.astype(np.float32, copy=False).reshape(entry["shape"])
    return tensors


def read_json(path: str) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def model_fingerprint(name_or_folder: str) -> str:
    """Return a fingerprint of the weights of a model: 16 hexadecimal digits.

    Hash the size, the header and 64 evenly spaced samples of each safetensors file. The samples of two trained models
    all differ; those of a copy are all equal.

    Raises:
        ValueError: the model has no safetensors files, or one of them is missing.
    """
    digest = hashlib.sha256()
    for shard in all_weight_files(name_or_folder):
        size = os.path.getsize(shard)
        digest.update(str(size).encode())
        with open(shard, "rb") as file:
            for position in range(0, size, max(size // 64, 1)):
                file.seek(position)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


def all_weight_files(name_or_folder: str) -> list[str]:
    """Return the paths of all safetensors files of a model; those of sentence-transformers lie in several folders."""
    modules = None
    if read_config(name_or_folder).get("model_type") not in PIG_MODELS:
        modules = modules_file(name_or_folder)
    if modules is None:
        return weight_files(name_or_folder)
    files, problem = [], None
    for folder in dict.fromkeys(module["path"] for module in read_json(modules)):
        try:
            files += weight_files(name_or_folder, folder)
        except ValueError as error:  # some modules, such as pooling, have no weights
            problem = error
    if problem and not files:
        raise problem
    return files


__all__ = [
    "MODULES",
    "PIG_MODELS",
    "all_weight_files",
    "check_model_name",
    "model_file",
    "model_fingerprint",
    "modules_file",
    "read_config",
    "read_json",
    "read_weights",
    "weight_files",
]
