"""Loading models by their name on the Hub: online, offline, without access, and after interrupted downloads."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants, snapshot_download

from modeling_pig import PigForRetrieval, PigProcessor, PigTextModel, PigVideoModel
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint


pytest_plugins = ["tests.hub_server"]

NAME = "org/pig"
CLASSES = [PigForRetrieval, PigTextModel, PigVideoModel]
LOAD = """
import sys
from modeling_pig import PigTextModel
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint

load_pretrained(PigTextModel, sys.argv[1])
print(model_fingerprint(sys.argv[1]))
"""


def upload(folder: str | Path, name: str = NAME, **kwargs) -> str:
    """Upload a folder with `upload_folder(**kwargs)` and return the commit's sha."""
    HfApi().create_repo(name, exist_ok=True)
    return HfApi().upload_folder(repo_id=name, folder_path=folder, **kwargs).oid


@pytest.fixture
def sha(hub, model_folder) -> str:
    """Return the commit of the tiny model on the Hub, before anything is cached."""
    sha = upload(model_folder)
    hub.requests.clear()
    return sha


@pytest.fixture
def other_folder(make_config, processor, tmp_path) -> Path:
    """Return the folder of another model, saved in shards."""
    torch.manual_seed(1)
    PigForRetrieval(make_config()).save_pretrained(tmp_path / "other", max_shard_size="100KB")
    processor.save_pretrained(tmp_path / "other")
    assert len(list((tmp_path / "other").glob("model-*.safetensors"))) > 2
    return tmp_path / "other"


def assert_same_weights(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    state, expected_state = model.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], expected_state[name]) for name in state)


# by name, revision and subfolder


@pytest.mark.parametrize("model_class", CLASSES)
def test_load_by_name(sha, hub, model_folder, model_class):
    model = model_class.from_pretrained(NAME)
    assert_same_weights(model, model_class.from_pretrained(model_folder))
    assert model.name_or_path == NAME
    assert {request.token for request in hub.requests if request.storage} == {None}
    # A second load downloads nothing.
    hub.requests.clear()
    model_class.from_pretrained(NAME)
    assert not hub.requested("GET", "/resolve/") and not [request for request in hub.requests if request.storage]


def test_load_processor_by_name(sha, model_folder):
    processor, expected = PigProcessor.from_pretrained(NAME), PigProcessor.from_pretrained(model_folder)
    assert processor.to_dict() == expected.to_dict()
    texts = ["a small red circle moves left", "a star"]
    assert torch.equal(*(p(text=texts, return_tensors="pt")["input_ids"] for p in (processor, expected)))


def test_revisions(sha, model_folder, other_folder):
    """A tag, a branch, a commit and a pull request hold the first model; main holds the second."""
    api = HfApi()
    api.create_tag(NAME, tag="v1")
    api.create_branch(NAME, branch="old")
    api.delete_file("model.safetensors", NAME)
    second = upload(other_folder)
    proposal = api.upload_folder(
        repo_id=NAME, folder_path=model_folder, create_pr=True, delete_patterns="model*.safetensors*"
    )
    first, other = PigForRetrieval.from_pretrained(model_folder), PigForRetrieval.from_pretrained(other_folder)
    for revision in ("v1", sha, "old", proposal.pr_revision):
        assert_same_weights(PigForRetrieval.from_pretrained(NAME, revision=revision), first)
        assert type(PigProcessor.from_pretrained(NAME, revision=revision)) is PigProcessor
    for revision in (None, "main", second):
        kwargs = {"revision": revision} if revision else {}
        assert_same_weights(PigForRetrieval.from_pretrained(NAME, **kwargs), other)
    with pytest.raises(OSError, match="v9 is not a valid git identifier"):
        PigForRetrieval.from_pretrained(NAME, revision="v9")


def test_subfolder(hub, model_folder, other_folder):
    upload(model_folder, path_in_repo="checkpoints/first")
    upload(other_folder, path_in_repo="checkpoints/second")
    for subfolder, folder in [("checkpoints/first", model_folder), ("checkpoints/second", other_folder)]:
        expected = PigTextModel.from_pretrained(folder)
        assert_same_weights(PigTextModel.from_pretrained(NAME, subfolder=subfolder), expected)
        processor = PigProcessor.from_pretrained(NAME, subfolder=subfolder)
        assert processor.to_dict() == PigProcessor.from_pretrained(folder).to_dict()
    with pytest.raises(OSError, match="does not appear to have a file named"):
        PigTextModel.from_pretrained(NAME)


