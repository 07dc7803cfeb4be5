"""Model folders from the authors' checkpoints (`pig convert`) and from CLIP (`pig init`); files of hub_scripts/."""

import json
import os
import pickle
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    XLMRobertaTokenizer,
)

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigTextModel
from modeling_pig.encoding.text_encoder import TextEncoder
from modeling_pig.publishing.convert_checkpoint import convert_reference_checkpoint
from modeling_pig.publishing.init_from_clip import init_from_clip
from modeling_pig.training.recipe import ModelRecipe
from modeling_pig.training.reference_checkpoint import convert_state_dict, our_name, read_checkpoint
from modeling_pig.training.start import build_model


pytest_plugins = ["tests.hub_server"]

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden"
TINY_CLIP = str(GOLDEN / "tiny_clip")
GENERATOR = "generator.clip_reconstructor."


@pytest.fixture
def first_release() -> dict[str, torch.Tensor]:
    """Checkpoint of the authors' first release."""
    return torch.load(GOLDEN / "model_best.pt", weights_only=True)


@pytest.fixture
def second_release(first_release) -> dict[str, torch.Tensor]:
    """The same weights in the format of the second release: the ends are rows of a token table; no text projection."""
    state = dict(first_release)
    table = torch.randn(99, 32, generator=torch.Generator().manual_seed(0))
    table[97], table[98] = state.pop("generator.bos_tokens"), state.pop("generator.query_tokens")
    del state[f"{GENERATOR}text_projection.weight"]
    return state | {f"{GENERATOR}embeddings.token_embedding.weight": table}


@pytest.fixture
def clip_vip(first_release) -> dict[str, torch.Tensor]:
    """Both towers in the format of CLIP-ViP."""
    return {n.removeprefix("encoder."): v for n, v in first_release.items() if n.startswith("encoder.clipmodel.")}


@pytest.fixture
def clip_config() -> CLIPConfig:
    return CLIPConfig.from_pretrained(TINY_CLIP)


def saved(state, path: Path) -> Path:
    torch.save(state, path)
    return path


def model_of(state, clip_config, **settings) -> PigForRetrieval:
    config, converted = convert_state_dict(state, clip_config, **{"num_selected_patches": 5, **settings})
    model = PigForRetrieval(config)
    model.load_state_dict(converted)
    return model.eval()


@pytest.fixture
def tiny_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.tensor([[97, 82, 86, 98, 98], [97, 26, 84, 90, 98]])
    return {"input_ids": input_ids, "pixel_values_videos": torch.randn(2, 4, 3, 32, 32, generator=generator)}


def test_every_script_runs_its_command(monkeypatch, capsys):
    commands = {
        **{"push_model": "push model", "push_benchmark": "push benchmark", "push_space": "push space"},
        **{"export_remote_code": "export-code", "init_from_clip": "init", "convert_reference_checkpoint": "convert"},
    }
    for script, command in commands.items():
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / f"hub_scripts/{script}.py"), run_name="__main__")
        assert ended.value.code == 0 and f"Usage: pig {command} [OPTIONS]" in capsys.readouterr().out


# --- pig convert


@pytest.mark.parametrize("source", ["first_release", "second_release", "clip_vip"])
def test_a_converted_checkpoint_loads_and_runs(request, run_pig, tmp_path, source):
    state = request.getfixturevalue(source)
    output = tmp_path / "model"
    printed = run_pig(
        "convert",
        *("--checkpoint", saved(state, tmp_path / "checkpoint.pt"), "--clip", TINY_CLIP, "--output", output),
        *("--num-selected-patches", "5", "--head-reduction", "mean"),
    )
    model, processor = PigForRetrieval.from_pretrained(output).eval(), PigProcessor.from_pretrained(output)
    framework = "two_tower" if source == "clip_vip" else "hybrid"
    count = sum(parameter.numel() for parameter in model.parameters())
    assert printed.startswith(f"{framework}: {count:,} parameters") and printed.count("\n") == 1
    assert "4 frames of 32 pixels in patches of 8" in printed and printed.endswith(f"{output}\n")
    assert model.config.selector_head_reduction == "mean" and model.config.num_selected_patches == 5

    converted = model.state_dict()
    renamed = {our_name(name if source != "clip_vip" else f"encoder.{name}"): v for name, v in state.items()}
    for name, value in renamed.items():
        if not name.endswith("position_ids") and name != "generator.token_embedding.weight":
            assert torch.equal(converted.pop(name), value), name
    ends = {"generator.bos_embedding", "generator.eos_embedding"}
    assert converted.keys() == (ends if source == "second_release" else set())

    video = np.random.default_rng(0).integers(0, 256, (9, 40, 50, 3), dtype=np.uint8)
    inputs = processor(text=["the cat", "a man is cooking"], videos=[video], return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, 4, 3, 32, 32)
    assert inputs["input_ids"][0].tolist()[:1] == [97] and (inputs["input_ids"] == 98).any(dim=1).all()
    with torch.inference_mode():
        assert model(**inputs).logits_per_text.isfinite().all()


