"""The `transformers` auto classes load PIG once `modeling_pig` and `transformers` are imported, in either order."""

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
"""


@pytest.mark.parametrize(
    ("imports", "first"),
    [
        ("from modeling_pig import PigProcessor", "AutoProcessor"),
        # `modeling_layers` imports `AutoModel` before it defines the base classes of PIG's model.
        ("import transformers.modeling_layers, modeling_pig", "AutoVideoProcessor"),
    ],
)
def test_auto_classes_load_a_saved_model(model_folder, imports, first):
    """Each interpreter starts with a different auto class: no auto class may rely on the others."""
    order = sorted(CLASSES, key=lambda name: name != first)
    command = [sys.executable, "-c", f"import sys; {imports}\n{LOAD}", model_folder, *order]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [CLASSES[name] for name in order]


def test_auto_classes_know_every_configuration(make_config, tmp_path):
    config = make_config()
    assert type(AutoModel.from_config(config)) is PigForRetrieval
    AutoModel.from_config(config.text_config).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is PigTextModel
    assert type(AutoConfig.for_model("pig")) is PigConfig
    assert type(AutoConfig.for_model("pig_text_model")) is PigTextConfig
