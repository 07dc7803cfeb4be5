"""Describe a training run as a typed recipe: read it from YAML, override it from the command line."""

import difflib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..benchmarks import benchmark_title
from ..files import write_text


Positive = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]
Rate = Annotated[float, Gt(0), Lt(math.inf)]
_STRICT_KEYS = ConfigDict(extra="forbid")


@dataclass
class DataRecipe:
    """Data of a run. `options` are options of the benchmark (sizes, seed, lists).

    `benchmark` is the name of a benchmark, or the path `package.module:function` of a function that receives `videos`,
    `annotations` and `options`, and returns what [`load_benchmark`] returns.
    """

    __pydantic_config__ = _STRICT_KEYS

    benchmark: str
    videos: str  # folder of the video files; moving_shapes draws them there
    annotations: str | None = None  # folder of the annotation files; moving_shapes has none
    options: dict[str, Any] = field(default_factory=dict)
    max_text_tokens: Annotated[int, Ge(3), Le(77)] = 50  # longer captions are truncated
    # Frames evenly spaced in time, or by index as in the paper: they differ for videos with variable frame rate.
    frame_sampling: Literal["time", "index"] = "time"
    decoder: Literal["pyav", "torchcodec", "auto"] = "pyav"  # auto: torchcodec if installed and CUDA is available
    num_workers: Annotated[int, Ge(0)] = 4  # decoding processes per training process
    frame_cache: str | None = None  # folder for decoded frames: only the first epoch decodes videos
    frame_cache_gigabytes: Annotated[float, Gt(0)] = 50.0
    max_unreadable_share: Share = 0.05  # share of training videos that may fail; a larger share ends the run

    @property
    def title(self) -> str:
        """Name of the data, see [`benchmark_title`]."""
        return benchmark_title(vars(self))


@dataclass
class LoraRecipe:
    """Low-rank adapters (peft) on CLIP's attention; PIG's own parts are trained fully. Saved models are merged."""

    __pydantic_config__ = _STRICT_KEYS

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])


@dataclass
class ModelRecipe:
    """Start of the weights, and the frozen parts.

    `init` is `clip` (the CLIP or MetaCLIP 2 checkpoint `clip`), `clip_vip` (the file `checkpoint` of CLIP-ViP, which
    started from `clip`), `pig` (the model folder or Hub name `checkpoint`), `reference` (the authors' file
    `checkpoint`, which started from `clip`) or `scratch` (random weights of the shape `config`: the fields of
    `PigConfig`, or a JSON file that holds them, named relative to the recipe's folder). `overrides` are further fields
    (for `clip` and `clip_vip` also those of `PigVisionConfig` that CLIP lacks).

    `class` is the path `package.module:Name` of a subclass of `PigForRetrieval` to train instead of it.

    `freeze` names parts that keep their weights: `text`, `video`, `generator`, `interaction`; `clip` is all but PIG's
    own parts (global, frame and temporal embeddings, generator, interaction).
    """

    __pydantic_config__ = _STRICT_KEYS

    init: Literal["clip", "clip_vip", "pig", "reference", "scratch"] = "clip"
    clip: str = "openai/clip-vit-base-patch32"
    checkpoint: str | None = None
    config: str | dict[str, Any] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    freeze: list[Literal["text", "video", "generator", "interaction", "clip"]] = field(default_factory=list)
    lora: LoraRecipe | None = None
    class_: Annotated[str | None, Field(alias="class")] = None


@dataclass
class OptimizerRecipe:
    """Settings of AdamW. Biases, layer norms and logit_scale have no weight decay."""

    __pydantic_config__ = _STRICT_KEYS

    learning_rate: Rate = 3e-6
    part_learning_rates: dict[Literal["text", "video", "generator", "interaction"], Rate] = field(
        default_factory=dict
    )  # parts with another rate
    betas: tuple[float, float] = (0.9, 0.98)
    eps: Rate = 1e-6
    weight_decay: Annotated[float, Ge(0), Lt(math.inf)] = 0.2
    max_grad_norm: Annotated[float, Gt(0)] = 1.0


@dataclass
class TrainingRecipe:
    """Length and batches of a run. `batch_size` counts the videos of all processes together.

    With `chunk_size`, a process holds the activations of that many videos at a time. `chunking` says what the chunks
    mean for the loss. With `gradient_cache`, the whole batch is one loss with all its negatives, and the gradients are
    those of the whole batch. With `fewer_negatives` (plain gradient accumulation), each chunk is a separate loss: an
    easier task.

    With `captions_per_video` M, a step reads M captions of each video, and encodes the video once. The loss is the
    mean of M losses, each of one caption per video: captions of the same video are not negatives of each other.

    `loss` is the path `package.module:function` of a function that replaces `modeling_pig.loss_pig.compute_losses`: it
    receives the same arguments by keyword, and returns `PigLosses`.
    """

    __pydantic_config__ = _STRICT_KEYS

    batch_size: Annotated[int, Ge(2)] = 128
    chunk_size: Positive | None = None
    chunking: Literal["gradient_cache", "fewer_negatives"] = "gradient_cache"
    captions_per_video: Positive = 1
    loss: str | None = None
    mask_equal_captions: bool = True  # videos with equal captions are not negatives of each other
    epochs: Positive = 100
    warmup_ratio: Share = 0.01
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"  # auto: bf16 if the GPU supports it
    compile: bool = False
    activation_checkpointing: bool = False
    max_nonfinite_steps: Positive = 10  # steps in a row without a finite loss and gradient that end a run
    checkpoint_every_steps: Positive | None = None  # in addition to a checkpoint after each epoch
    save_total_limit: Positive = 2  # number of checkpoints to keep
    log_every_steps: Positive = 10
    profile_steps: Positive | None = None  # steps that torch.profiler traces, from the third of a start on
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = field(default_factory=list)
    seed: int = 42