def test_second_release_equals_weights_set_by_hand(first_release, second_release, clip_config, tiny_batch):
    converted = model_of(second_release, clip_config)
    expected = PigForRetrieval(
        PigConfig.from_clip_config(
            clip_config,
            num_frames=4,
            num_selected_patches=5,
            generator_learnable_ends=False,
            generator_use_projection=False,
        )
    ).eval()
    by_our_name = {our_name(name): value for name, value in first_release.items()}
    with torch.no_grad():
        for name, tensor in expected.state_dict().items():
            if name not in ("generator.bos_embedding", "generator.eos_embedding"):
                tensor.copy_(by_our_name[name])
        expected.generator.bos_embedding.copy_(first_release["generator.bos_tokens"])
        expected.generator.eos_embedding.copy_(first_release["generator.query_tokens"])
        # The first release with an identity as its projection computes the same function.
        first = model_of({**first_release, f"{GENERATOR}text_projection.weight": torch.eye(32)}, clip_config)
        outputs = [model(**tiny_batch) for model in (converted, expected, first)]
    assert torch.equal(outputs[0].video_embeds, outputs[1].video_embeds)
    assert torch.equal(outputs[0].pseudo_query_embeds, outputs[1].pseudo_query_embeds)
    torch.testing.assert_close(outputs[0].video_embeds, outputs[2].video_embeds, atol=1e-5, rtol=1e-5)
    trained = {name for name, _ in converted.named_parameters() if name.startswith("generator.")}
    assert not trained & {"generator.bos_embedding", "generator.eos_embedding", "generator.text_projection.weight"}


def test_second_release_corrects_the_token_ids_of_early_clip_checkpoints(second_release, clip_config):
    clip_config.text_config.bos_token_id, clip_config.text_config.eos_token_id = 0, 2
    table = second_release[f"{GENERATOR}embeddings.token_embedding.weight"]
    config, state = convert_state_dict(second_release, clip_config, num_selected_patches=5)
    assert torch.equal(state["generator.bos_embedding"], table[97])
    assert torch.equal(state["generator.eos_embedding"], table[98])
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (97, 98)


def test_the_bos_vector_is_dropped_without_generator_use_bos(first_release, second_release, clip_config):
    """Both releases store the bos vector even if the training did not use it."""
    for state in (first_release, second_release):
        config, converted = convert_state_dict(state, clip_config, num_selected_patches=5, generator_use_bos=False)
        assert not config.generator_use_bos and "generator.bos_embedding" not in converted
        assert torch.equal(converted["generator.eos_embedding"], first_release["generator.query_tokens"])


def test_every_size_is_read_from_the_shapes(first_release, clip_config):
    clip_config.text_config.num_attention_heads, clip_config.vision_config.hidden_act = 8, "gelu"
    first_release["encoder.clipmodel.vision_model.embeddings.temporal_embedding"] = torch.ones(1, 7, 48)
    first_release["encoder.clipmodel.vision_model.embeddings.added_cls"] = torch.ones(2, 48)
    first_release[f"{GENERATOR}embeddings.position_embedding.weight"] = torch.ones(40, 32)
    state = {n: v for n, v in first_release.items() if not n.startswith(f"{GENERATOR}encoder.layers.1.")}
    config, converted = convert_state_dict(state, clip_config)
    assert config.framework == "hybrid" and config.num_selected_patches == 16
    assert config.vision_config.num_frames == 7 and config.vision_config.num_global_tokens == 2
    assert config.generator_max_position_embeddings == 40 and config.generator_num_hidden_layers == 1
    assert config.generator_learnable_ends and config.generator_use_projection and config.generator_use_bos
    # Settings that no shape holds come from CLIP.
    assert config.text_config.num_attention_heads == 8 and config.vision_config.hidden_act == "gelu"
    assert all(value.dtype == torch.float32 for value in converted.values())