def test_load_pretrained_and_fingerprint(sha, model_folder, other_folder):
    upload(other_folder, "org/shards")
    for name, folder in [(NAME, model_folder), ("org/shards", other_folder)]:
        model, processor = load_pretrained(PigVideoModel, name)
        assert_same_weights(model, PigVideoModel.from_pretrained(folder))
        assert not model.training and type(processor) is PigProcessor
        assert model_fingerprint(name) == model_fingerprint(str(folder))
        # The cached folder of symbolic links has the same fingerprint.
        assert model_fingerprint(snapshot_download(name)) == model_fingerprint(name)
    assert model_fingerprint(NAME) != model_fingerprint("org/shards")


# pushing


def test_push_to_hub(hub, make_model, processor):
    model = make_model()
    model.push_to_hub("org/pushed", private=True)
    processor.push_to_hub("org/pushed")
    assert_same_weights(PigForRetrieval.from_pretrained("org/pushed"), model)
    assert PigProcessor.from_pretrained("org/pushed").to_dict() == processor.to_dict()
    assert hub.repository("org/pushed").private and hub.repository("org/pushed").main.files["model.safetensors"].lfs


# without a connection


def test_offline(sha, hub, tmp_path, model_folder, other_folder):
    upload(other_folder, "org/shards")
    for name in (NAME, "org/shards"):
        load_pretrained(PigForRetrieval, name)
    with hub.connected(tmp_path / "home", offline=True):
        hub.requests.clear()
        for name, folder in [(NAME, model_folder), ("org/shards", other_folder)]:
            model, _ = load_pretrained(PigForRetrieval, name)
            assert_same_weights(model, PigForRetrieval.from_pretrained(folder))
            assert model_fingerprint(name) == model_fingerprint(str(folder))
    with hub.connected(tmp_path / "empty", offline=True):
        for load in (PigForRetrieval.from_pretrained, lambda name: load_pretrained(PigForRetrieval, name)):
            with pytest.raises((OSError, ValueError), match="couldn't find them in the cached files"):
                load(NAME)
        with pytest.raises(ValueError, match="cannot be loaded: .* Please check your connection"):
            model_fingerprint(NAME)
    assert not hub.requests


def test_load_in_a_separate_process(sha, hub, tmp_path, model_folder):
    """The Hub is set by environment variables; this process then loads offline from the cache of the other."""
    done = hub.run(LOAD, NAME, home=tmp_path / "user")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == model_fingerprint(model_folder)
    assert hub.requests and not any(request.token for request in hub.requests)
    with hub.connected(tmp_path / "user", offline=True):
        load_pretrained(PigTextModel, NAME)


def test_local_files_only(sha, hub, model_folder):
    for load in (PigForRetrieval.from_pretrained, PigProcessor.from_pretrained):
        with pytest.raises(OSError, match="couldn't find them in the cached files|Can't load"):
            load(NAME, local_files_only=True)
        load(NAME)
        hub.requests.clear()
        load(NAME, local_files_only=True)
        assert not hub.requested(path_contains="/resolve/")


def test_unavailable_hub(sha, hub, tmp_path, model_folder):
    """With a cache, the model loads; without, the message names the connection and not the model."""
    load_pretrained(PigForRetrieval, NAME)
    hub.fail(next=999, status=503)
    model, _ = load_pretrained(PigForRetrieval, NAME)
    assert_same_weights(model, PigForRetrieval.from_pretrained(model_folder))
    assert model_fingerprint(NAME) == model_fingerprint(model_folder)
    with hub.connected(tmp_path / "empty"):
        with pytest.raises(ValueError, match="We couldn't connect to .* Check your internet connection") as error:
            load_pretrained(PigForRetrieval, NAME)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match="cannot be loaded: .* Please check your connection"):
            model_fingerprint(NAME)


# without access


@pytest.mark.parametrize("token", [None, "hf_bob"])
def test_gated(sha, hub, tmp_path, token):
    HfApi().update_repo_settings(NAME, gated="auto")
    hub.add_user("bob", "hf_bob")
    with hub.connected(tmp_path / "bob", token):
        for model_class in (*CLASSES, PigProcessor):
            with pytest.raises(OSError, match="gated repo.\nMake sure to have access to it at .*org/pig"):
                model_class.from_pretrained(NAME)
        with pytest.raises(ValueError, match="gated repo. Make sure to have access to it at .*org/pig") as error:
            load_pretrained(PigTextModel, NAME)
        assert "\n" not in str(error.value)
        hub.repository(NAME).allowed.add("bob")
        if token:
            load_pretrained(PigTextModel, NAME)


