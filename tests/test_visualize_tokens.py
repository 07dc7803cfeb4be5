"""Explanations of a video: phrases, attention and matches against brute force, and the pixels of the picture."""

import colorsys
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from check_selection import cover_patches
from typer.testing import CliRunner

from modeling_pig import PigProcessor, PigVideoProcessor
from modeling_pig.benchmarks.moving_shapes import make_scene
from modeling_pig.benchmarks.shapes_drawing import draw_masks
from modeling_pig.cli import app
from modeling_pig.encoding.texts import encode_texts
from modeling_pig.visualization.text import read_captions
from modeling_pig.visualization.token_figure import PHRASE_COLOURS, draw_explanation
from modeling_pig.visualization.tokens import NO_PHRASE, explain_video, split_phrases
from tests.cli_helpers import assert_one_line_error
from tests.test_training import DEMO, ROOT
from tests.video_files import write_video
from tests.warm_python import warm_python


QUERY = "a red circle moves left and a blue star spins"


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


@torch.inference_mode()
def inputs_of(processor, video):
    return processor(videos=str(video), return_tensors="pt")["pixel_values_videos"]


# phrases


def test_phrases_of_a_query():
    phrases = {
        "a red circle moves left, a blue star spins": ["a red circle moves left", "a blue star spins"],
        "a ring blinks and then grows while a star spins": ["a ring blinks and then grows", "a star spins"],
        "on a plain grey ground, a ring moves to the left": ["a plain grey ground", "a ring moves to the left"],
        "A man in a red shirt is playing the guitar.": ["A man", "a red shirt", "playing the guitar"],
        "a cup of tea": ["a cup of tea"],
        "a star jumps up and down": ["a star jumps up"],
        "a well-dressed man walks by-passers down": ["a well-dressed man walks by-passers down"],
        "It costs $3.50 (or £3), who's asking?": ["It costs $3.50", "£3", "who's asking"],
        "and the": ["and the"],  # no content word: the whole query is one phrase
        "红色的圆圈": ["红色的圆圈"],
        "\\frac{$x_1^2$} and \\alpha": ["\\frac{$x_1^2$}", "\\alpha"],
        "a dog, a cat and A dog": ["a dog", "a cat"],  # a repeated phrase has two spans
    }
    for query, expected in phrases.items():
        found = split_phrases(query)
        assert [phrase.text for phrase in found] == expected
        assert all(query[start:end].lower() == phrase.text.lower() for phrase in found for start, end in phrase.spans)
    assert found[0].spans == ((0, 5), (17, 22))


# computation


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_attention_equals_the_dense_weights_of_the_class_token(make_model, processor, shape_videos, reduction):
    model = make_model(selector_head_reduction=reduction)
    found = explain_video(model, processor, shape_videos[0], QUERY)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = model.vision_model(inputs_of(processor, shape_videos[0]), output_attentions=True).attentions[-1]
    rows = weights[0, :, 0].numpy()  # (H, N)
    rows = rows.max(axis=0) if reduction == "max" else rows.mean(axis=0)
    for frame in range(4):
        for row in range(4):
            for column in range(4):
                token = 4 + 17 * frame + 1 + 4 * row + column  # class, 3 global, 1 frame token per frame
                assert found.attention[frame, row, column] == pytest.approx(rows[token] * len(rows), rel=1e-4)
    best = np.argsort(-found.attention.flatten(), kind="stable")[:5]
    assert sorted(found.selected_patches) == sorted(best)


@pytest.mark.parametrize("matching", ["token", "pseudo_query"])
def test_matches_equal_brute_force(make_model, processor, shape_videos, matching):
    model = make_model(num_selected_patches=12)
    with torch.no_grad():
        model.logit_scale.fill_(4.6)  # as CLIP's, so that patches differ in their matches
    seen = set()
    for video in shape_videos:
        found = explain_video(model, processor, video, "a red circle, a blue star and a green ring", matching=matching)
        texts = encode_texts(model, processor, [phrase.text for phrase in found.phrases])
        with torch.inference_mode():
            pixels = inputs_of(processor, video)
            states = model.vision_model(pixels).last_hidden_state
            tokens = model.visual_projection(model.vision_model.post_layernorm(states))[0]  # (N, D)
            positions = [4 + 17 * frame + 1 + patch for frame in range(4) for patch in range(16)]
            average = tokens[positions].mean(dim=0)
            context = model.get_video_features(pixels).context_embeds[0]
            for number, patch in enumerate(found.selected_patches):
                token = tokens[positions[patch]]
                if matching == "token":
                    scores = [cosine(token, text) for text in texts]
                    means = [np.mean([cosine(tokens[position], text) for position in positions]) for text in texts]
                    gains = np.subtract(scores, means)
                else:
                    without = [average] * 12
                    alone = [token if other == number else average for other in range(12)]
                    with_it, without_it = (
                        model.generator(torch.stack([*context, *patches])[None])[0] for patches in (alone, without)
                    )
                    scores = gains = [cosine(with_it, text) - cosine(without_it, text) for text in texts]
                shares = np.exp(np.array(scores) * float(model.logit_scale.exp()))
                best = int(np.argmax(shares))
                is_strong = shares[best] / shares.sum() >= 0.5 and gains[best] > 0
                assert found.matches[number] == (best if is_strong else NO_PHRASE)
                seen.add(int(found.matches[number]))
    assert len(seen) > 1  # otherwise the comparison is trivial


