"""The model card: all numbers come from the run, values are never markup, and no folder of the machine is shown."""

import copy
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from markdown_it import MarkdownIt
from transformers.pipelines import get_supported_tasks

from modeling_pig import PigForRetrieval, load_benchmark
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.evaluation.records import EvaluationRecord, MtebRecord
from modeling_pig.evaluation.report import result_record
from modeling_pig.publishing.model_card import make_eval_results, make_model_card
from modeling_pig.publishing.run_records import RunRecords, read_run, without_folders
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import Recipe
from modeling_pig.training.records import EfficiencyRecord, ValidationRecord

from .test_training import DEMO, ROOT, tiny_run


HOSTILE = [
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/pixel.png)",
    "a | b | `code` ```",
    "a\n```\n\n<script>alert(1)</script>\n" + "long " * 30 + "``` <script>",
    "x: [y, {z}] # & *a !!python/object:os.system '\"",
    "line\n---\nlicense: stolen\n---\n# Title",
    "{{ 7 * 7 }} {% raw %}",
    "https://evil.example www.evil.example <https://evil.example>",
]


MTEB = {
    **{"model": "model", "model_revision": None, "model_fingerprint": "0123456789abcdef", "model_kind": "pig"},
    **{"num_frames": 2, "device": "cpu", "dtype": "float32", "versions": {"torch": "2.14"}, "date": "2026-01-01"},
    "results": [
        {
            **{"task_name": "ShapesT2V", "dataset": "org/shapes", "dataset_revision": "1", "mteb_version": "2.26.24"},
            **{"category": "t2v", "main_metric": "ndcg_at_10"},
            "scores": {
                "test": [
                    {"hf_subset": "default", "main_score": 0.4567, "recall_at_1": 0.25, "recall_at_5": 0.5}
                    | {"recall_at_10": 0.625, "map_at_1": 0.25}
                ]
            },
        }
    ],
}


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory) -> Path:
    """Return a run folder with its evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    train(Recipe.from_yaml(DEMO, tiny_run(videos)), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def model(run) -> PigForRetrieval:
    return PigForRetrieval.from_pretrained(run / "model").eval()


@pytest.fixture
def records(run) -> RunRecords:
    return read_run(run)


@pytest.fixture(scope="module")
def dual_softmax(run) -> EvaluationRecord:
    """Evaluate the run with dual softmax."""
    recipe = Recipe.from_yaml(run / "recipe.yaml")
    split = load_benchmark("moving_shapes", videos=recipe.data.videos, **recipe.data.options)["test"]
    encoder = load_encoder(str(run / "model"), dtype="float32")
    evaluation = evaluate(encoder, split, dual_softmax=True, num_bootstrap=50, progress=False)
    return result_record(evaluation, encoder, "test", recipe.to_dict(), split.info.description)


def tables(card: ModelCard, section: str) -> list[list[list[str]]]:
    """Return the tables of a section, as rows of cells without Markdown's escapes."""
    text = card.text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in block.splitlines()]
        found.append([[re.sub(r"\\(.)", r"\1", cell).strip() for cell in row] for row in rows[2:]])
    return found


def numbers(value) -> set[str]:
    """Return all numbers of a record in the format of the card."""
    if isinstance(value, dict):
        return set().union(*map(numbers, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers, value))
    return {f"{value:,.1f}"} if isinstance(value, float) else set()


def facts_of(records, model) -> dict[str, str]:
    """Return the first table of the card."""
    text = make_model_card(records, model, "org/name").text.split("\n## ")[0]
    return dict(re.findall(r"^\| (.+) \| (.+) \|$", text.replace("\\", ""), re.MULTILINE))


class Elements(HTMLParser):
    """Elements, addresses and text of a rendered page."""

    def __init__(self, markdown: str):
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(MarkdownIt("commonmark", {"linkify": False}).enable("table").render(markdown))

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("href", "src")]
        assert all(name in ("href", "src", "alt", "class", "style") for name, _ in attributes), attributes

    def handle_data(self, data) -> None:
        self.text += data


# --- numbers


def test_all_numbers_of_the_tables_come_from_the_evaluation(records, model):
    test = records.test
    (rows,) = tables(make_model_card(records, model, "org/name"), "Evaluation")
    assert [row[0] for row in rows] == ["R@1", "R@5", "R@10", "R@50", "MdR", "MnR"]
    for name, *cells in rows:
        for direction, cell in zip(("text_to_video", "video_to_text"), cells, strict=True):
            low, high = test.intervals_95[direction][name]
            assert cell == f"{getattr(test, direction)[name]:,.1f} [{low:,.1f}, {high:,.1f}]"
            assert set(re.findall(r"[\d.,]*\d", cell)) <= numbers(test.to_dict())

    test.video_to_text["R@5"] = 12.34
    changed = make_model_card(records, model, "org/name")
    assert tables(changed, "Evaluation")[0][1][2].startswith("12.3 [")
    assert any(result.metric_value == 12.34 for result in changed.data.eval_results)


