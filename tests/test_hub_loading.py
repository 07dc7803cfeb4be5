"""Loading models by their name on the Hub: online, offline, without access, and after interrupted downloads."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor

from modeling_pig import PigForRetrieval, PigProcessor, PigTextModel, PigVideoModel
from modeling_pig.encoding.loading import load_encoder, load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint, modules_file, read_config
from modeling_pig.encoding.text_encoder import TextEncoder


pytest_plugins = ["tests.hub_server"]

ROOT = Path(__file__).parent.parent
NAME = "org/pig"
CLASSES = [PigForRetrieval, PigTextModel, PigVideoModel]
LOAD = """
import sys
from modeling_pig import PigTextModel
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint, modules_file, read_config

load_pretrained(PigTextModel, sys.argv[1])
print(model_fingerprint(sys.argv[1]))
"""


def upload(folder: str | Path, name: str = NAME) -> None:
    HfApi().create_repo(name, exist_ok=True)
    HfApi().upload_folder(repo_id=name, folder_path=folder)


@pytest.fixture
def uploaded(hub, model_folder) -> None:
    """Upload the tiny model to the Hub; no client has cached it."""
    upload(model_folder)
    hub.requests.clear()


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


# by name


def test_classes_load_by_name(uploaded, hub, model_folder):
    for model_class in CLASSES:
        model = model_class.from_pretrained(NAME)
        assert_same_weights(model, model_class.from_pretrained(model_folder))
        assert model.name_or_path == NAME
    assert len([request for request in hub.requests if request.storage and request.method == "GET"]) == 1  # cached


def test_load_pretrained_and_fingerprint_equal_those_of_the_folder(uploaded, model_folder, other_folder):
    upload(other_folder, "org/shards")
    for name, folder in [(NAME, model_folder), ("org/shards", other_folder)]:
        model, processor = load_pretrained(PigVideoModel, name)
        assert_same_weights(model, PigVideoModel.from_pretrained(folder))
        assert not model.training and type(processor) is PigProcessor
        assert model_fingerprint(name) == model_fingerprint(str(folder))
        # The cached folder of symbolic links has the same fingerprint.
        assert model_fingerprint(snapshot_download(name)) == model_fingerprint(name)
    assert model_fingerprint(NAME) != model_fingerprint("org/shards")


# without a connection


def test_cached_models_load_offline(uploaded, hub, tmp_path, model_folder, other_folder):
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


def test_a_separate_process_reads_the_hub_from_its_environment(uploaded, hub, tmp_path, model_folder):
    """This process then loads offline from the cache of the other process."""
    done = hub.run(LOAD, NAME, home=tmp_path / "user")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == model_fingerprint(model_folder)
    assert hub.requests and not any(request.token for request in hub.requests)
    with hub.connected(tmp_path / "user", offline=True):
        load_pretrained(PigTextModel, NAME)


def test_an_unavailable_hub_needs_a_cache(uploaded, hub, tmp_path, model_folder):
    """Without a cache, the message names the connection and not the model."""
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
def test_gated_models_need_access(uploaded, hub, tmp_path, token):
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


@pytest.mark.parametrize(("name", "token"), [("org/private", "hf_bob"), ("org/missing", None)])
def test_private_models_look_missing_without_access(hub, tmp_path, model_folder, name, token):
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


@pytest.mark.parametrize("cut", ["config.json", "model-00002", "processor_config"])
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
def test_pickled_weights_are_never_read(hub, tmp_path, model_folder, monkeypatch, where):
    """A model with pickled weights only is rejected before unpickling."""
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
    with pytest.raises(ValueError, match="expected model.safetensors .* Save it with save_pretrained"):
        model_fingerprint(name)
    assert not unpickled and not hub.requested("GET", "pytorch_model.bin")


# weights that are pickles on the main branch, and in safetensors in a pull request of the Hub's converter


@pytest.fixture
def clip_folder(tmp_path) -> Path:
    """Return a folder with a CLIP model, its tokenizer and its image processor."""
    folder = shutil.copytree(ROOT / "tests/golden/tiny_clip", tmp_path / "clip")
    side = CLIPConfig.from_pretrained(folder).vision_config.image_size
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def upload_pickle(folder: Path, name: str) -> None:
    """Upload a model with its weights in a pickle only."""
    pickled = shutil.copytree(folder, folder.parent / "pickle")
    (pickled / "model.safetensors").unlink()
    torch.save(load_file(folder / "model.safetensors"), pickled / "pytorch_model.bin")
    upload(pickled, name)


def propose_safetensors(hub, folder: Path, name: str, author: str) -> None:
    """Open a pull request with the weights in safetensors."""
    token = hub.add_user(author, f"hf_{author}")
    HfApi(token=token).upload_file(
        path_or_fileobj=folder / "model.safetensors", path_in_repo="model.safetensors", repo_id=name, create_pr=True
    )


def test_weights_of_the_hubs_converter_are_read(hub, tmp_path, clip_folder):
    upload_pickle(clip_folder, "org/clip")
    propose_safetensors(hub, clip_folder, "org/clip", "a_stranger")
    propose_safetensors(hub, clip_folder, "org/clip", "SFconvertbot")
    expected, local = PigForRetrieval.from_clip(str(clip_folder)), load_encoder(str(clip_folder), dtype="float32")
    texts = ["a red circle moves left"]

    def check() -> None:
        assert_same_weights(PigForRetrieval.from_clip("org/clip").text_model, expected.text_model)
        encoder = load_encoder("org/clip", dtype="float32")
        assert torch.equal(encoder.encode_texts(texts), local.encode_texts(texts))
        assert encoder.fingerprint == local.fingerprint == model_fingerprint("org/clip")
        np.testing.assert_array_equal(TextEncoder("org/clip")(texts), TextEncoder(str(clip_folder))(texts))

    check()
    assert hub.requested("HEAD", "/resolve/refs%2Fpr%2F2/model.safetensors")
    assert not hub.requested("HEAD", "/pytorch_model.bin") and not hub.requested("HEAD", "/refs%2Fpr%2F1/")
    with hub.connected(tmp_path / "home", offline=True):
        check()


def test_a_downloaded_pickle_needs_the_hub_once(hub, tmp_path, clip_folder):
    upload_pickle(clip_folder, "org/clip")
    propose_safetensors(hub, clip_folder, "org/clip", "SFconvertbot")
    snapshot_download("org/clip")
    with hub.connected(tmp_path / "home", offline=True), pytest.raises(ValueError, match="no weights of org/clip in"):
        load_encoder("org/clip")


def test_models_in_the_cache_load_without_asking_for_files_that_they_lack(hub, tmp_path, clip_folder):
    upload(clip_folder, "org/clip")
    expected = load_encoder("org/clip").fingerprint
    hub.requests.clear()
    hub.fail(next=999, status=503)
    assert load_encoder("org/clip").fingerprint == expected
    assert hub.requests and not hub.requested(path_contains="modules.json")
    hub.heal()
    hub.repository("org/clip").gated = "manual"
    with hub.connected(tmp_path / "home", token=None):  # early versions of transformers do not load it then
        assert model_fingerprint("org/clip") == expected


def test_a_model_in_parts_without_a_configuration_is_read_offline(hub, tmp_path, clip_folder):
    """As sentence-transformers saves a CLIP model."""
    folder = tmp_path / "parts"
    shutil.copytree(clip_folder, folder / "0_CLIPModel")
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "CLIPModel"}]')
    upload(folder, "org/parts")
    for home in ("home", "downloaded"):
        with hub.connected(tmp_path / home):
            snapshot_download("org/parts") if home == "downloaded" else model_fingerprint("org/parts")
        with hub.connected(tmp_path / home, offline=True):
            assert modules_file("org/parts") and read_config("org/parts") == {}
            assert model_fingerprint("org/parts") == model_fingerprint(str(folder))


@pytest.mark.parametrize("problem", ["another author", "other weights"])
def test_other_safetensors_of_pull_requests_are_not_read(hub, clip_folder, problem):
    upload_pickle(clip_folder, "org/clip")
    propose_safetensors(hub, clip_folder, "org/clip", "SFconvertbot" if problem == "other weights" else "a_stranger")
    if problem == "other weights":  # the pickle changes after its conversion
        HfApi().upload_file(path_or_fileobj=b"new", path_in_repo="pytorch_model.bin", repo_id="org/clip")
    for load in (load_encoder, PigForRetrieval.from_clip, model_fingerprint):
        with pytest.raises(ValueError, match="org/clip has no weights .*, or convert it at https://") as error:
            load("org/clip")
        assert "\n" not in str(error.value)
    assert not hub.requested("HEAD", "/pytorch_model.bin") and not hub.requested("HEAD", "/refs%2Fpr%2F1/")
