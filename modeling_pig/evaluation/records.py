"""The record of an evaluation (`test.json`): written by [`result_record`], and read back to publish it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict


DIRECTIONS = ("text_to_video", "video_to_text")


def _check_recalls(metrics: dict[str, float]) -> dict[str, float]:
    if missing := [name for name in ("R@1", "R@5", "R@10") if name not in metrics]:
        raise ValueError(f"{', '.join(missing)} missing")
    return metrics


# Metric -> value: R@k in per cent, and the median (MdR) and mean (MnR) rank of the correct result.
Metrics = Annotated[dict[str, float], AfterValidator(_check_recalls)]


class EvaluatedData(BaseModel):
    """Section `data` of the recipe in an [`EvaluationRecord`]: the field that is read back."""

    model_config = ConfigDict(extra="allow", strict=True)

    max_text_tokens: int


class EvaluatedRecipe(BaseModel):
    """Recipe in an [`EvaluationRecord`]: the section that is read back."""

    model_config = ConfigDict(extra="allow", strict=True)

    data: EvaluatedData


class EvaluationRecord(BaseModel):
    """
    Metrics of an evaluation with their origin. The order of the fields is the order in the file.

    Attributes:
        benchmark, options, split, protocol: the evaluated split, and the benchmark's description of it.
        model (`str`): folder or name of the model.
        model_revision (`str`, *optional*): commit of a model from the Hub.
        model_fingerprint (`str`): fingerprint of the weights, see [`model_fingerprint`].
        text_to_video, video_to_text (`dict[str, float]`): metric -> value.
        text_to_video_dual_softmax, video_to_text_dual_softmax (`dict[str, float]`, *optional*): the same with dual
            softmax.
        intervals_95 (`dict`, *optional*): direction -> metric -> [low, high] of the 95 % interval.
        num_bootstrap, seed (`int`, *optional*): number of bootstrap samples of the intervals, and their seed.
        recall_curve (`dict[str, list]`, *optional*): `k`, and R@k over k in each direction.
        num_queries, num_videos, num_videos_in_split (`int`): queries, decoded videos, and all videos of the split.
        ties (`str`): rank of tied scores, see [`ranks_of_targets`].
        failures (`list[str]`): videos that are missing or cannot be decoded, with the reason.
        device, dtype, versions, date, recipe: conditions of the evaluation.
    """

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    benchmark: str
    options: dict[str, Any]
    split: str
    protocol: str
    model: str | None = None
    model_revision: str | None = None
    model_fingerprint: str | None = None
    text_to_video: Metrics
    video_to_text: Metrics
    text_to_video_dual_softmax: Metrics | None = None
    video_to_text_dual_softmax: Metrics | None = None
    intervals_95: dict[str, dict[str, list[float]]] | None = None
    num_bootstrap: int | None = None
    seed: int | None = None
    recall_curve: dict[str, list[int | float]] | None = None
    num_queries: int
    num_videos: int
    num_videos_in_split: int
    ties: Literal["expected", "optimistic", "pessimistic"]
    failures: list[str]
    device: str
    dtype: str
    versions: dict[str, str]
    date: str
    recipe: EvaluatedRecipe


__all__ = ["DIRECTIONS", "EvaluationRecord", "Metrics"]