def test_the_card_describes_the_evaluation_protocol(records, model):
    records.test.failures = ["video9: its file is missing"]
    records.test.num_videos_in_split = 7
    text = make_model_card(records, model, "org/name").text
    assert "24 queries, 6 of 7 videos; captions are cut at 77 tokens." in text
    assert "left out with their captions: 1." in text
    assert "gets the mean rank of the tied results under random order" in text
    assert "95 % interval over the choice of test videos (1,000 bootstrap samples, seed 0)" in text
    assert "Two thirds of the test videos are near-twins" in text
    for ties, words in (("optimistic", "the best rank of the tied"), ("pessimistic", "the worst rank of the tied")):
        records.test.ties = ties
        assert words in make_model_card(records, model, "org/name").text

    records.test.intervals_95 = None
    card = make_model_card(records, model, "org/name")
    assert "Intervals were not computed." in card.text and "bootstrap" not in card.text
    assert all("[" not in cell for row in tables(card, "Evaluation")[0] for cell in row)


def test_dual_softmax_has_a_separate_table(records, dual_softmax, model):
    plain = tables(make_model_card(records, model, "org/name"), "Evaluation")
    records.test = dual_softmax
    card = make_model_card(records, model, "org/name")
    first, second = tables(card, "Evaluation")
    assert [row[1].split()[0] for row in first] == [row[1].split()[0] for row in plain[0]]
    values = dual_softmax.text_to_video_dual_softmax.values()
    assert [row[1].split()[0] for row in second] == [f"{value:,.1f}" for value in values]
    assert card.text.index("With dual softmax, which needs all queries at once") < card.text.index(second[0][1][:4], 1)
    reread = ModelCard(str(card)).data.eval_results
    named = {result.metric_type: result.metric_name for result in reread}
    assert len(named) == 4 * 6  # no two results share a name
    assert all(("dual_softmax" in kind) == ("with dual softmax" in name) for kind, name in named.items())


def test_a_run_without_evaluation_is_marked_not_evaluated(records, model):
    records.test = None
    card = make_model_card(records, model, "org/name")
    assert "**not evaluated**" in card.text and tables(card, "Evaluation") == []
    assert "model-index" not in card.data.to_dict() and "R@" not in card.text


def test_results_of_mteb_have_a_separate_table(records, model):
    [before] = tables(make_model_card(records, model, "org/name"), "Evaluation")
    records.mteb = MtebRecord(**copy.deepcopy(MTEB))
    card = make_model_card(records, model, "org/name")
    first, second = tables(card, "Evaluation")
    assert first == before
    assert second == [["ShapesT2V", "test", "45.7 (ndcg_at_10)", "25.0", "50.0", "62.5"]]
    assert "the package `mteb` 2.26.24" in card.text and "cpu in float32 with torch 2.14" in card.text
    found = [result for result in ModelCard(str(card)).data.eval_results if result.dataset_type == "org/shapes"]
    values = {result.metric_type: result.metric_value for result in found}
    assert values == {"ndcg_at_10": 45.67, "recall_at_1": 25.0, "recall_at_5": 50.0, "recall_at_10": 62.5}
    assert {(result.task_type, result.dataset_name) for result in found} == {
        ("text-to-video-retrieval", "MTEB ShapesT2V")
    }
    records.test = None  # each part is shown without the other one
    assert tables(make_model_card(records, model, "org/name"), "Evaluation") == [second]
    records.mteb.results[0].task_name = "<script> | `a`"
    assert "script" not in Elements(make_model_card(records, model, "org/name").text).tags


def test_latency_is_shown_if_it_was_measured(records, model):
    card = make_model_card(records, model, "org/name")
    assert "Latency was not measured." in card.text and tables(card, "Efficiency") == []
    records.efficiency = EfficiencyRecord(
        **{"text_ms": 12.34, "video_ms": 567.89, "num_tokens": 7, "num_frames": 2, "frame_size": "320 x 240 pixels"},
        **{"num_runs": 20, "device": "A Processor", "num_threads": 1, "dtype": "float32", "torch": "2.14"},
        model_fingerprint="0123456789abcdef",
    )
    card = make_model_card(records, model, "org/name")
    assert [row[1] for row in tables(card, "Efficiency")[0]] == ["12.3", "567.9"]
    assert "Measured on A Processor, threads: 1" in card.text


