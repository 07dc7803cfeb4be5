"""Common tests of transformers models, for the three frameworks, `PigTextModel` and `PigVideoModel`."""

import copy

import numpy as np
import pytest
import torch

from modeling_pig import PigForRetrieval, PigTextModel, PigVideoModel


FRAMEWORKS = ["hybrid", "two_tower", "single_tower"]
# `PigVideoModel` builds the same video tower as `PigForRetrieval`: one framework is enough.
ALL_MODELS = [
    *((PigForRetrieval, framework) for framework in FRAMEWORKS),
    (PigVideoModel, "hybrid"),
    (PigTextModel, "two_tower"),
]


def ids(model) -> str:
    return model.__name__ if isinstance(model, type) else model


@pytest.fixture
def make(make_config):
    """Return a function that creates a model whose weights differ from their initial zeros and ones."""

    def make(model_class: type, framework: str, **settings):
        torch.manual_seed(0)
        config = make_config(framework=framework, **settings)
        model = model_class(config.text_config if model_class is PigTextModel else config)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        return model.eval()

    return make


def inputs_of(model_class: type, batch: dict) -> dict:
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    video = {"pixel_values_videos": batch["pixel_values_videos"]}
    return {PigForRetrieval: text | video, PigVideoModel: video, PigTextModel: text}[model_class]


def embeddings_of(outputs) -> dict[str, torch.Tensor]:
    names = ("text_embeds", "video_embeds", "pseudo_query_embeds", "context_embeds", "logits_per_text")
    return {name: outputs[name] for name in names if outputs.get(name) is not None}


def assert_same_outputs(seen, expected, atol: float = 1e-5) -> None:
    seen, expected = embeddings_of(seen), embeddings_of(expected)
    assert seen.keys() == expected.keys() and expected
    for name in expected:
        torch.testing.assert_close(seen[name], expected[name], atol=atol, rtol=atol)