def test_a_checkpoint_without_generator_is_a_two_tower_model(first_release, clip_vip, clip_config):
    towers = {name: value for name, value in first_release.items() if name.startswith("encoder.")}
    config, state = convert_state_dict(towers, clip_config)
    assert config.framework == "two_tower" and config.vision_config.use_frame_tokens
    other_config, other_state = convert_state_dict(clip_vip, clip_config)
    assert other_config.to_dict() == config.to_dict()
    assert all(torch.equal(other_state[name], value) for name, value in state.items())
    del clip_vip["clipmodel.vision_model.embeddings.cls_in_frames"]
    assert not convert_state_dict(clip_vip, clip_config)[0].vision_config.use_frame_tokens


def test_clip_vip_starts_a_hybrid(clip_vip, tmp_path):
    """`init: clip_vip`, and `init: reference` with the framework; both with the missing parts as in `from_clip`."""
    del clip_vip["clipmodel.vision_model.embeddings.cls_in_frames"]  # the published checkpoints have no frame tokens
    path = saved(clip_vip, tmp_path / "pretrain_clipvip_base_32.pt")
    models = []
    for init, fields in (("clip_vip", {}), ("reference", {"framework": "hybrid"})):
        recipe = ModelRecipe(init, TINY_CLIP, str(path), overrides={"num_selected_patches": 5, **fields})
        torch.manual_seed(0)
        model, processor = build_model(recipe, [])
        assert model.config.framework == "hybrid" and model.config.untrained
        assert processor.video_processor.num_frames == 4
        models.append(model.eval())
    state, other = (model.state_dict() for model in models)
    assert all(torch.equal(state[name], value) for name, value in other.items())
    for name, value in clip_vip.items():
        if not name.endswith("position_ids"):
            assert torch.equal(state[our_name(f"encoder.{name}")], value), name
    embeddings = models[0].vision_model.embeddings
    assert torch.equal(embeddings.frame_embedding, embeddings.class_embedding)
    text = {name: value for name, value in state.items() if name.startswith("text_model.encoder.layers.")}
    assert all(torch.equal(state[name.replace("text_model.encoder", "generator")], text[name]) for name in text)
    assert torch.equal(state["generator.eos_embedding"], state["text_model.embeddings.token_embedding.weight"][98])
    assert torch.equal(state["interaction.q_proj.weight"], torch.eye(32))


def test_clip_vip_with_another_number_of_frames(clip_vip, clip_config):
    """The temporal embedding is interpolated once, as the model would interpolate it for each clip."""
    del clip_vip["clipmodel.vision_model.embeddings.cls_in_frames"]
    frames = torch.randn(1, 6, 3, 32, 32)
    with torch.inference_mode():
        seen, expected = (
            model_of(clip_vip, clip_config, **fields).get_video_features(frames).pooler_output
            for fields in ({"num_frames": 6}, {})
        )
    torch.testing.assert_close(seen, expected)


def test_a_checkpoint_of_pig_is_not_taken_for_one_of_clip_vip():
    recipe = ModelRecipe("clip_vip", TINY_CLIP, str(GOLDEN / "model_best.pt"))
    with pytest.raises(ValueError, match="is a checkpoint of PIG, expected one of CLIP-ViP: set model.init=reference"):
        build_model(recipe, [])


def test_restore_file_in_half_precision(first_release, tmp_path):
    (tmp_path / "model").mkdir()  # an empty output folder is valid
    half = {name: value.half() if value.is_floating_point() else value for name, value in first_release.items()}
    nested = {"model_state_dict": half, "optimizer": {"state": {0: {"step": torch.tensor(3)}}}, "epoch": 3}
    summary = convert_reference_checkpoint(
        saved(nested, tmp_path / "restore.pt"), TINY_CLIP, tmp_path / "model", num_selected_patches=5
    )
    assert summary.startswith("hybrid: ")
    state = PigForRetrieval.from_pretrained(tmp_path / "model").state_dict()
    for name, value in half.items():
        if value.is_floating_point():
            assert state[our_name(name)].dtype == torch.float32
            assert torch.equal(state[our_name(name)], value.float()), name