def test_sizes_are_read_from_the_model(records, model, make_model):
    facts = facts_of(records, model)
    assert facts["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert facts["video"] == "2 frames of 32 pixels, in patches of 16"
    assert facts["embedding of a video in an index"] == "128 bytes (float32)"
    single = facts_of(records, make_model(framework="single_tower"))
    assert single["framework"] == "single_tower" and "embedding of a video in an index" not in single


def test_training_is_described_from_the_records(records, model):
    text = make_model_card(records, model, "org/name").text
    assert "length: 2 epochs, 4 steps" in text and "processes: 1" in text
    best = max(
        (record for record in records.metrics if isinstance(record, ValidationRecord)),
        key=lambda record: sum(record.validation.text_to_video[f"R@{k}"] for k in (1, 5, 10)),
    )
    assert f"the model of epoch {best.epoch}" in text
    assert f"transformers {records.environment[0].packages['transformers']}" in text
    records.environment, records.metrics = [], []
    text = make_model_card(records, model, "org/name").text
    assert "hardware" not in text and "epochs, " not in text


# --- metadata


def test_the_metadata_reads_back_unchanged(records, model):
    card = make_model_card(records, model, "org/name", license="apache-2.0", dataset="org/shapes", has_code=True)
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict() and again.text == card.text
    data = card.data.to_dict()
    assert data["pipeline_tag"] in get_supported_tasks()
    assert data["license"] == "apache-2.0" and data["library_name"] == "transformers"
    assert data["datasets"] == ["org/shapes"] and "base_model" not in data
    assert data["model-index"][0]["results"][0]["dataset"]["args"] == records.recipe["data"]["options"]
    by_type = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert by_type["text_to_video_recall_at_1"] == round(records.test.text_to_video["R@1"], 2)
    assert by_type["video_to_text_mean_rank"] == round(records.test.video_to_text["MnR"], 2)
    assert make_model_card(records, model, "org/name").data.library_name == "modeling-pig"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ({"init": "clip", "clip": "openai/clip-vit-base-patch32"}, "openai/clip-vit-base-patch32"),
        ({"init": "pig", "checkpoint": "org/pig-msrvtt"}, "org/pig-msrvtt"),
        ({"init": "pig", "checkpoint": "model"}, None),  # the last part of a path
        ({"init": "clip", "clip": "tests/golden"}, None),  # an existing folder
        ({"init": "scratch"}, None),
    ],
)
def test_the_base_model_comes_from_the_recipe(records, model, monkeypatch, start, expected):
    monkeypatch.chdir(ROOT)
    records.recipe["model"] |= start
    card = make_model_card(records, model, "org/name")
    assert card.data.base_model == expected
    assert ("from random weights" in card.text) == (start["init"] == "scratch")


def test_evaluation_results_as_yaml(records, dual_softmax):
    test = records.test
    entries = parse_eval_result_entries(yaml.safe_load(make_eval_results(test, "org/shapes")))
    assert {entry.dataset_id for entry in entries} == {"org/shapes"} and len(entries) == 2 * 6
    values = {entry.task_id: entry.value for entry in entries}
    assert values["text_to_video_recall_at_5"] == round(test.text_to_video["R@5"], 2)
    assert entries[0].date == test.date
    low, high = test.intervals_95["text_to_video"]["R@1"]
    expected = f"24 queries, 6 of 6 videos; ties: expected; 95 % interval [{low:,.1f}, {high:,.1f}]"
    assert entries[0].notes == f"Text-to-video R@1; {expected}"
    dual = parse_eval_result_entries(yaml.safe_load(make_eval_results(dual_softmax)))
    assert len({entry.task_id for entry in dual}) == 4 * 6
    assert all(("dual_softmax" in entry.task_id) == ("dual softmax" in entry.notes) for entry in dual)


# --- markup and folders


