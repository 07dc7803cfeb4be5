"""Train and evaluate the runs of a comparison: one small CLIP per regime, and from it every framework and seed.

Interrupted runs resume.
"""

import json
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from modeling_pig import PigForRetrieval, PigProcessor, load_benchmark
from modeling_pig.benchmarks.moving_shapes import Regime, retrieval_ceiling
from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.evaluation.report import result_record
from modeling_pig.files import replace_folder, write_text
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import ModelRecipe, Recipe
from modeling_pig.training.run_folder import RunFolder
from modeling_pig.training.start import build_model, save_as_clip

from .oracle import rank_by_other_captions
from .variants import FRAMEWORKS, Variant


@dataclass(frozen=True)
class Settings:
    """Settings of a comparison: a file of `configuration/comparison`, whose comments explain the fields."""

    clip: Path
    run: Path
    regimes: dict[str, dict[str, Any]]
    control: str
    learning_rates: list[float]
    choice_seed: int
    exploration_seeds: list[int]
    longer_epochs: int
    clip_seeds: list[int]
    seeds: list[int]
    rerank: list[int]
    galleries: list[int]
    measured_bytes: int
    overrides: list[str] = field(default_factory=list)
    clip_overrides: list[str] = field(default_factory=list)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Settings":
        """Read a YAML file.

        Raises:
            ValueError: the file cannot be read, or a field is missing or unknown.
        """
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"The settings {path} cannot be read: {error.strerror}.") from error
        known = {f.name for f in fields(cls)}
        optional = {"overrides", "clip_overrides"}
        if wrong := (known - optional - tree.keys()) | (tree.keys() - known):
            raise ValueError(f"The settings {path} have missing or unknown fields: {', '.join(sorted(wrong))}.")
        for name in ("clip", "run"):
            tree[name] = Path(path).parent / tree[name]
        return cls(**tree)


class LoadedRun(NamedTuple):
    """Model, processor and recipe of a finished run."""

    model: PigForRetrieval
    processor: PigProcessor
    recipe: Recipe


Found = dict[str, dict]  # split -> metrics