@pytest.mark.parametrize(("model_class", "framework"), ALL_MODELS, ids=ids)
def test_saving_a_loaded_model_writes_identical_files(make, tmp_path, model_class, framework):
    make(model_class, framework).save_pretrained(tmp_path / "0")
    for number in range(2):
        model_class.from_pretrained(tmp_path / str(number)).save_pretrained(tmp_path / str(number + 1))
    weights = [(tmp_path / str(number) / "model.safetensors").read_bytes() for number in range(3)]
    assert weights[0] == weights[1] == weights[2]
    # The first load adds the data type to the sub-configurations.
    configs = [(tmp_path / str(number) / "config.json").read_text() for number in (1, 2)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(("model_class", "framework"), ALL_MODELS, ids=ids)
def test_loading_an_empty_state_dict_initialises_all_weights(make, model_class, framework):
    """Weights are created on the meta device: without `_init_weights` they would hold uninitialised memory."""
    config = make(model_class, framework).config
    torch.manual_seed(1)
    fresh = model_class(copy.deepcopy(config))
    torch.manual_seed(1)
    loaded = model_class.from_pretrained(None, config=copy.deepcopy(config), state_dict={})
    for tensors in ("named_parameters", "named_buffers"):
        expected, seen = dict(getattr(fresh, tensors)()), dict(getattr(loaded, tensors)())
        assert seen.keys() == expected.keys()
        for name, tensor in expected.items():
            assert seen[name].device.type == "cpu"
            if tensor.numel() > 100 and tensor.is_floating_point():  # compare random weights by their statistics
                std = tensor.std().item()
                assert seen[name].std().item() == pytest.approx(std, rel=0.3, abs=1e-6), name
                assert seen[name].mean().item() == pytest.approx(tensor.mean().item(), abs=0.3 * std + 1e-6), name
            elif not tensor.is_floating_point():
                assert torch.equal(seen[name], tensor), name
            assert seen[name].isfinite().all()


@pytest.mark.parametrize(("model_class", "framework"), ALL_MODELS, ids=ids)
def test_eager_equals_sdpa(make, batch, model_class, framework):
    model = make(model_class, framework)
    inputs = inputs_of(model_class, batch)
    with torch.inference_mode():
        expected = model(**inputs)
        model.set_attn_implementation("eager")
        assert_same_outputs(model(**inputs), expected)


@pytest.mark.parametrize(("model_class", "framework"), ALL_MODELS, ids=ids)
def test_outputs_do_not_depend_on_the_batch(make, batch, model_class, framework):
    model = make(model_class, framework)
    inputs = inputs_of(model_class, batch)
    with torch.inference_mode():
        batched = embeddings_of(model(**inputs))
        for row in range(3):
            single = embeddings_of(model(**{name: value[row : row + 1] for name, value in inputs.items()}))
            for name in single.keys() - {"logits_per_text"}:
                torch.testing.assert_close(single[name][0], batched[name][row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_class", "framework"), ALL_MODELS, ids=ids)
def test_gradient_checkpointing_gives_the_same_gradients(make, batch, model_class, framework):
    gradients = []
    for checkpointing in (False, True):
        model = make(model_class, framework, interaction_dropout=0.0).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        sum(
            value.square().sum() for value in embeddings_of(model(**inputs_of(model_class, batch))).values()
        ).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_training_steps_reduce_the_loss(make, batch, framework):
    model = make(PigForRetrieval, framework).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        outputs = model(**batch, return_loss=True)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.clamp_logit_scale_()
        losses.append(outputs.loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("model_class", "framework"), ALL_MODELS, ids=ids)
def test_half_precision_is_close_to_float32(make, batch, tmp_path, model_class, framework):
    model = make(model_class, framework)
    model.save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)
    in_float32 = {name for name, parameter in half.named_parameters() if parameter.dtype == torch.float32}
    assert in_float32 == ({"logit_scale"} if model_class is PigForRetrieval else set())
    inputs = inputs_of(model_class, batch)
    with torch.inference_mode():
        expected, seen = embeddings_of(model(**inputs)), embeddings_of(half(**inputs))
    for name in ("text_embeds", "video_embeds"):
        if name in expected and expected[name].ndim == 2 and framework != "hybrid":
            # In hybrid models, rounding may change the selected patches.
            cosine = torch.nn.functional.cosine_similarity(seen[name].float(), expected[name], dim=-1)
            assert cosine.min() > 0.99
    assert all(value.isfinite().all() for value in seen.values())


@pytest.mark.parametrize("framework", ["hybrid", "single_tower"])
def test_compiles_without_graph_breaks(make, batch, framework):
    """A hybrid model runs all that a two-tower model runs; the exports below trace one tower."""
    model = make(PigForRetrieval, framework)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # a graph break raises
    with torch.no_grad():
        assert_same_outputs(compiled(**batch), model(**batch))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_video_model_exports(make, batch, framework):
    model = make(PigVideoModel, framework)
    batch_size = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        model,
        (),
        {"pixel_values_videos": batch["pixel_values_videos"]},
        dynamic_shapes={"pixel_values_videos": {0: batch_size}},
    )
    more = torch.randn(5, 4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(pixel_values_videos=more).video_embeds, model(more).video_embeds, atol=1e-5, rtol=1e-5
        )


def other_texts(model: PigTextModel) -> dict[str, torch.Tensor]:
    """Return a batch whose number and length of texts differ from the exported batch."""
    input_ids = torch.full((4, 6), 5)
    input_ids[:, -1] = model.config.eos_token_id
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def test_text_model_runs_in_onnxruntime_for_any_batch_and_length(make, batch, tmp_path):
    import onnxruntime

    model = make(PigTextModel, "two_tower")
    inputs = inputs_of(PigTextModel, batch)
    batch_size, tokens = torch.export.Dim("batch", min=1, max=512), torch.export.Dim("tokens", min=2, max=77)
    shapes = dict.fromkeys(inputs, {0: batch_size, 1: tokens})
    program = torch.onnx.export(model, (), kwargs=inputs, dynamic_shapes=shapes, dynamo=True, verbose=False)
    program.save(tmp_path / "text.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "text.onnx")
    for texts in (inputs, other_texts(model)):
        with torch.no_grad():
            expected = model(**texts).text_embeds.numpy()
        seen = session.run(None, {name: value.numpy() for name, value in texts.items()})[0]
        np.testing.assert_allclose(seen, expected, atol=1e-4)


@pytest.mark.parametrize("num_frames", [1, 64])
def test_clips_of_1_and_64_frames(make, num_frames):
    model = make(PigForRetrieval, "hybrid", generator_max_position_embeddings=96)
    with torch.inference_mode():
        features = model.get_video_features(torch.randn(1, num_frames, 3, 32, 32))
    assert features.context_embeds.shape == (1, 4 + num_frames, 32)
    assert features.pooler_output.isfinite().all()


def test_selector_takes_all_patches_of_a_short_clip(make, caplog):
    model = make(PigForRetrieval, "hybrid", num_selected_patches=40)
    features = model.get_video_features(torch.randn(2, 1, 3, 32, 32))
    assert features.selected_patches.sort().values.tolist() == [list(range(16))] * 2
    assert "num_selected_patches is 40, but a clip of 1 frames has only 16 patches" in caplog.text


def test_inputs_on_another_device_are_rejected(make, batch):
    with pytest.raises(ValueError, match="pixel_values_videos is on meta, the model on cpu: move one"):
        make(PigVideoModel, "hybrid")(batch["pixel_values_videos"].to("meta"))
    with pytest.raises(ValueError, match="input_ids is on meta, the model on cpu: move one"):
        make(PigForRetrieval, "hybrid").get_text_features(batch["input_ids"].to("meta"))