def test_scores_and_expected_captions(make_model, processor, shape_videos):
    model = make_model()
    captions = ["a red circle", "a blue star spins", "a small green ring", QUERY]
    found = explain_video(model, processor, shape_videos[1], f"  {QUERY}\n", captions, num_expected=3)
    assert found.query == QUERY and found.num_captions == 4
    with torch.inference_mode():
        features = model.get_video_features(inputs_of(processor, shape_videos[1]))
    texts = encode_texts(model, processor, captions)
    assert found.score == pytest.approx(cosine(texts[3], features.pooler_output[0]), abs=1e-5)
    wanted = sorted(
        (
            (cosine(text, features.pseudo_query_embeds[0]), caption)
            for text, caption in zip(texts, captions, strict=True)
        ),
        reverse=True,
    )
    assert [caption for caption, _ in found.expected] == [caption for _, caption in wanted[:3]]
    assert [value for _, value in found.expected] == pytest.approx([value for value, _ in wanted[:3]], abs=1e-5)
    assert found.query_cosine == pytest.approx(cosine(texts[3], features.pseudo_query_embeds[0]), abs=1e-5)


@pytest.mark.parametrize("framework", ["two_tower", "single_tower"])
def test_models_without_a_selector_return_attention_only(make_model, processor, shape_videos, tmp_path, framework):
    model = make_model(framework=framework)
    found = explain_video(model, processor, shape_videos[0], QUERY)
    assert found.attention.shape == (4, 4, 4) and found.selected_patches is None and found.matches is None
    with torch.inference_mode():
        inputs = processor(text=QUERY, videos=str(shape_videos[0]), return_tensors="pt")
        score = model(**inputs).logits_per_text / model.logit_scale.exp()
    assert found.score == pytest.approx(score.item(), abs=1e-5)
    draw_explanation(found, tmp_path / "picture.png")
    pixels = np.asarray(PIL.Image.open(tmp_path / "picture.png").convert("RGB"))
    assert not any(has_colour(pixels, colour) for colour in PHRASE_COLOURS)
    with pytest.raises(ValueError, match=f"a {framework} model, which generates no pseudo-query"):
        explain_video(model, processor, shape_videos[0], QUERY, captions=["a"])


