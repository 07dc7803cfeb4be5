"""The local Hub serves uploaded files unchanged, and rejects invalid uploads and commits as the Hub does."""

import os
from hashlib import sha256
from pathlib import Path

import pytest
from datasets import config
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session


pytest_plugins = ["tests.hub_server"]

NAME = "org/name"
GIT_BLOB_ID = "4a036f56bb619924ec4189bd84ed716c766971ae"  # git hash-object of {"a": 1}


@pytest.fixture
def api(hub) -> HfApi:
    api = HfApi()
    api.create_repo(NAME)
    return api


def test_an_uploaded_folder_downloads_unchanged(hub, api, tmp_path):
    files = {
        "README.md": b"---\nlicense: mit\n---\nA card.",
        "config.json": b'{"a": 1}',
        "empty.safetensors": b"",
        "a folder/ü.txt": b"text",
        "a folder/deep/picture.png": b"\x89PNG" + os.urandom(99),
    }
    for name, content in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    commit = api.upload_folder(repo_id=NAME, folder_path=tmp_path / "up")
    down = Path(snapshot_download(NAME, cache_dir=tmp_path / "cache"))
    assert down.name == commit.oid == api.model_info(NAME).sha
    assert {name: (down / name).read_bytes() for name in files} == files
    tree = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    assert tree["config.json"].blob_id == GIT_BLOB_ID and tree["config.json"].size == 8
    picture = files["a folder/deep/picture.png"]
    assert tree["a folder/deep/picture.png"].lfs.sha256 == sha256(picture).hexdigest()

    # The token is sent to the Hub only, not to the host of the LFS files.
    to_storage = [request for request in hub.requests if request.storage]
    assert {request.method for request in to_storage} == {"PUT", "GET"}
    assert not any(request.token for request in to_storage)


def test_a_commit_is_complete_or_rejected(hub, api):
    parent = api.model_info(NAME).sha
    operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("missing.txt")]
    with pytest.raises(HfHubHTTPError, match="deletedFile missing.txt cannot be applied"):
        api.create_commit(NAME, operations, commit_message="a deleted file that does not exist")
    assert api.list_repo_files(NAME) == [".gitattributes"]
    for status in (200, 412):
        upload = {"path_or_fileobj": b"%d" % status, "path_in_repo": "a.txt", "parent_commit": parent}
        if status == 200:
            api.upload_file(repo_id=NAME, **upload)
        else:
            with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
                api.upload_file(repo_id=NAME, **upload)
    assert hub.repository(NAME).main.files["a.txt"].content == b"200"


def test_wrong_lfs_content_is_rejected(hub, api):
    batch = {"operation": "upload", "objects": [{"oid": sha256(b"right").hexdigest(), "size": 5}]}
    headers = {"authorization": "Bearer hf_ada"}
    reply = get_session().post(f"{hub.url}/{NAME}.git/info/lfs/objects/batch", json=batch, headers=headers)
    url = reply.json()["objects"][0]["actions"]["upload"]["href"]
    for content in (b"wrong", b"right but longer", b""):
        assert get_session().put(url, content=content).status_code == 400
    assert get_session().put(url.replace("signature=", "signature=0"), content=b"right").status_code == 403
    assert not hub.repository(NAME).lfs
    assert get_session().put(url, content=b"right").status_code == 200


def test_the_client_is_reset(hub, tmp_path):
    def state() -> list:
        names = ("ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH")
        return [*(getattr(constants, name) for name in names), config.HF_DATASETS_CACHE, os.environ.get("HF_TOKEN")]

    before = state()
    with type(hub)() as other, other.connected(tmp_path / "other", offline=True):
        assert state() == [other.url, *state()[1:]] and not set(state()) & set(before)
    assert state() == before
