# Copyright 2026 The PIG contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Find the weights of a model on the Hub in safetensors where its main branch has pickle files only."""

import os
from pathlib import Path


WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"  # a model has one of them
_CONVERTER = "SFconvertbot"  # account of the Hub that converts weights to safetensors, each model in a pull request


def safetensors_revision(name_or_folder: str) -> str:
    """Return the revision of a model at which its weights are in safetensors.

    It is `"main"` for nearly all models, and for folders. Early ones, such as `openai/clip-vit-base-patch32`, have
    only pickle files there, which can run code when they are loaded. Then it is the pull request in which the Hub's
    converter has added the same weights in safetensors, such as `"refs/pr/15"`, if it was made from the pickle files
    that are on the main branch now. Without a connection, it is a pull request whose weights are in the cache.

    Args:
        name_or_folder (`str`): model on the Hub, or folder with a model.

    Raises:
        ValueError: the folder has no weights in safetensors, or the Hub has them in pickle files only.
    """
    expected = "expected model.safetensors (pickle files are not read). Save it with save_pretrained"
    problem = f"{name_or_folder} has no weights that can be read: {expected}"
    if os.path.isdir(name_or_folder):
        if any(os.path.isfile(os.path.join(name_or_folder, file)) for file in (WEIGHTS, WEIGHTS_INDEX)):
            return "main"
        raise ValueError(f"{problem}.")
    if _is_cached(name_or_folder, "main"):
        return "main"
    from huggingface_hub import file_exists
    from huggingface_hub.utils import httpx

    try:
        if any(file_exists(name_or_folder, file) for file in (WEIGHTS, WEIGHTS_INDEX)):
            return "main"
        revision = _converted_revision(name_or_folder)
    except (OSError, ValueError, httpx.HTTPError) as error:
        if cached := _cached_revision(name_or_folder):
            return cached
        if not _is_cached(name_or_folder, "main", "config.json"):
            return "main"  # no connection, no access, or no such model: loading reports it
        raise ValueError(
            f"the cache has no weights of {name_or_folder} in safetensors, and the Hub cannot be asked for them: load "
            "the model once with a connection"
        ) from error
    if revision is None:
        raise ValueError(f"{problem}, or convert it at https://huggingface.co/spaces/safetensors/convert.")
    return revision


def _converted_revision(name: str) -> str | None:
    """Return the newest pull request of the converter whose pickle files are those of the main branch."""
    from huggingface_hub import HfApi

    def list_files(revision: str) -> dict[str, str]:
        entries = HfApi().list_repo_tree(name, revision=revision)
        return {entry.path: entry.blob_id for entry in entries if hasattr(entry, "blob_id")}

    pickles = {path: blob for path, blob in list_files("main").items() if path.endswith(".bin")}
    found = HfApi().get_repo_discussions(name, author=_CONVERTER, discussion_type="pull_request") if pickles else []
    made = [pull for pull in found if pull.author == _CONVERTER and pull.status != "merged"]
    for pull in sorted(made, key=lambda pull: -pull.num):
        files = list_files(revision := f"refs/pr/{pull.num}")
        if pickles.items() <= files.items() and (WEIGHTS in files or WEIGHTS_INDEX in files):
            return revision
    return None


def _cached_revision(name: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    pulls = Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "refs", "refs", "pr")
    numbers = sorted((int(file.name) for file in pulls.glob("*") if file.name.isdigit()), reverse=True)
    revisions = [f"refs/pr/{number}" for number in numbers]
    return next((revision for revision in revisions if _is_cached(name, revision)), None)


def _is_cached(name: str, revision: str, *files: str) -> bool:
    """Return whether one of the files, by default of the weights in safetensors, is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(name, file, revision=revision) for file in files or (WEIGHTS, WEIGHTS_INDEX))
    return any(isinstance(path, str) for path in found)


__all__ = ["WEIGHTS", "WEIGHTS_INDEX", "safetensors_revision"]
