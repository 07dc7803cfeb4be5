"""The runs of a comparison: a small CLIP a regime, and from it every framework with every seed. All of it resumes."""

import json
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml

from modeling_pig import load_benchmark
from modeling_pig.benchmarks.moving_shapes import Regime, retrieval_ceiling
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.evaluation.evaluator import evaluate
from modeling_pig.evaluation.report import result_record
from modeling_pig.training.loop import train
from modeling_pig.training.recipe import ModelRecipe, Recipe
from modeling_pig.training.run_folder import RunFolder
from modeling_pig.training.start import build_model, save_as_clip

from .variants import FRAMEWORKS, Variant


@dataclass(frozen=True)
class Settings:
    """What is compared, on which data, how often: a file of `configuration/comparison`, which explains the fields."""

    clip: Path
    run: Path
    regimes: dict[str, dict[str, Any]]
    regime_seeds: list[int]
    seeds: list[int]
    variant_seeds: list[int]
    galleries: list[int]
    measured_bytes: int
    clear_gap: float
    overrides: list[str] = field(default_factory=list)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Settings":
        """Reads a file; raises `ValueError` if it cannot be read, or a field is missing or unknown."""
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"The settings {path} cannot be read: {error.strerror}.") from error
        known = {f.name for f in fields(cls)}
        if wrong := (known - {"overrides"} - tree.keys()) | (tree.keys() - known):
            raise ValueError(f"The settings {path} lack or do not know: {', '.join(sorted(wrong))}.")
        for name in ("clip", "run"):
            tree[name] = Path(path).parent / tree[name]
        return cls(**tree)


class Workplace:
    """Where the runs of a comparison are: `output/regimes/REGIME/` holds `clip/` and a run folder a variant and seed;
    the videos are drawn into `data`."""

    def __init__(self, settings: Settings, output: str | Path, data: str | Path):
        self.settings, self.output, self.data = settings, Path(output), Path(data)

    def recipe(self, regime: str, still: bool, overrides: list[str]) -> Recipe:
        """The recipe of a run on the regime's stills or videos. Regimes that draw the same share their videos."""
        path = self.settings.clip if still else self.settings.run
        chosen = self.settings.regimes[regime]
        more = chosen.get("clip_overrides" if still else "overrides", [])
        recipe = Recipe.from_yaml(path, [*self.settings.overrides, *more, *overrides])
        recipe.data.options |= {**chosen["options"], "still": still}
        drawn = self.regime(recipe)
        counts = "-".join(map(str, drawn.shapes))
        kind = "_still" if still else "_in_turn" if drawn.in_turn else ""
        folder = self.data / f"{counts}_shapes_scale_{drawn.scale}{kind}"
        recipe.data.videos = str(folder)
        if recipe.data.frame_cache is not None:
            recipe.data.frame_cache = str(folder / ".frames")
        return recipe

    @staticmethod
    def regime(recipe: Recipe) -> Regime:
        names = {f.name for f in fields(Regime)}
        options = {name: value for name, value in recipe.data.options.items() if name in names}
        return Regime(**{**options, "shapes": tuple(options.get("shapes", Regime().shapes))})

    def clip(self, regime: str) -> Path:
        """The folder of the regime's CLIP, trained on stills if it is not there yet."""
        place = self.output / "regimes" / regime / "clip"
        folder = place / "clip"
        if not folder.exists():
            recipe = self.recipe(regime, still=True, overrides=[])
            start = place / "start"
            if not start.exists():
                # The vocabulary has the words for motions too, as that of every CLIP; no caption of a still has them.
                videos = self.recipe(regime, still=False, overrides=[])
                captions = [*split_of(recipe, "train")["captions"], *split_of(videos, "train")["captions"]]
                torch.manual_seed(recipe.training.seed)
                model, processor = build_model(recipe.model, captions)
                aside = place / ".start.part"
                model.save_pretrained(aside)
                processor.save_pretrained(aside)
                aside.replace(start)
            recipe.model = ModelRecipe(init="pig", checkpoint=str(start))
            train(recipe, place / "run", resume=True)
            model, processor = load_pretrained(FRAMEWORKS["two_tower"].model_class, str(place / "run/model"))
            save_as_clip(model, processor, place / ".clip.part")
            (place / ".clip.part").replace(folder)
        return folder

    def run(self, regime: str, variant: Variant, seed: int, splits: tuple[str, ...]) -> dict[str, dict]:
        """Trains a variant from the regime's CLIP, unless that was done before; its figures on each of the splits."""
        folder = self.run_folder(regime, variant, seed)
        recipe = self.recipe(regime, still=False, overrides=[f"training.seed={seed}", "evaluation.test=false"])
        recipe.model.clip = str(self.clip(regime))
        recipe.model.overrides = {**recipe.model.overrides, **variant.fields}
        print(f"--- {folder}", flush=True)
        with variant.in_training():
            train(recipe, folder, resume=True)
        shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)  # only an unfinished run needs them
        figures_file = folder / "figures.json"
        figures = read_json(figures_file) if figures_file.exists() else {}
        for split in splits:
            if split not in figures:
                model, processor = load_pretrained(variant.model_class, str(folder / "model"))
                rows = split_of(recipe, split)
                found = evaluate(
                    model,
                    processor,
                    rows,
                    batch_size=recipe.evaluation.batch_size,
                    max_text_tokens=recipe.data.max_text_tokens,
                    num_bootstrap=1000 if split == "test" else 0,
                )
                place = str(folder / "model")
                figures[split] = result_record(found, model, place, split, recipe.to_dict(), rows.info.description)
                write_json(figures_file, figures)
        return {split: figures[split] for split in splits}

    def run_folder(self, regime: str, variant: Variant, seed: int) -> Path:
        return self.output / "regimes" / regime / f"{variant.name}-seed{seed}"

    def load(self, regime: str, variant: Variant, seed: int) -> tuple[Any, Any, Recipe]:
        """Model, processor and recipe of a finished run.

        Raises:
            ValueError: it has not been run.
        """
        folder = self.run_folder(regime, variant, seed)
        if not RunFolder(folder).finished_file.exists():
            raise ValueError(f"There is no finished run in {folder}: run --phase compare first.")
        model, processor = load_pretrained(variant.model_class, str(folder / "model"))
        return model, processor, Recipe.from_yaml(folder / "recipe.yaml")

    def ceiling(self, regime: str, split: str) -> dict[str, float]:
        """The recall that no model can pass, in per cent: some captions fit several videos."""
        recipe = self.recipe(regime, still=False, overrides=[])
        found = retrieval_ceiling(split_of(recipe, split), self.regime(recipe))
        return {name: 100 * found[name] for name in ("R@1", "R@5", "R@10")}


def split_of(recipe: Recipe, split: str) -> Any:
    """A split of a recipe's benchmark."""
    data = recipe.data
    return load_benchmark(data.benchmark, videos=data.videos, **data.options)[split]


def write_json(path: Path, content: Any) -> None:
    """Writes aside and moves into place, so that a kill leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
