"""Run the common model tests of transformers over every PIG model and framework.

    python tests/upstream_contract.py

Downloads the source of the installed transformers version, whose tests no wheel carries, and runs its
`ModelTesterMixin` (3 minutes on one core). The exit status is 0 if the tests in `KNOWN` fail, perhaps those in
`FLAKY`, and no others. pytest does not collect this file, because it needs the network.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path


os.environ["HF_HUB_OFFLINE"] = "1"  # only pip may use the network

import torch
import transformers

from modeling_pig import PigConfig, PigForRetrieval, PigTextModel, PigVideoModel
from modeling_pig.modeling_pig import PigVisionTransformer


MODELS = [
    (PigTextModel, "two_tower"),  # the towers are the same in all frameworks
    (PigVisionTransformer, "two_tower"),
    *((PigVideoModel, framework) for framework in ("hybrid", "two_tower", "single_tower")),
    *((PigForRetrieval, framework) for framework in ("hybrid", "two_tower", "single_tower")),
]
# Pattern of tests that fail -> reason.
NESTED = "the hidden states and attentions are in the outputs of the towers, as in CLIPModel, whose tests skip this"
KNOWN = {
    "PigForRetrieval-*.test_attention_outputs": NESTED,
    "PigForRetrieval-*.test_hidden_states_output": NESTED,
    "PigForRetrieval-*.test_retain_grad_hidden_states_attentions": NESTED,
    "PigTextModel-*.test_get_text_features_output_[02]": "expects the configuration to have a text_config",
    "PigVi*.test_model_get_set_embeddings": "expects nn.Embedding; videos are embedded by a convolution, as in CLIP",
    "PigVi*.test_retain_grad_hidden_states_attentions": (
        "attention is computed in two parts; the returned attentions copy both: no gradient flows through them"
    ),
}
# Pattern of tests that fail on some processors -> reason.
FLAKY = {
    "*-hybrid.test_eager_matches_sdpa_inference_*_bf16_*": (
        "rounding to bfloat16 changes which patches are selected, and so the last hidden states"
    ),
}


class ModelTester:
    """Tiny configuration and inputs of one model, under the names that `ModelTesterMixin` reads."""

    batch_size = 3
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, model_class: type, framework: str):
        self.model_class = model_class
        self.framework = framework
        self.is_training = model_class is PigForRetrieval  # other models compute no loss
        self.reads_text = model_class in (PigTextModel, PigForRetrieval)
        self.reads_videos = model_class is not PigTextModel
        self.hidden_size = 32 if model_class is PigTextModel else 48
        self.seq_length = 9 if model_class is PigTextModel else 4 + 4 * 17  # 4 video tokens, 4 frames of 1 + 16 tokens

    def get_config(self) -> transformers.PreTrainedConfig:
        size = {"num_hidden_layers": self.num_hidden_layers, "num_attention_heads": self.num_attention_heads}
        text = {"hidden_size": 32, "intermediate_size": 37, "vocab_size": 99, "max_position_embeddings": 77}
        ends = {"bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98}
        vision = {"hidden_size": 48, "intermediate_size": 37, "image_size": 32, "patch_size": 8, "num_frames": 4}
        config = PigConfig(
            text_config=text | ends | size,
            vision_config=vision | size,
            framework=self.framework,
            projection_dim=32,
            num_selected_patches=5,
            logit_scale_init_value=2.6592,  # as in the testers of CLIP: the tolerances fit logits of this size
        )
        sub_configs = {PigTextModel: config.text_config, PigVisionTransformer: config.vision_config}
        return sub_configs.get(self.model_class, config)

    def prepare_config_and_inputs_for_common(self) -> tuple[transformers.PreTrainedConfig, dict]:
        inputs = {}
        if self.reads_text:
            input_ids = torch.randint(97, (self.batch_size, 9))
            input_ids[:, -1] = 98
            inputs |= {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if self.reads_videos:
            inputs["pixel_values_videos"] = torch.rand(self.batch_size, 4, 3, 32, 32)
        if self.is_training:
            inputs["return_loss"] = True
        return self.get_config(), inputs


def fetch_tests(folder: Path) -> None:
    """Write the package `transformers_tests`, for the installed transformers, and `parameterized` to `folder`."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = ["--no-deps", "--no-binary", ":all:", f"transformers=={transformers.__version__}"]
    subprocess.run([*pip, "download", *source, "--dest", str(folder)], check=True)
    subprocess.run([*pip, "install", "parameterized", "--target", str(folder)], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    package = folder / "transformers_tests"
    (folder / archive.name.removesuffix(".tar.gz") / "tests").rename(package)
    # `test_modeling_common` imports two modules that the archive lacks.
    for module, name in (
        ("exporters.test_export", "ExportTesterMixin"),
        ("generation.test_utils", "GenerationTesterMixin"),
    ):
        path = package / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"class {name}:\n    pass\n")


def make_test_case(mixin: type, model_class: type, framework: str) -> type[unittest.TestCase]:
    """Return the tests of `mixin` for one model."""

    def set_up(test: unittest.TestCase) -> None:
        transformers.set_seed(0)
        test.model_tester = ModelTester(model_class, framework)

    attributes = {
        "all_model_classes": (model_class,),
        "additional_model_inputs": ["pixel_values_videos"] if model_class is PigForRetrieval else [],
        "test_resize_embeddings": model_class in (PigTextModel, PigForRetrieval),  # others have no token embeddings
        "_is_composite": model_class in (PigForRetrieval, PigVideoModel),
        "setUp": set_up,
    }
    return type(f"{model_class.__name__}-{framework}", (mixin, unittest.TestCase), attributes)


def name_of(test: unittest.TestCase) -> str:
    test = getattr(test, "test_case", test)  # of a subtest
    return f"{type(test).__name__}.{test._testMethodName}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fetch_tests(Path(folder))
        sys.path.insert(0, folder)
        mixin = importlib.import_module("transformers_tests.test_modeling_common").ModelTesterMixin
        load = unittest.TestLoader().loadTestsFromTestCase
        suite = unittest.TestSuite(load(make_test_case(mixin, *model)) for model in MODELS)
        result = unittest.TestResult()
        transformers.logging.disable_default_handler()  # it writes past the redirection
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            suite.run(result)
    traces = {name_of(test): trace for test, trace in result.failures + result.errors}
    skipped = {name_of(test) for test, _ in result.skipped} - traces.keys()
    new = [name for name in traces if not any(fnmatchcase(name, pattern) for pattern in [*KNOWN, *FLAKY])]
    stale = [pattern for pattern in KNOWN if not any(fnmatchcase(name, pattern) for name in traces)]
    for name in new:
        print(f"{name} failed:\n{traces[name]}")
    for pattern in stale:
        print(f"{pattern} passes: remove it from KNOWN.")
    passed = result.testsRun - len(traces) - len(skipped)
    print(
        f"{passed} passed, {len(skipped)} skipped, {len(traces)} failed, of which {len(traces) - len(new)} are known."
    )
    sys.exit(1 if new or stale else 0)


if __name__ == "__main__":
    main()