def test_unexpected_weights_are_named_and_nothing_is_written(first_release, tmp_path, run_pig):
    del first_release["fusioner.cross_attn.k_proj.bias"]
    del first_release["encoder.clipmodel.vision_model.embeddings.cls_in_frames"]
    del first_release["generator.bos_tokens"]
    first_release["generator.layers.0.mlp.fc1.weight"] = torch.ones(64, 32)  # a name of our code
    first_release["logit_scale"] = torch.tensor(1.0)
    first_release[f"{GENERATOR}embeddings.token_embedding.weight"] = torch.ones(99, 32)  # and separate ends
    first_release["fusioner.layer_norm2.weight"] = torch.ones(31)
    checkpoint = saved(first_release, tmp_path / "a.pt")
    arguments = ["--clip", TINY_CLIP, "--output", tmp_path / "model", "--num-selected-patches", "5"]
    message = run_pig("convert", "--checkpoint", checkpoint, *arguments)
    for problem in (
        "missing fusioner.cross_attn.k_proj.bias;",
        "missing encoder.clipmodel.vision_model.embeddings.cls_in_frames;",
        "missing generator.bos_tokens;",
        "surplus generator.layers.0.mlp.fc1.weight;",
        "surplus logit_scale;",
        "surplus generator.clip_reconstructor.embeddings.token_embedding.weight;",
        "fusioner.layer_norm2.weight has shape (31,) instead of (32,).",
    ):
        assert problem in message
    assert message.count(";") == 6 and "more" not in message
    assert not (tmp_path / "model").exists()


def test_a_missing_weight_from_which_a_size_is_read_is_named(clip_vip, clip_config):
    del clip_vip["clipmodel.visual_projection.weight"]
    with pytest.raises(ValueError, match="weights: missing clipmodel.visual_projection.weight.$"):
        convert_state_dict(clip_vip, clip_config)


def test_an_incomplete_generator_is_no_two_tower_model(first_release, clip_config):
    dropped = [name for name in first_release if name.startswith("generator.")]
    state = {name: value for name, value in first_release.items() if name not in dropped}
    with pytest.raises(ValueError, match="missing generator.bos_tokens; .*; and [0-9]+ more") as error:
        convert_state_dict(state, clip_config, num_selected_patches=5)
    assert sum(name in str(error.value) for name in dropped) == 10


def test_a_token_table_of_another_shape_is_refused(second_release, clip_config):
    second_release[f"{GENERATOR}embeddings.token_embedding.weight"] = torch.ones(90, 32)
    with pytest.raises(ValueError, match=r"token_embedding.weight has shape \(90, 32\) instead of \(99, 32\)"):
        convert_state_dict(second_release, clip_config, num_selected_patches=5)


def test_a_clip_of_other_sizes_is_refused_with_both_sizes(first_release, clip_config):
    clip_config.text_config.num_hidden_layers, clip_config.text_config.vocab_size = 12, 49408
    clip_config.vision_config.hidden_size, clip_config.vision_config.image_size = 768, 224
    clip_config.projection_dim = 512
    with pytest.raises(ValueError, match="not the CLIP that the checkpoint started from") as error:
        convert_state_dict(first_release, clip_config)
    for contradiction in (
        "projection_dim is 32 in the checkpoint and 512 in CLIP",
        "text_config.vocab_size is 99 in the checkpoint and 49408 in CLIP",
        "text_config.num_hidden_layers is 2 in the checkpoint and 12 in CLIP",
        "vision_config.hidden_size is 48 in the checkpoint and 768 in CLIP",
        "vision_config.image_size is 32 in the checkpoint and 224 in CLIP",
    ):
        assert contradiction in str(error.value)
    assert str(error.value).count(";") == 4


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_pickle_is_never_run(first_release, tmp_path, run_pig, writer):
    trace, path = tmp_path / "trace", tmp_path / "model_best.pt"
    content = first_release | {"encoder.clipmodel.extra": Malicious(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with path.open("rb") as file:  # the pickle does run its code if it is unpickled
        torch.load(file, weights_only=False) if writer == "torch" else pickle.load(file)
    trace.rmdir()

    arguments = ("--checkpoint", path, "--clip", TINY_CLIP, "--output", tmp_path / "model")
    assert "could run code" in run_pig("convert", *arguments)
    assert not trace.exists() and not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"PK\x03\x04 truncated", "is no checkpoint"),
        ({"state": torch.ones(2)}, "expected names that start with encoder.clipmodel. or clipmodel.; it holds state"),
        ({}, "it holds nothing"),
        ([torch.ones(2)], "it holds list"),
    ],
)
def test_invalid_checkpoint_files_are_one_line_errors(tmp_path, content, message):
    path = tmp_path / "model_best.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_written_weights_are_read_back_and_compared(tmp_path, monkeypatch):
    """A single changed bit in the written file is an error."""
    write = PigForRetrieval.save_pretrained

    def write_another_bit(model, folder):
        with torch.no_grad():
            model.logit_scale.view(torch.int32).bitwise_xor_(1)
        write(model, folder)

    monkeypatch.setattr(PigForRetrieval, "save_pretrained", write_another_bit)
    with pytest.raises(ValueError, match="does not read back the same: logit_scale. "):
        convert_reference_checkpoint(GOLDEN / "model_best.pt", TINY_CLIP, tmp_path / "model")


