"""transformers' `Auto` classes know PIG after `import modeling_pig`, whatever else is imported before or after."""

import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoModel

from modeling_pig import PigConfig, PigForRetrieval, PigTextConfig, PigTextModel


CLASSES = {
    "AutoConfig": "PigConfig",
    "AutoModel": "PigForRetrieval",
    "AutoProcessor": "PigProcessor",
    "AutoTokenizer": "CLIPTokenizer",
    "AutoVideoProcessor": "PigVideoProcessor",
}
LOAD = """
for name in sys.argv[2:]:
    auto_class = getattr(__import__("transformers"), name)
    print(type(auto_class.from_pretrained(sys.argv[1])).__name__)
print(sum(getattr(hook, "__module__", "") == "modeling_pig" for hook in sys.meta_path))
"""


@pytest.mark.parametrize(
    ("imports", "first"),
    [
        ("import modeling_pig", "AutoModel"),
        ("import transformers, modeling_pig", "AutoTokenizer"),
        ("from transformers import AutoModel, AutoTokenizer; import modeling_pig", "AutoConfig"),
        ("from modeling_pig.processing_pig import PigProcessor", "AutoProcessor"),
        # It imports `AutoModel` before it defines what PIG's model is made of.
        ("import modeling_pig, transformers.modeling_layers", "AutoVideoProcessor"),
    ],
)
def test_auto_classes_load_a_saved_model(model_folder, imports, first):
    """Each interpreter starts with another of the five, which must not count on the others."""
    order = sorted(CLASSES, key=lambda name: name != first)
    command = [sys.executable, "-c", f"import sys; {imports}\n{LOAD}", model_folder, *order]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *names, num_hooks = done.stdout.split()
    assert names == [CLASSES[name] for name in order]
    assert num_hooks == "0"  # all are registered: nothing is left in the way of other imports


def test_auto_model_of_the_configurations(make_config):
    config = make_config()
    assert type(AutoModel.from_config(config)) is PigForRetrieval
    assert type(AutoModel.from_config(config.text_config)) is PigTextModel
    assert type(AutoConfig.for_model("pig")) is PigConfig
    assert type(AutoConfig.for_model("pig_text_model")) is PigTextConfig


def test_a_saved_text_half(make_config, tmp_path):
    PigTextModel(make_config().text_config).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is PigTextModel
