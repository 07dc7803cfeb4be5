"""Declare the records of evaluations; `test.json` and `mteb.json` are read back to publish a model."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


DIRECTIONS = ("text_to_video", "video_to_text")


def _check_recalls(metrics: dict[str, float]) -> dict[str, float]:
    if missing := [name for name in ("R@1", "R@5", "R@10") if name not in metrics]:
        raise ValueError(f"{', '.join(missing)} missing")
    return metrics


# Metric -> value: R@k in per cent, and the median (MdR) and mean (MnR) rank of the correct result.
Metrics = Annotated[dict[str, float], AfterValidator(_check_recalls)]


class Record(BaseModel):
    """Base class of records in JSON files. Fields that are not declared here are kept."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that were set, as plain data for JSON."""
        return self.model_dump(exclude_unset=True)


class Evaluation(Record):
    """
    Metrics of a model on a split, from [`evaluate`].

    Attributes:
        text_to_video, video_to_text (`dict[str, float]`): metric -> value.
        text_to_video_dual_softmax, video_to_text_dual_softmax (`dict[str, float]`, *optional*): the same with dual
            softmax.
        text_to_video_reranked (`dict[str, float]`, *optional*): the same with re-ranking of the best `rerank` videos.
        rerank (`int`, *optional*): number of videos that were re-ranked for each query.
        text_to_video_qb_norm (`dict[str, float]`, *optional*): the same with QB-Norm.
        num_querybank (`int`, *optional*): queries in the querybank of QB-Norm.
        querybank (`str`, *optional*): origin of the querybank: `training captions`, or a file.
        intervals_95 (`dict`, *optional*): direction -> metric -> [low, high] of the 95 % interval.
        num_bootstrap, seed (`int`, *optional*): number of bootstrap samples of the intervals, and their seed.
        recall_curve (`dict[str, list]`, *optional*): `k`, and R@k over k in each direction, see [`recall_curves`].
        num_queries, num_videos, num_videos_in_split (`int`): queries, decoded videos, and all videos of the split.
        ties (`str`): rank of tied scores, see [`ranks_of_targets`].
        failures (`list[str]`): videos that are missing or cannot be decoded, with the reason.
        details ([`EvaluationDetails`], *optional*): ranks per query, embeddings and scores, in memory only: `to_dict`
            leaves them out.
    """

    text_to_video: Metrics
    video_to_text: Metrics
    text_to_video_dual_softmax: Metrics | None = None
    video_to_text_dual_softmax: Metrics | None = None
    text_to_video_reranked: Metrics | None = None
    rerank: int | None = None
    text_to_video_qb_norm: Metrics | None = None
    num_querybank: int | None = None
    querybank: str | None = None
    intervals_95: dict[str, dict[str, list[float]]] | None = None
    num_bootstrap: int | None = None
    seed: int | None = None
    recall_curve: dict[str, list[int | float]] | None = None
    num_queries: int
    num_videos: int
    num_videos_in_split: int
    ties: Literal["expected", "optimistic", "pessimistic"]
    failures: list[str]
    details: Any = Field(default=None, exclude=True, repr=False)


class EvaluatedData(Record):
    """Section `data` of the recipe in an [`EvaluationRecord`]: the field that is read back."""

    max_text_tokens: int


class EvaluatedRecipe(Record):
    """Recipe in an [`EvaluationRecord`]: the section that is read back."""

    data: EvaluatedData


class _Origin(Record):
    benchmark: str
    options: dict[str, Any]
    split: str
    protocol: str
    model: str | None = None
    model_revision: str | None = None
    model_fingerprint: str | None = None
    model_kind: str | None = None
    num_frames: int | None = None
    selected_on: str | None = None


# Pydantic orders inherited fields from the last base class to the first: the origin comes first in the file.
class EvaluationRecord(Evaluation, _Origin):
    """
    Metrics of an evaluation with their origin and conditions: the content of `test.json`.

    Attributes:
        benchmark, options, split, protocol: the evaluated split, and the benchmark's description of it.
        model (`str`, *optional*): folder or name of the model.
        model_revision (`str`, *optional*): commit of a model from the Hub.
        model_fingerprint (`str`, *optional*): fingerprint of the weights, see [`model_fingerprint`].
        model_kind (`str`, *optional*): how the model embeds videos, see [`Encoder`].
        num_frames (`int`, *optional*): frames per clip.
        selected_on (`str`, *optional*): benchmark and split that selected the model, see [`PigConfig`].
        device, dtype, versions, recipe: conditions of the evaluation.
        date (`str`): end of the evaluation in UTC.
    """

    device: str
    dtype: str
    versions: dict[str, str]
    date: str
    recipe: EvaluatedRecipe

    @property
    def selection_warning(self) -> str:
        """Sentence for a model that a test split selected; `""` for other models."""
        benchmark, _, split = (self.selected_on or "").rpartition("/")
        if split != "test":
            return ""
        return (
            f"The model was selected on the test split of {benchmark}, as published code does: its figures are not "
            "comparable with those of models that validation or the last epoch selected."
        )


class MtebScores(Record):
    """Scores of a task of MTEB, from 0 to 1, on one split and subset: the fields that are read back."""

    hf_subset: str
    main_score: float
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float


class MtebResult(Record):
    """
    Result of a task of MTEB, as the package `mteb` writes it, with facts about the task.

    Attributes:
        task_name, mteb_version (`str`): the task, and the version of `mteb` that ran it.
        dataset, dataset_revision (`str`): data set on the Hub, and its commit.
        category (`str`): `t2v` for text-to-video, `v2t` for video-to-text.
        main_metric (`str`): metric of the task's `main_score`, such as `ndcg_at_10`.
        scores (`dict[str, list[MtebScores]]`): split -> scores per subset.
    """

    task_name: str
    mteb_version: str
    dataset: str
    dataset_revision: str
    category: Literal["t2v", "v2t"]
    main_metric: str
    scores: dict[str, list[MtebScores]]


class MtebRecord(Record):
    """
    Results of MTEB with the model and the conditions: the content of `mteb.json`.

    Attributes:
        model, model_revision, model_fingerprint, model_kind, num_frames: as in [`EvaluationRecord`].
        device, dtype, versions, date: as in [`EvaluationRecord`].
        results (`list[MtebResult]`): one result per task.
    """

    model: str
    model_revision: str | None
    model_fingerprint: str
    model_kind: str
    num_frames: int
    device: str
    dtype: str
    versions: dict[str, str]
    date: str
    results: list[MtebResult]


__all__ = [
    "DIRECTIONS",
    "Evaluation",
    "EvaluationRecord",
    "Metrics",
    "MtebRecord",
    "MtebResult",
    "MtebScores",
    "Record",
]