def test_read_captions(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa  red circle\r\n\r\n日本\na red circle\n".encode())
    assert read_captions(path) == ["a red circle", "日本"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="captions.txt is not UTF-8 text"):
        read_captions(path)
    path.write_text(" \n")
    with pytest.raises(ValueError, match="holds no captions"):
        read_captions(path)


# drawing


def to_rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def has_colour(pixels: np.ndarray, colour: str) -> bool:
    return bool((pixels == to_rgb(colour)).all(axis=-1).any())


def plant_attention(model, planted: list[int], num_frames: int, patches: int) -> None:
    """Make the class token attend to these patches in the last layer, to the first of them most."""
    keys = torch.zeros(4 + num_frames * (1 + patches), model.config.vision_config.hidden_size)
    for rank, patch in enumerate(planted):
        frame, position = divmod(patch, patches)
        keys[4 + frame * (1 + patches) + 1 + position] = 2 - 0.1 * rank
    attention = model.vision_model.encoder.layers[-1].self_attn
    attention.q_proj.register_forward_hook(lambda module, args, output: torch.ones_like(output))
    attention.k_proj.register_forward_hook(lambda module, args, output: keys.expand_as(output))


@pytest.mark.parametrize(("num_frames", "patch_size"), [(1, 16), (20, 32)])
def test_outlines_lie_on_the_selected_patches(make_model, tokenizer, tmp_path, num_frames, patch_size):
    """Each frame has a unique colour, which locates it in the picture; pixels of other colours are outlines."""
    hues = [colorsys.hsv_to_rgb(frame / num_frames, 0.5, 0.6) for frame in range(num_frames)]
    frames = np.round(255 * np.array(hues)).astype(np.uint8)[:, None, None].repeat(64, axis=1).repeat(96, axis=2)
    video = write_video(tmp_path / "plain.mp4", frames, options={"crf": "1"})
    vision = {"image_size": 64, "patch_size": patch_size, "num_frames": num_frames}
    side = 64 // patch_size
    planted = [0, num_frames * side**2 - 2, side + 1]  # with the first and the last but one patch
    model = make_model(vision_config=vision, num_selected_patches=3)
    plant_attention(model, planted, num_frames, side**2)
    processor = PigProcessor(PigVideoProcessor(size={"height": 64, "width": 64}, num_frames=num_frames), tokenizer)

    found = explain_video(model, processor, video, "a red circle, a blue star")
    assert found.selected_patches.tolist() == planted
    found = replace(found, matches=np.array([1, NO_PHRASE, 0]))
    draw_explanation(found, tmp_path / "picture.png")
    pixels = np.asarray(PIL.Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)
    outlined = {}
    for frame in range(num_frames):
        own = np.abs(pixels - found.frames[frame].mean(axis=(0, 1))).max(axis=2) < 8
        ys, xs = (np.flatnonzero(own.sum(axis=axis) > 10) for axis in (1, 0))
        area = (slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1))
        height, width = own[area].shape
        assert width / height == pytest.approx(96 / 64, rel=0.05)  # aspect ratio of the video
        for patch in range(side**2):
            row, column = divmod(patch, side)
            cell = (
                slice(row * height // side + 1, (row + 1) * height // side - 1),
                slice(column * width // side + 1, (column + 1) * width // side - 1),
            )
            if (~own[area][cell]).mean() > 0.1:
                outlined[frame * side**2 + patch] = pixels[area][cell]
    assert sorted(outlined) == sorted(planted)
    assert has_colour(outlined[planted[0]], PHRASE_COLOURS[1])
    assert has_colour(outlined[planted[2]], PHRASE_COLOURS[0])
    assert not any(has_colour(outlined[planted[1]], colour) for colour in PHRASE_COLOURS)


def test_phrases_are_underlined_in_their_colour_and_dotted_without_a_patch(
    make_model, processor, shape_videos, tmp_path
):
    found = explain_video(make_model(), processor, shape_videos[0], "a red circle and a red circle's, a cat on mars")
    found = replace(found, matches=np.array([0, 0, NO_PHRASE, NO_PHRASE, NO_PHRASE]))
    draw_explanation(found, tmp_path / "picture.png")
    pixels = np.asarray(PIL.Image.open(tmp_path / "picture.png").convert("RGB"))[:80]  # above the frames
    lengths = []
    for colour in PHRASE_COLOURS[:5]:
        columns = np.flatnonzero((pixels == to_rgb(colour)).all(axis=2).any(axis=0))
        lengths.append((len(columns), columns[-1] - columns[0] + 1) if len(columns) else None)
    solid, *dotted, fifth = lengths
    assert solid[0] == solid[1] and len(dotted) == 3 and all(inked < 0.7 * length for inked, length in dotted)
    assert fifth is None


@pytest.mark.parametrize("name", ["picture.png", "folder/picture.PDF"])
def test_equal_explanations_give_equal_files(make_model, processor, shape_videos, tmp_path, name):
    found = explain_video(make_model(), processor, shape_videos[0], QUERY, ["a red circle", "$a_{b"])
    contents = []
    for _ in range(2):
        draw_explanation(found, tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert contents[0].startswith(b"\x89PNG\r\n" if name.endswith("png") else b"%PDF-")


@pytest.mark.filterwarnings("ignore:Glyph")  # glyphs that the font lacks are drawn as boxes
@pytest.mark.parametrize(
    "query",
    [
        "$\\frac{a}{ $5 and $6 \\n %s {y}",
        "w" * 400,
        "红色的圆圈\x07 \u202e <b>",
        ", ".join(map("thing {}".format, range(12))),
    ],
)
def test_any_text_can_be_drawn(make_model, processor, shape_videos, tmp_path, query):
    # The picture of one frame is narrow.
    found = explain_video(make_model(), processor, shape_videos[0], query, [query], num_frames=1)
    draw_explanation(found, tmp_path / "picture.png")
    pixels = np.asarray(PIL.Image.open(tmp_path / "picture.png").convert("L"))
    assert (pixels[:, -8:] == 255).all()  # the text ends before the edge


# the command line


def test_invalid_arguments(make_model, processor, shape_videos, tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="99 frames"):
        explain_video(model, processor, shape_videos[0], QUERY, num_frames=99)
    found = explain_video(model, processor, shape_videos[0], QUERY)
    with pytest.raises(ValueError, match="written as .png or .pdf"):
        draw_explanation(found, tmp_path / "picture")


@pytest.fixture
def pig_explain(model_folder, shape_videos, tmp_path, monkeypatch):
    """Run `pig explain` in a temporary folder with valid arguments, some of which are replaced."""
    monkeypatch.chdir(tmp_path)

    def run(video=shape_videos[0], query=QUERY, model=model_folder, output="picture.png", captions=None):
        arguments = ["explain", str(video), query, "--model", model, "--output", output]
        result = CliRunner().invoke(app, arguments + (["--captions", captions] if captions else []))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def test_pig_explain_writes_the_picture_and_prints_captions(pig_explain, tmp_path):
    (tmp_path / "captions.txt").write_text("a red circle\na blue star\n")
    result = pig_explain(captions="captions.txt", output="new/picture.pdf")
    assert result.exit_code == 0, result.stderr
    *captions, last = result.stdout.splitlines()
    assert sorted(line.split("  ")[1] for line in captions) == ["a blue star", "a red circle"]
    assert last == "picture: new/picture.pdf" and (tmp_path / "new/picture.pdf").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": "missing.mp4"}, "missing.mp4: no such file"),
        ({"query": " "}, "The query is empty"),
        ({"model": "./missing"}, "no model folder ./missing"),
        ({"output": "picture.svg"}, "picture.svg ends in .svg"),
        ({"captions": "missing.txt"}, "missing.txt"),
        ({"model": "two", "captions": "captions.txt"}, "generates no pseudo-query"),
    ],
)
def test_errors_of_pig_explain(pig_explain, make_model, processor, tmp_path, changes, message):
    (tmp_path / "captions.txt").write_text("a red circle\n")
    if changes.get("model") == "two":
        make_model(framework="two_tower").save_pretrained("two")
        processor.save_pretrained("two")
    result = pig_explain(**changes)
    assert_one_line_error((result.exit_code, result.stdout, result.stderr), message)
    assert not list(tmp_path.glob("picture*"))


# the examples


def run_example(folder: Path, script: str, *arguments) -> subprocess.CompletedProcess:
    return warm_python().run([ROOT / "examples" / script, *arguments], cwd=folder)


def test_example_visualize_tokens(model_folder, shape_videos, tmp_path):
    done = run_example(
        tmp_path, "visualize_tokens.py", shape_videos[0], QUERY, "--model", model_folder, "--output", "tokens.png"
    )
    assert done.returncode == 0 and done.stdout == "picture: tokens.png\n", done.stderr
    assert (tmp_path / "tokens.png").stat().st_size > 10_000


def test_example_check_selection(model_folder, tmp_path):
    arguments = ["--model", model_folder, "--recipe", DEMO, "--json", "figures.json", "data.videos=videos"]
    arguments += ["data.options.train=1", "data.options.validation=1", "data.options.test=3"]
    done = run_example(tmp_path, "check_selection.py", *arguments)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "figures.json").read_text())
    figures = record["figures"]
    assert record["num_videos"] == 3 and figures["all patches on an object"]["patches"] == 3 * 4 * 16
    masks = [draw_masks(make_scene("test", index))[:, [0, 7, 15, 23]].max(axis=0) / 255 for index in range(3)]
    wanted = 100 * np.mean(masks)  # at overlapping edges the two measures differ
    assert figures["area of objects in all patches"]["percent"] == pytest.approx(wanted, abs=0.3)
    assert figures["token: selected patches coloured"]["patches"] == 3 * 5
    assert "area of objects in selected patches" in done.stdout and "3 videos" in done.stdout


def test_coverage_of_patches_equals_the_mean_of_the_masks():
    scene = make_scene("test", 5)  # three shapes
    frames = [0, 23]
    masks = draw_masks(scene)[:, frames] / 255
    coverage = cover_patches(scene, frames, 4, 7)
    assert coverage.shape == (len(scene.shapes), 2 * 4 * 7)
    on_top = masks[-1].repeat(7, axis=2)  # (2, 96, 7 * 96): no shape covers the last one
    for frame in range(2):
        for row in range(4):
            for column in range(7):
                cell = on_top[frame, 24 * row : 24 * (row + 1), 96 * column : 96 * (column + 1)]
                assert coverage[-1, frame * 28 + row * 7 + column] == pytest.approx(cell.mean())
    assert (coverage.sum(axis=0) <= 1 + 1e-9).all()