@pytest.mark.parametrize(
    "command", [("convert", "--checkpoint", GOLDEN / "model_best.pt"), ("init", "--num-frames", "4")]
)
def test_invalid_clip_and_output_folders_are_refused(run_pig, tmp_path, command):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert "not an empty folder" in run_pig(*command, "--clip", TINY_CLIP, "--output", full)
    assert [file.name for file in full.iterdir()] == ["notes.txt"]
    output = tmp_path / "model"
    missing = tmp_path / "missing"
    assert str(missing) in run_pig(*command, "--clip", missing, "--output", output)
    siglip = tmp_path / "siglip"
    SiglipConfig().save_pretrained(siglip)
    message = run_pig(*command, "--clip", siglip, "--output", output)
    assert f"{siglip} is not a CLIP checkpoint: model_type in its config.json is siglip, expected clip or" in message
    without_tokenizer = tmp_path / "clip"
    CLIPModel.from_pretrained(TINY_CLIP).save_pretrained(without_tokenizer)
    message = run_pig(*command, "--clip", without_tokenizer, "--output", output)
    assert "no tokenizer that fits" in message and "expected 97 and 98" in message
    assert not output.exists()


def test_a_metaclip_2_without_tokenizer_is_refused(clip_folders, tmp_path):
    """The empty tokenizer that transformers creates for it has the right start and end tokens."""
    MetaClip2Config.from_pretrained(clip_folders["metaclip_2"]).save_pretrained(tmp_path)
    config = PigConfig.from_clip_config(MetaClip2Config.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match="no tokenizer that fits the configuration: it has 5 tokens"):
        PigProcessor.from_clip(str(tmp_path), config)


# --- pig init

# Keys that older versions of transformers wrote into configurations; they have no meaning for the model.
OLD_KEYS = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "bad_words_ids": None,
    "chunk_size_feed_forward": 0,
    "dropout": 0.0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "num_beams": 1,
    "output_attentions": False,
    "pruned_heads": {},
    "torch_dtype": None,
    "torchscript": False,
    "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False,
}


def tower(hidden_size: int, heads: int = 4, **fields) -> dict:
    return {
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_attention_heads": heads,
        "num_hidden_layers": 2,
        **fields,
    }


# Small versions of OpenAI's and LAION's checkpoints: hidden sizes differ from each other or from the projection.
CLIPS = {
    "openai": {
        "text_config": tower(32, projection_dim=32, bos_token_id=0, eos_token_id=2, pad_token_id=1, **OLD_KEYS),
        "vision_config": tower(48, projection_dim=32, image_size=32, patch_size=8, **OLD_KEYS),
        "projection_dim": 32,
        "torch_dtype": "float32",
        **{"text_config_dict": None, "vision_config_dict": None},
    },
    "laion": {
        "text_config": tower(48, hidden_act="gelu", bos_token_id=0, eos_token_id=2, dropout=0.0, torch_dtype=None),
        "vision_config": tower(64, heads=2, hidden_act="gelu", image_size=28, patch_size=14, dropout=0.0),
        "projection_dim": 40,
        "torch_dtype": "float32",
    },
    "recent": {  # with the token ids of its tokenizer, filled in below
        "text_config": tower(64, heads=8, layer_norm_eps=1e-6, projection_dim=64),
        "vision_config": tower(32, image_size=48, patch_size=16, layer_norm_eps=1e-6, projection_dim=64),
        "projection_dim": 64,
        "dtype": "float16",
    },
    "metaclip_2": {  # the published configurations hold only the end token's id
        "text_config": tower(32, hidden_act="gelu", bos_token_id=None, eos_token_id=2, pad_token_id=None),
        "vision_config": tower(48, hidden_act="gelu", image_size=32, patch_size=8),
        "projection_dim": 40,
    },
}
QUERIES = ["a small red circle", "a star", "маленький красный круг", "red 圆 " * 60]


