"""Declare the records of a run folder: the training and `pig push model` write them, publishing reads them back."""

from ..evaluation.records import Metrics, Record


class Environment(Record):
    """
    Versions and machine of a process.

    Attributes:
        date (`str`): start in UTC.
        command (`list[str]`, *optional*): command line.
        git_revision (`str`, *optional*): commit of the checkout, with a plus sign if files differ from it.
        modeling_pig, python (`str`): versions.
        packages (`dict[str, str]`): package -> version.
        device (`str`): GPU, or CPU with its number of cores.
    """

    date: str
    command: list[str] | None = None
    git_revision: str | None
    modeling_pig: str
    python: str
    packages: dict[str, str]
    device: str


class EnvironmentRecord(Environment):
    """
    Entry of `environment.json`: one start of a run.

    Attributes:
        step (`int`, *optional*): step that the run started or resumed from.
        num_processes (`int`): number of training processes.
        seed (`int`, *optional*): seed of the recipe.
        mixed_precision (`str`, *optional*): precision in effect: `fp16`, `bf16`, or `no` for float32. It may differ
            from the recipe's: `fp16` on a CPU is float32.
    """

    step: int | None = None
    num_processes: int
    seed: int | None = None
    mixed_precision: str | None = None


class StepRecord(Record):
    """Line of `metrics.jsonl` for a training step: also its losses, learning rate and so on."""

    epoch: int
    step: int


class ValidationMetrics(Record):
    """Metrics on the split that selects the model: fields of an [`Evaluation`]."""

    text_to_video: Metrics
    video_to_text: Metrics | None = None


class ValidationRecord(StepRecord):
    """
    Line of `metrics.jsonl` for an evaluation during training: also the losses of the last step.

    Attributes:
        num_processes (`int`, *optional*): number of training processes.
        validation (`ValidationMetrics`, *optional*): metrics on the validation split.
        test (`ValidationMetrics`, *optional*): metrics on the test split, if it selects the model.
    """

    num_processes: int | None = None
    validation: ValidationMetrics | None = None
    test: ValidationMetrics | None = None

    @property
    def metrics(self) -> ValidationMetrics:
        """Metrics on the evaluated split."""
        metrics = self.validation or self.test
        assert metrics is not None, "the record of an evaluation holds the metrics of one split"
        return metrics


class EfficiencyRecord(Record):
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


__all__ = [
    "EfficiencyRecord",
    "Environment",
    "EnvironmentRecord",
    "StepRecord",
    "ValidationMetrics",
    "ValidationRecord",
]