@pytest.mark.parametrize("token", [None, "hf_bob"])
@pytest.mark.parametrize("name", ["org/private", "org/missing"])
def test_private_and_missing(hub, tmp_path, model_folder, name, token):
    """Without access, a private repository looks like a missing one."""
    upload(model_folder, "org/private")
    HfApi().update_repo_settings("org/private", private=True)
    hub.add_user("bob", "hf_bob")
    with hub.connected(tmp_path / "bob", token):
        for model_class in CLASSES:
            with pytest.raises(OSError, match=f"{name} is not a local folder(.|\n)*hf auth login"):
                model_class.from_pretrained(name)
        with pytest.raises(ValueError, match=f"The model {name} cannot be loaded: .*hf auth login") as error:
            load_pretrained(PigTextModel, name)
        assert "\n" not in str(error.value)
    if name == "org/private":
        model = PigTextModel.from_pretrained(name, token="hf_ada")
        assert_same_weights(model, PigTextModel.from_pretrained(model_folder))


# interrupted downloads


def test_incomplete_downloads_are_not_loaded(sha, hub, tmp_path, model_folder):
    etag = hub.repository(NAME).main.files["model.safetensors"].etag
    blobs = tmp_path / "home/hub/models--org--pig/blobs"
    blobs.mkdir(parents=True)
    weights = (Path(model_folder) / "model.safetensors").read_bytes()
    for name, content in [(f"{etag}.incomplete", b"junk"), (f"{etag}.0a1b2c3d.incomplete", weights[:10_000])]:
        (blobs / name).write_bytes(content)
    assert_same_weights(PigForRetrieval.from_pretrained(NAME), PigForRetrieval.from_pretrained(model_folder))
    assert (blobs / etag).read_bytes() == weights


def test_an_interrupted_download_resumes(sha, hub, model_folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # incomplete chunks are discarded
    hub.cut(after_bytes=105_000, path_contains="model.safetensors", method="GET")
    assert_same_weights(PigForRetrieval.from_pretrained(NAME), PigForRetrieval.from_pretrained(model_folder))
    gets = hub.requested("GET", "model.safetensors")
    assert [(request.status, request.headers.get("range")) for request in gets] == [
        (None, None),
        (206, "bytes=100000-"),
    ]


@pytest.mark.parametrize(
    "cut", ["config.json", "model.safetensors", "model-00002", "processor_config", "tokenizer.json"]
)
def test_a_failed_download_resumes_in_a_later_load(hub, other_folder, model_folder, cut):
    folder = other_folder if cut == "model-00002" else model_folder
    upload(folder)
    hub.cut(after_bytes=30, path_contains=cut, method="GET", next=999)
    with pytest.raises(ValueError, match=f"{NAME} (cannot be loaded|has a model but no processor)") as error:
        load_pretrained(PigForRetrieval, NAME)
    assert "\n" not in str(error.value)
    hub.heal()
    model, processor = load_pretrained(PigForRetrieval, NAME)
    assert_same_weights(model, PigForRetrieval.from_pretrained(folder))
    assert processor.to_dict() == PigProcessor.from_pretrained(folder).to_dict()
    assert model_fingerprint(NAME) == model_fingerprint(str(folder))


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_pickles_are_not_read(hub, tmp_path, model_folder, monkeypatch, where):
    """A model whose weights are a pickle only is rejected before unpickling."""
    folder = shutil.copytree(model_folder, tmp_path / "pickle")
    (folder / "model.safetensors").unlink()
    torch.save(PigForRetrieval.from_pretrained(model_folder).state_dict(), folder / "pytorch_model.bin")
    upload(folder)
    name = NAME if where == "hub" else str(folder)
    unpickled = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: unpickled.append(args))
    for model_class in CLASSES:
        with pytest.raises(OSError, match="model.safetensors"):
            model_class.from_pretrained(name)
        with pytest.raises(ValueError, match="cannot be loaded: .*model.safetensors") as error:
            load_pretrained(model_class, name)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="expected model.safetensors. Save it with save_pretrained"):
        model_fingerprint(name)
    assert not unpickled and not hub.requested("GET", "pytorch_model.bin")