def metaclip_2_tokenizer() -> XLMRobertaTokenizer:
    words = [f"▁{word}" for word in ("a", "small", "red", "circle", "star", "красный", "круг", "圆")]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *words, "▁", *"маленькй", "<mask>"]
    return XLMRobertaTokenizer(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)])


@pytest.fixture(scope="module")
def clip_folders(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Return a folder per entry of CLIPS with random weights: in a single file, in shards, in half precision."""
    folders = {}
    for name, shape in CLIPS.items():
        folder = tmp_path_factory.mktemp(name)
        fields = json.loads(json.dumps(shape))
        clip_tokenizer = metaclip_2_tokenizer() if name == "metaclip_2" else tokenizer
        fields["text_config"]["vocab_size"] = len(clip_tokenizer)
        if name == "recent":
            fields["text_config"] |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        torch.manual_seed(4)
        config_class, model_class = (
            (MetaClip2Config, MetaClip2Model) if name == "metaclip_2" else (CLIPConfig, CLIPModel)
        )
        model = model_class(config_class.from_dict(fields))
        for parameter in model.parameters():  # so that no parameter is all zeros or ones
            parameter.data += 0.05 * torch.randn_like(parameter)
        model = model.half() if name == "recent" else model
        model.save_pretrained(folder, **({"max_shard_size": "100KB"} if name == "laion" else {}))
        written = {"architectures": [model_class.__name__], "model_type": config_class.model_type}
        (folder / "config.json").write_text(json.dumps({**written, "logit_scale_init_value": 2.6592, **fields}))
        clip_tokenizer.save_pretrained(folder)
        folders[name] = folder
    assert len(list(folders["laion"].glob("model-*.safetensors"))) > 1
    return folders


@pytest.mark.parametrize("name", CLIPS)
def test_an_initialised_model_equals_clip_on_single_frames(clip_folders, tmp_path, name):
    clip = AutoModel.from_pretrained(clip_folders[name], dtype=torch.float32).eval()
    folder = str(tmp_path / "model")
    settings = {"num_frames": 1, "num_global_tokens": 0, "use_frame_tokens": False}
    init_from_clip(str(clip_folders[name]), folder, framework="two_tower", **settings)
    model, text_model = PigForRetrieval.from_pretrained(folder).eval(), PigTextModel.from_pretrained(folder).eval()
    clip_tokenizer = AutoTokenizer.from_pretrained(clip_folders[name])
    texts = clip_tokenizer(QUERIES, padding=True, truncation=True, max_length=77, return_tensors="pt")
    processed = PigProcessor.from_pretrained(folder)(text=QUERIES, return_tensors="pt")
    assert all(torch.equal(processed[key], value) for key, value in texts.items())
    side = clip.config.vision_config.image_size
    pixels = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        outputs = model(**processed, pixel_values_videos=pixels.unsqueeze(1))
        expected = clip(**texts, pixel_values=pixels)
        text_embeds = torch.nn.functional.normalize(text_model(**processed).text_embeds, dim=-1)
    torch.testing.assert_close(text_embeds, expected.text_embeds, atol=1e-5, rtol=1e-5)
    encoded = torch.from_numpy(TextEncoder(folder)(QUERIES))
    torch.testing.assert_close(encoded, expected.text_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.text_embeds, expected.text_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.video_embeds, expected.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.logits_per_text, expected.logits_per_text, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["laion", "recent", "metaclip_2"])
def test_an_initialised_hybrid_model_uses_every_weight_of_clip(clip_folders, tmp_path, name):
    clip = AutoModel.from_pretrained(clip_folders[name], dtype=torch.float32)
    folder = tmp_path / "model"
    init_from_clip(str(clip_folders[name]), folder, num_frames=3, num_selected_patches=4)
    model, processor = PigForRetrieval.from_pretrained(folder).eval(), PigProcessor.from_pretrained(folder)
    state = model.state_dict()
    for weight, value in clip.state_dict().items():
        assert torch.equal(state[weight], value), weight
    for weight, value in clip.text_model.encoder.layers.state_dict().items():
        assert torch.equal(state[f"generator.layers.{weight}"], value), weight
    tokens = clip.text_model.embeddings.token_embedding.weight
    assert torch.equal(state["generator.bos_embedding"], tokens[processor.tokenizer.bos_token_id])
    assert torch.equal(state["generator.eos_embedding"], tokens[processor.tokenizer.eos_token_id])
    generator, text = model.generator.config, clip.config.text_config
    for field in ("hidden_act", "layer_norm_eps", "num_attention_heads"):
        assert getattr(generator, field) == getattr(text, field)
    assert model.config.projection_dim == clip.config.projection_dim == CLIPS[name]["projection_dim"]

    assert processor.tokenizer.model_max_length == 77  # also if no file of the checkpoint sets it, as for metaclip_2
    video = np.zeros((5, 20, 30, 3), dtype=np.uint8)
    inputs = processor(text="a red circle", videos=[video], return_tensors="pt")
    side = clip.config.vision_config.image_size
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, side, side)
    assert model(**inputs).video_embeds.shape == (1, clip.config.projection_dim)


def test_pig_init_writes_a_model(clip_folders, run_pig, tmp_path):
    output = tmp_path / "model"
    printed = run_pig(
        "init",
        *("--clip", clip_folders["openai"], "--output", output, "--num-frames", "4", "--framework", "single_tower"),
        *("num_global_tokens=2", "use_frame_tokens=false", "interaction_dropout=0.2"),
    )
    assert printed.startswith("single_tower: ") and f"embedding dimension 32: {output}\n" in printed
    config = PigConfig.from_pretrained(output)
    assert config.framework == "single_tower" and config.interaction_dropout == 0.2
    assert config.vision_config.num_frames == 4 and config.vision_config.num_global_tokens == 2
    assert not config.vision_config.use_frame_tokens
    assert PigProcessor.from_pretrained(output).video_processor.num_frames == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["num_selected_patch=3"], "no field num_selected_patch"),
        (["num_selected_patches"], "name=value, like num_selected_patches=8; got 'num_selected_patches'"),
        (["num_selected_patches=["], "num_selected_patches=["),
        (["num_selected_patches=many"], "num_selected_patches"),
        (["num_selected_patches=100"], "generator_max_position_embeddings"),
        (["num_frames=0"], "num_frames is 0"),
        (["projection_dim=16"], "projection_dim is 16; it must be CLIP's own, 32"),
    ],
)
def test_invalid_fields_are_one_line_errors(clip_folders, tmp_path, run_pig, fields, message):
    output = tmp_path / "model"
    arguments = ("--clip", clip_folders["openai"], "--output", output, *fields)
    assert message in run_pig("init", *arguments)
    assert not output.exists()


# Name, hidden size and layers of the text tower and of the vision tower, patch, pixels, projection, parameters.
PUBLISHED = [
    ("ViT-B/32", 512, 12, 768, 12, 32, 224, 512, 151_277_313),
    ("ViT-L/14", 768, 12, 1024, 24, 14, 224, 768, 427_616_513),
    ("ViT-H/14 (LAION)", 1024, 24, 1280, 32, 14, 224, 1024, 986_109_441),
]


@pytest.mark.parametrize("shape", PUBLISHED, ids=lambda shape: shape[0])
def test_published_clip_sizes_keep_every_weight(shape):
    name, text, text_layers, vision, vision_layers, patch, pixels, projection, published = shape
    clip_config = CLIPConfig(
        text_config=tower(text, heads=text // 64, num_hidden_layers=text_layers),
        vision_config=tower(vision, heads=16, num_hidden_layers=vision_layers, patch_size=patch, image_size=pixels),
        projection_dim=projection,
    )
    with torch.device("meta"):
        clip = CLIPModel(clip_config)
        model = PigForRetrieval(PigConfig.from_clip_config(clip_config))
    assert clip.num_parameters() == published
    parameters = dict(model.named_parameters())
    assert all(parameters[name].shape == value.shape for name, value in clip.named_parameters())
    tokens = (3 + 1 + 12) * vision  # global tokens, frame token, temporal embedding
    layer = 12 * text**2 + 13 * text
    generator = projection * text + text + (2 + 77) * text + text_layers * layer + 2 * text + text * projection
    interaction = 5 * (projection**2 + projection) + 3 * 2 * projection
    assert model.num_parameters() == published + tokens + generator + interaction
    assert model.config.generator_length(12) == 34