@pytest.mark.parametrize("hostile", HOSTILE)
def test_values_of_a_run_are_never_markup(records, model, hostile):
    clean = make_model_card(records, model, "org/name", license="apache-2.0", figures=["curves.png"])
    records = copy.deepcopy(records)
    records.recipe["data"]["benchmark"] = hostile
    records.recipe["data"]["options"] = {hostile: [hostile, {hostile: hostile}]}
    records.recipe["model"] |= {"init": "clip", "clip": hostile}
    names = dict.fromkeys(("benchmark", "split", "device", "dtype", "date"), hostile)
    names |= {"protocol": f"{hostile}\n\n- {hostile}", "versions": {hostile: hostile}, "options": {hostile: hostile}}
    records.test = records.test.model_copy(update=names)
    start = {"device": hostile, "git_revision": hostile, "packages": {hostile: hostile}}
    records.environment[0] = records.environment[0].model_copy(update=start)
    card = make_model_card(records, model, "org/name", license=hostile, figures=["curves.png"])

    expected, seen = Elements(clean.text), Elements(card.text)
    assert seen.tags <= expected.tags | {"em"} and "script" not in seen.tags
    assert sorted(seen.addresses) == sorted(expected.addresses)
    assert " ".join(hostile.split()) in " ".join(seen.text.split())
    assert [len(row) for row in tables(card, "Evaluation")[0]] == [3] * 6
    data = ModelCard(str(card)).data
    assert data.license == hostile and data.datasets == [" ".join(hostile.split())]
    assert data.eval_results[0].dataset_args == {hostile: hostile} and data.base_model is None
    assert data.to_dict().keys() == clean.data.to_dict().keys()
    entries = parse_eval_result_entries(yaml.safe_load(make_eval_results(records.test)))
    assert entries[0].dataset_id == " ".join(hostile.split())


@pytest.mark.parametrize("name", ["a/b/c", 'org/x"); import os #'])
def test_invalid_names_of_a_repository_are_refused(records, model, name):
    with pytest.raises(ValueError, match="Repo id"):
        make_model_card(records, model, name)


def test_folders_of_the_machine_are_left_out(run, records):
    text = str(records)
    for folder in {str(run.parent), str(run.parent.resolve()), str(Path.home()), str(ROOT)}:
        assert len(Path(folder).parts) < 3 or folder not in text
    assert records.recipe["data"]["videos"] == "videos" and records.test.model == "model"
    assert all("command" not in start.to_dict() for start in records.environment)
    assert records.test.to_dict()["recipe"] == records.recipe


def test_absolute_paths_become_names():
    names = {
        "/home/ada/videos": "videos",
        "/data/": "data",
        "~/videos": "videos",
        "/home/ada/a.mp4: cannot be decoded": "a.mp4: cannot be decoded",
        "data.videos=/home/ada/x": "data.videos=x",
        "see file:///home/ada/x.txt": "see x.txt",
        r"C:\Users\ada\a.mp4 is missing": "a.mp4 is missing",
        "in /media/My Disk/videos/a.mp4.": "in a.mp4.",
    }
    others = ["openai/clip-vit-base-patch32", "https://arxiv.org/abs/2509.04773", "R@1/R@5 and/or 3 / 4"]
    for text, expected in (names | dict(zip(others, others, strict=True))).items():
        value = without_folders({text: [text, 1, None]}, ["/media/My Disk/videos"])
        assert value == {expected: [expected, 1, None]}


def test_a_recipe_without_folders_is_a_valid_recipe(records, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(records.recipe))
    assert Recipe.from_yaml(tmp_path / "recipe.yaml").to_dict() == records.recipe


def test_folders_without_a_readable_run_are_refused(tmp_path, run):
    with pytest.raises(ValueError, match="is not a run folder: it has no recipe.yaml"):
        read_run(tmp_path)
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    assert read_run(tmp_path).test is None
    (tmp_path / "test.json").write_text("{")
    with pytest.raises(ValueError, match=r"test\.json is not JSON .*: restore the file, or remove it"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("test.json", lambda test: [1], "the record: Input should be a valid dictionary"),
        ("test.json", lambda test: {key: test[key] for key in test if key != "ties"}, "ties: Field required"),
        ("test.json", lambda test: test | {"ties": "random"}, "ties: Input should be 'expected', 'optimistic' or"),
        ("test.json", lambda test: test | {"recipe": {"data": {}}}, "recipe.data.max_text_tokens: Field required"),
        ("metrics.jsonl", lambda _: {"validation": {}}, "epoch: Field required"),
        ("environment.json", lambda starts: starts[0], "the record: Input should be a valid list"),
        ("environment.json", lambda _: [{}], "0.date: Field required"),
        ("efficiency.json", lambda _: {}, "model_fingerprint: Field required"),
        ("mteb.json", lambda _: MTEB | {"results": [{}]}, "results.0.task_name: Field required"),
    ],
)
def test_invalid_records_name_file_and_field(tmp_path, run, name, change, message):
    shutil.copy(run / "recipe.yaml", tmp_path)
    before = json.loads((run / name).read_text()) if name in ("test.json", "environment.json") else None
    (tmp_path / name).write_text(json.dumps(change(before)))
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path / name))}.*{re.escape(message)}") as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value) and "; restore the file, or remove it" in str(caught.value)