@dataclass
class EvaluationRecipe:
    """Evaluation of a run, and the choice of the model that it keeps.

    `select` names the split on which the kept model has the highest sum of text-to-video R@1, R@5 and R@10:
    `validation`, or `test`, as published code does (records, results and model card say so). With `last`, the model
    of the last epoch is kept. `test` and `last` need no validation split.

    The test split is evaluated at the end, with the kept model; with `zero_shot`, also before the first step, with
    the start of the run, so that the run can say what training gained. Random weights are not evaluated.
    """

    __pydantic_config__ = _STRICT_KEYS

    every_epochs: Positive = 1
    select: Literal["validation", "last", "test"] = "validation"
    batch_size: Positive = 16
    patience: Positive | None = None  # evaluations without a better result that end a run
    test: bool = True
    zero_shot: bool = True


@dataclass
class Recipe:
    """Description of a whole run."""

    __pydantic_config__ = _STRICT_KEYS

    data: DataRecipe
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe from a YAML file.

        Args:
            path (`str` or `Path`): YAML file. A file named in `model.config` is read into the recipe.
            overrides (`Sequence[str]`): `section.key=value`, with the value in YAML.

        Raises:
            ValueError: the file cannot be read, a key does not exist (the message names the nearest key), or a value
                is invalid. The message is one line.
        """
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"The recipe {path} cannot be read: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise ValueError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(tree, dict):
            raise ValueError(
                f"The recipe {path} holds no sections: expected data, model, optimizer, training, evaluation."
            )
        for override in overrides:
            _apply_override(tree, override)
        _check_keys(cls, tree)
        try:
            recipe = TypeAdapter(cls).validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            seen = "" if first["type"] == "missing" else f" (got {first['input']!r})"
            raise ValueError(f"The recipe's {key}: {first['msg']}{seen}.") from error
        if isinstance(recipe.model.config, str):
            recipe.model.config = _read_config(Path(path).parent / recipe.model.config)
        if recipe.model.init == "scratch" and recipe.model.config is None:
            raise ValueError("The recipe's model.init is scratch: set model.config to the shape of the model.")
        if recipe.model.init in ("clip_vip", "pig", "reference") and recipe.model.checkpoint is None:
            raise ValueError(
                f"The recipe's model.init is {recipe.model.init}: set model.checkpoint to the model to start from."
            )
        if recipe.evaluation.select == "last" and recipe.evaluation.patience is not None:
            raise ValueError(
                "The recipe's evaluation.select is last, which keeps the model of the last epoch: remove "
                "evaluation.patience, or select by validation."
            )
        return recipe

    def save(self, path: str | Path) -> None:
        """Write the recipe, with all overrides, as YAML."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        return TypeAdapter(type(self)).dump_python(self, mode="json", by_alias=True)

    def flat(self) -> dict[str, Any]:
        """Return the fields by their names on the command line: `{"training.epochs": 100, ...}`."""
        return dict(_flatten(self.to_dict()))

    def differences(self, earlier: "Recipe", free: Collection[str] = ()) -> list[str]:
        """List the fields that differ from `earlier`, one message per field; fields in `free` are ignored."""
        now, then = self.flat(), earlier.flat()
        keys = [key for key in now | then if key not in free and now.get(key) != then.get(key)]
        return [f"{key} is {now.get(key)!r} and was {then.get(key)!r}" for key in keys]


def _flatten(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"The recipe's model.config, {path}, cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"The recipe's model.config, {path}, is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"The recipe's model.config, {path}, is not a JSON object: expected fields of PigConfig.")
    return config


def _apply_override(tree: dict, override: str) -> None:
    key, equals, value = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not sections:
        raise ValueError(f"Got the override {override!r}; expected section.key=value, for example training.epochs=5.")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ValueError(f"{override!r} overrides inside {section!r}, which is not a section.")
    try:
        tree[name] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"The value in {override!r} is not YAML: put it in quotes.") from error


def _check_keys(recipe_class: Any, tree: Mapping, prefix: str = "") -> None:
    known: dict[str, Any] = {f.name.rstrip("_"): f.type for f in fields(recipe_class)}  # `class_` is the key `class`
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"The recipe has an unknown key {prefix}{key}: did you mean {prefix}{near}?")
        if is_dataclass(known[key]) and isinstance(value, Mapping):
            _check_keys(known[key], value, f"{prefix}{key}.")


__all__ = ["Recipe"]
