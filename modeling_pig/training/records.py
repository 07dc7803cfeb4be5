"""Records of a run folder: written by the training and `pig push model`, and read back to publish them."""

from pydantic import BaseModel, ConfigDict

from ..evaluation.records import Metrics


class EnvironmentRecord(BaseModel):
    """
    Entry of `environment.json`: one start of a run.

    Attributes:
        date (`str`): start in UTC.
        device (`str`): GPU, or CPU with its number of cores.
        num_processes (`int`): number of training processes.
        modeling_pig, python (`str`): versions.
        packages (`dict[str, str]`): package -> version.
        git_revision (`str`, *optional*): commit of the checkout, with a plus sign if files differ from it.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    num_processes: int
    date: str
    git_revision: str | None
    modeling_pig: str
    python: str
    packages: dict[str, str]
    device: str


class StepRecord(BaseModel):
    """Line of `metrics.jsonl` for a training step: loss, learning rate and so on."""

    model_config = ConfigDict(extra="allow", strict=True)

    epoch: int
    step: int


class ValidationMetrics(BaseModel):
    """Metrics on the validation split."""

    model_config = ConfigDict(extra="allow", strict=True)

    text_to_video: Metrics
    video_to_text: Metrics | None = None


class ValidationRecord(StepRecord):
    """Line of `metrics.jsonl` for an evaluation on the validation split."""

    validation: ValidationMetrics


class EfficiencyRecord(BaseModel):
    """
    Content of `efficiency.json`: latency of one query and of one video, measured by `pig push model --measure`.

    Attributes:
        model_fingerprint (`str`): fingerprint of the measured weights.
        text_ms, video_ms (`float`): median latency in milliseconds.
        num_tokens (`int`): tokens of the query.
        num_frames, frame_size: decoded frames of the video, and their size.
        num_runs (`int`): timed runs per latency.
        device, num_threads, dtype, torch: conditions of the measurement.
    """

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())

    model_fingerprint: str
    text_ms: float
    video_ms: float
    num_tokens: int
    num_frames: int
    frame_size: str
    num_runs: int
    device: str
    num_threads: int
    dtype: str
    torch: str


__all__ = ["EfficiencyRecord", "EnvironmentRecord", "StepRecord", "ValidationMetrics", "ValidationRecord"]
