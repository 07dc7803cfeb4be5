"""A model exported with its code loads without the package, and its outputs are bit-identical."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor
from modeling_pig.publishing.remote_code import export_remote_code

from .cli_helpers import assert_one_line_error


ROOT = Path(__file__).parent.parent
SENTENCES = ["a red circle moves left", "a blue star"]

# The package is installed in the tests' environment: changing `sys.path` alone would not hide it.
WITHOUT_PACKAGE = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "modeling_pig":
            raise ImportError("modeling_pig is hidden")

sys.meta_path.insert(0, Hidden)
"""
COMPUTE = """
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, AutoVideoProcessor

folder, output, video, *sentences = sys.argv[1:]
classes = []
for auto_class in (AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, AutoVideoProcessor):
    classes.append(type(auto_class.from_pretrained(folder, trust_remote_code=True)).__name__)
    if auto_class is not AutoTokenizer:  # a class of transformers, whose code needs no trust
        try:
            auto_class.from_pretrained(folder)  # asks on the terminal, which is missing here
        except ValueError as error:
            assert "Please pass the argument `trust_remote_code=True`" in str(error), error
        else:
            sys.exit(f"{auto_class.__name__} ran the code without permission")

model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
text = processor(text=sentences, return_tensors="pt")
clip = processor(videos=video, return_tensors="pt")
with torch.inference_mode():
    results = {
        "text": model.get_text_features(**text).pooler_output,
        "video": model.get_video_features(**clip).pooler_output,
        **{k: v for k, v in model(**text, **clip).items() if isinstance(v, torch.Tensor)},
    }
save_file({name: value.clone() for name, value in {**results, **text, **clip}.items()}, output)
print()
print(*classes, "modeling_pig" in sys.modules)
"""


@contextmanager
def restored_classes() -> Iterator[None]:
    """Restore the classes after an export: a class with `_auto_class` would save its code with every model."""
    with pytest.MonkeyPatch.context() as patch:
        for pig_class in (PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor):
            patch.setattr(pig_class, "_auto_class", None)
        yield


def export(model_folder, output) -> None:
    with restored_classes():
        export_remote_code(model_folder, output)


def run_without_package(code: str, cache: Path, *arguments) -> str:
    """Run `code` in a new interpreter that cannot import the package, and return its output."""
    command = [sys.executable, "-I", "-c", WITHOUT_PACKAGE + code, *map(str, arguments)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_outputs_without_the_package_are_identical(model_folder, shape_videos, tmp_path):
    exported, output = tmp_path / "exported", tmp_path / "output.safetensors"
    export(model_folder, exported)
    stdout = run_without_package(COMPUTE, tmp_path / "cache", exported, output, shape_videos[0], *SENTENCES)
    classes = ["PigConfig", "PigForRetrieval", "PigProcessor", "CLIPTokenizer", "PigVideoProcessor"]
    assert stdout.splitlines()[-1].split() == [*classes, "False"]

    model, processor = PigForRetrieval.from_pretrained(model_folder).eval(), PigProcessor.from_pretrained(model_folder)
    text = processor(text=SENTENCES, return_tensors="pt")
    clip = processor(videos=str(shape_videos[0]), return_tensors="pt")
    with torch.inference_mode():
        expected = {
            "text": model.get_text_features(**text).pooler_output,
            "video": model.get_video_features(**clip).pooler_output,
            **{k: v for k, v in model(**text, **clip).items() if isinstance(v, torch.Tensor)},
            **text,
            **clip,
        }
    found = load_file(output)
    assert found.keys() == expected.keys() >= {"logits_per_text", "pseudo_query_embeds", "pixel_values_videos"}
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_an_export_holds_code_weights_and_other_files(model_folder, tmp_path):
    """Code and weights are copies, other files are kept, and the installed package loads it without trust."""
    source = shutil.copytree(model_folder, tmp_path / "model")
    (source / "README.md").write_text("a model card")
    (source / ".eval_results").mkdir()
    (source / ".eval_results" / "test.yaml").write_text("[]")
    target = tmp_path / "exported"
    export(source, target)

    files = sorted(file.name for file in target.glob("*.py"))
    assert files == sorted(file.name for file in (ROOT / "modeling_pig").glob("*_pig.py"))
    for name in files:
        assert (target / name).read_bytes() == (ROOT / "modeling_pig" / name).read_bytes()
    weights, exported_weights = load_file(source / "model.safetensors"), load_file(target / "model.safetensors")
    assert weights.keys() == exported_weights.keys()
    assert all(torch.equal(weights[name], exported_weights[name]) for name in weights)
    assert (target / "README.md").read_text() == "a model card"
    assert (target / ".eval_results" / "test.yaml").read_text() == "[]"
    assert type(PigForRetrieval.from_pretrained(target)) is PigForRetrieval
    assert str(tmp_path) not in "".join(file.read_text() for file in target.glob("*.json"))

    # An exported model can be exported again.
    export(target, tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads((target / "config.json").read_text())


def test_no_sentence_transformers_files_for_single_tower(make_config, processor, tmp_path):
    PigForRetrieval(make_config(framework="single_tower")).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "exported")
    assert not (tmp_path / "exported" / "modules.json").exists()


def test_errors_are_one_line_and_write_nothing(pig, model_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "config.json").write_text('{"model_type": "clip"}')
    incomplete = tmp_path / "incomplete"
    PigConfig().save_pretrained(incomplete)
    for model, output, message in [
        (model_folder, tmp_path / "full", "full is not an empty folder"),
        (model_folder, tmp_path / "full" / "file", "file is not an empty folder"),
        (model_folder, Path(model_folder) / "exported", "lies in the model's own folder"),
        (clip, tmp_path / "new", "clip holds no PIG model"),
        (tmp_path / "missing", tmp_path / "new", "missing holds no PIG model"),
        (incomplete, tmp_path / "new", "incomplete"),
    ]:
        with restored_classes():
            assert_one_line_error(pig("export-code", "--model", model, "--output", output), message)
    assert not (tmp_path / "new").exists() and not (Path(model_folder) / "exported").exists()
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]
