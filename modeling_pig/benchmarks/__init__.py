"""Benchmarks of text-to-video retrieval as Hugging Face datasets: a row is a video with its captions."""

import os
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import datasets

# Name of a benchmark: its module here and its builder in that.
_BUILDERS = {
    "moving_shapes": ("moving_shapes", "MovingShapes"),
    "msrvtt_1k": ("msrvtt", "MsrVtt1k"),
    "msrvtt_3k": ("msrvtt", "MsrVtt3k"),
    "msvd": ("msvd", "Msvd"),
    "vatex": ("vatex", "Vatex"),
    "didemo": ("didemo", "Didemo"),
}
# What `datasets` puts into every config, and what `load_benchmark` takes itself.
_NOT_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "annotations", "videos"}


def load_benchmark(
    name: str,
    *,
    videos: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> "datasets.DatasetDict":
    """Loads a benchmark.

    Args:
        name (`str`): `"msrvtt_1k"`, `"msrvtt_3k"`, `"msvd"`, `"vatex"`, `"didemo"`, or `"moving_shapes"`, which the
            package draws itself.
        videos (`str` or `os.PathLike`): Folder of the video files.
        annotations (`str` or `os.PathLike`, *optional*): Folder of the annotation files, of which every form that
            circulates is read; all benchmarks but moving_shapes need it.
        cache_dir (`str` or `os.PathLike`, *optional*): Folder for the table, and for the list of the videos that are
            missing or do not open (`NAME-videos.csv`). By default `.datasets` in `videos`.
        **options: What the benchmark's config takes besides: `strict`, `splits` and `lists` for all with annotations,
            `train`, `validation` and `seed` for msrvtt_1k, `merge` for didemo; sizes, `seed`,
            `shapes`, `scale`, `named` and `still` for moving_shapes.

    Returns:
        `datasets.DatasetDict` with the splits `"train"`, `"validation"` and `"test"`. Each row is a video:
        `video_id` (`str`), `video` (`str`, path of the file, or of a folder of frames; empty if there is none that
        opens), `captions` (`list[str]`), `start` and `end` (`float` or `None`: the part of the file to be read, in
        seconds), and what the benchmark has besides. The `info.description` of a split says what was read, and on
        further lines what differs from the published benchmark.

    Raises:
        ValueError: If there is no benchmark or option of this name, a folder cannot be used, or the annotations are
            missing, damaged or contradictory; one line on what to do.

    Example:
        >>> shapes = load_benchmark("moving_shapes", videos="data/moving_shapes", seed=0)
        >>> shapes["test"][0]["captions"][0]
        'an orange square spins, a white ring shrinks, a green triangle circles and an orange ring bounces'
        >>> msvd = load_benchmark("msvd", annotations="data/msvd", videos="data/msvd/videos", splits=["test"])
    """
    if not isinstance(name, str):
        raise ValueError(f"the name of a benchmark is one of {', '.join(sorted(_BUILDERS))}; got {name!r}")
    if name not in _BUILDERS:
        nearest = get_close_matches(name, _BUILDERS, n=1, cutoff=0.0)[0]
        there = ", ".join(sorted(_BUILDERS))
        raise ValueError(f"no benchmark is named {name!r}; did you mean {nearest!r}? There are: {there}")
    module, builder_name = _BUILDERS[name]
    builder_class = getattr(import_module(f".{module}", __name__), builder_name)
    folders = {"videos": os.path.expanduser(videos)}
    if name != "moving_shapes":
        folders["annotations"] = os.path.expanduser(annotations or "")
    elif annotations is not None:
        raise ValueError("moving_shapes takes no `annotations`: the package draws it")
    known = {field.name for field in fields(builder_class.BUILDER_CONFIG_CLASS)} - _NOT_OPTIONS
    for option in set(options) - known:
        nearest = get_close_matches(option, known, n=1, cutoff=0.0)[0]
        there = ", ".join(sorted(known))
        raise ValueError(f"{name} has no option {option!r}; did you mean {nearest!r}? There are: {there}")
    cache_dir = os.path.expanduser(cache_dir or os.path.join(folders["videos"], ".datasets"))
    builder = builder_class(cache_dir, **folders, **options)
    builder.download_and_prepare()
    return builder.as_dataset()