class Workspace:
    """Folders of a comparison.

    `output/regimes/REGIME/` holds one folder per CLIP and one run folder per variant, learning rate and seed; videos
    are drawn into `data`.

    Args:
        settings (`Settings`): settings of the comparison.
        output (`str` or `Path`): folder of all runs.
        data (`str` or `Path`): folder of the videos.
    """

    def __init__(self, settings: Settings, output: str | Path, data: str | Path):
        self.settings, self.output, self.data = settings, Path(output), Path(data)

    def recipe(self, regime: str, still: bool, overrides: list[str]) -> Recipe:
        """Return the recipe of a run on the regime's stills or videos; regimes of equal scenes share videos."""
        path = self.settings.clip if still else self.settings.run
        fields_of_regime = self.settings.regimes[regime]
        of_clip = self.settings.clip_overrides if still else []
        recipe = Recipe.from_yaml(path, [*self.settings.overrides, *of_clip, *overrides])
        recipe.data.options |= {**fields_of_regime["options"], "still": still}
        drawn = self.regime(recipe)
        counts = "-".join(map(str, drawn.shapes))
        kind = "_still" if still else "_in_turn" if drawn.in_turn else ""
        kind += "" if drawn.salient is None else f"_salient_{drawn.salient}"
        folder = self.data / f"{counts}_shapes_scale_{drawn.scale}{kind}"
        recipe.data.videos = str(folder)
        if recipe.data.frame_cache is not None:
            recipe.data.frame_cache = str(folder / ".frames")
        return recipe

    @staticmethod
    def regime(recipe: Recipe) -> Regime:
        """Return the options of a recipe's scenes and captions."""
        names = {f.name for f in fields(Regime)}
        options = {name: value for name, value in recipe.data.options.items() if name in names}
        return Regime(**{**options, "shapes": tuple(options.get("shapes", Regime().shapes))})

    def clip(self, regime: str, seed: int) -> Path:
        """Return the folder of one of the regime's CLIPs; train it on stills if it does not exist."""
        parent = self.output / "regimes" / regime / f"clip{seed}"
        folder = parent / "clip"
        if not folder.exists():
            recipe = self.recipe(regime, still=True, overrides=[f"training.seed={seed}"])
            start = parent / "start"
            if not start.exists():
                # The vocabulary includes the words of motions, which no caption of a still contains.
                videos = self.recipe(regime, still=False, overrides=[])
                captions = [*split_of(recipe, "train")["captions"], *split_of(videos, "train")["captions"]]
                torch.manual_seed(recipe.training.seed)
                model, processor = build_model(recipe.model, captions)
                with replace_folder(start) as partial:
                    model.save_pretrained(partial)
                    processor.save_pretrained(partial)
            recipe.model = ModelRecipe(init="pig", checkpoint=str(start))
            print(f"--- {parent}", flush=True)
            train(recipe, parent / "run", resume=True)
            model, processor = load_pretrained(FRAMEWORKS["two_tower"].model_class, str(parent / "run/model"))
            with replace_folder(folder) as partial:
                save_as_clip(model, processor, partial)
        return folder

    def run(
        self,
        regime: str,
        variant: Variant,
        seed: int,
        learning_rate: float,
        splits: tuple[str, ...],
        epochs: int | None = None,
    ) -> Found:
        """Train a variant from one of the regime's CLIPs unless it is trained.

        The seeds alternate between the CLIPs. `epochs` replaces the number of epochs of the settings.

        Returns:
            `dict[str, dict]`: split -> metrics; the validation split also has `curve`, the text-to-video metrics by
            step.
        """
        folder = self.run_folder(regime, variant, seed, learning_rate, epochs)
        clips = self.settings.clip_seeds
        overrides = [
            f"training.seed={seed}",
            f"optimizer.learning_rate={learning_rate}",
            "evaluation.test=false",
            f"model.clip={self.clip(regime, clips[seed % len(clips)])}",
        ]
        overrides += [] if epochs is None else [f"training.epochs={epochs}"]
        recipe = self.recipe(regime, still=False, overrides=overrides)
        recipe.model.overrides = {**recipe.model.overrides, **variant.fields}
        print(f"--- {folder}", flush=True)
        with variant.patch_training():
            train(recipe, folder, resume=True)
        shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)  # only an unfinished run needs checkpoints
        figures_file = folder / "figures.json"
        figures = read_json(figures_file) if figures_file.exists() else {}
        for split in splits:
            if split not in figures:
                figures[split] = self._evaluate(variant, folder, recipe, split)
                write_json(figures_file, figures)
        validations = [line for line in RunFolder(folder).metrics() if "validation" in line]
        curve = {str(line["step"]): line["validation"]["text_to_video"] for line in validations}
        figures["validation"]["curve"] = curve
        return {split: figures[split] for split in splits}

    def _evaluate(self, variant: Variant, folder: Path, recipe: Recipe, split: str) -> dict:
        name = str(folder / "model")
        model, processor = load_pretrained(variant.model_class, name)
        encoder = PigEncoder(model, processor, name, model_fingerprint(name))
        rows = split_of(recipe, split)
        figures: dict[str, Any] = {}
        for rerank in self.settings.rerank if variant.can_rerank else [None]:
            found = evaluate(
                encoder,
                rows,
                batch_size=recipe.evaluation.batch_size,
                max_text_tokens=recipe.data.max_text_tokens,
                num_bootstrap=1000 if split == "test" else 0,
                rerank=rerank,
            )
            record = result_record(found, encoder, split, recipe.to_dict(), rows.info.description).to_dict()
            figures |= {f"reranked_{rerank}": record.pop("text_to_video_reranked")} if rerank else {}
            figures |= record
        if variant.framework == "single_tower":
            figures["oracle"] = rank_by_other_captions(encoder, list(rows), recipe.data.max_text_tokens)
        return figures

    def run_all(
        self,
        regime: str,
        variants: dict[str, Variant],
        seeds: list[int],
        learning_rates: dict[str, float],
        splits: tuple[str, ...],
    ) -> dict[str, dict[str, dict[int, dict]]]:
        """Call [`run`] for all variants and seeds; return the metrics by split, variant and seed.

        A variant that re-ranks also has an entry `NAME, best N re-ranked` for each number of videos, and
        `single_tower` an entry `single_tower, oracle`, see [`rank_by_other_captions`].
        """
        further = {f"reranked_{count}": f"best {count} re-ranked" for count in self.settings.rerank}
        further["oracle"] = "oracle"
        found: dict[str, dict[str, dict[int, dict]]] = {split: {} for split in splits}
        for seed in seeds:
            for name, variant in variants.items():
                rate = learning_rates[variant.framework]
                for split, metrics in self.run(regime, variant, seed, rate, splits).items():
                    found[split].setdefault(name, {})[seed] = metrics
                    for key, row in further.items():
                        if key in metrics:
                            found[split].setdefault(f"{name}, {row}", {})[seed] = {"text_to_video": metrics[key]}
        return found

    def tune(self, regime: str, framework: str) -> dict[float, dict]:
        """Train a framework with each learning rate and the seed of the choice; return the validation metrics."""
        seed, variant = self.settings.choice_seed, FRAMEWORKS[framework]
        return {
            rate: self.run(regime, variant, seed, rate, ("validation",))["validation"]
            for rate in self.settings.learning_rates
        }

    def run_folder(
        self, regime: str, variant: Variant, seed: int, learning_rate: float, epochs: int | None = None
    ) -> Path:
        """Return the folder of a run."""
        longer = "" if epochs is None else f"-epochs{epochs}"
        return self.output / "regimes" / regime / f"{variant.name}-rate{learning_rate:g}-seed{seed}{longer}"

    def load(self, regime: str, variant: Variant, seed: int, learning_rate: float) -> LoadedRun:
        """Load a finished run.

        Raises:
            ValueError: the run is not finished.
        """
        folder = self.run_folder(regime, variant, seed, learning_rate)
        if not RunFolder(folder).finished_file.exists():
            raise ValueError(f"There is no finished run in {folder}: run --phase compare first.")
        model, processor = load_pretrained(variant.model_class, str(folder / "model"))
        return LoadedRun(model, processor, Recipe.from_yaml(folder / "recipe.yaml"))

    def ceiling(self, regime: str, split: str) -> dict[str, float]:
        """Return the highest possible recall, in per cent: some captions fit several videos."""
        recipe = self.recipe(regime, still=False, overrides=[])
        found = retrieval_ceiling(split_of(recipe, split))
        return {name: 100 * found[name] for name in ("R@1", "R@5", "R@10")}


def split_of(recipe: Recipe, split: str) -> Any:
    """Load a split of a recipe's benchmark."""
    data = recipe.data
    return load_benchmark(data.benchmark, videos=data.videos, **data.options)[split]


def write_json(path: Path, content: Any) -> None:
    """Write JSON; an interrupted call leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
