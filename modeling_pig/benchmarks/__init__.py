"""Load benchmarks of text-to-video retrieval as Hugging Face datasets: one row per video, with its captions."""

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from huggingface_hub.constants import HF_HOME


if TYPE_CHECKING:
    import datasets

# Name of a benchmark -> its module in this package, and the builder in that module.
_BUILDERS = {
    "moving_shapes": ("moving_shapes", "MovingShapes"),
    "msrvtt_1k": ("msrvtt", "MsrVtt1k"),
    "msrvtt_3k": ("msrvtt", "MsrVtt3k"),
    "msvd": ("msvd", "Msvd"),
    "vatex": ("vatex", "Vatex"),
    "didemo": ("didemo", "Didemo"),
    "videofolder": ("videofolder", "VideoFolder"),
}
# Fields that `datasets` adds to every config, and arguments of `load_benchmark`.
_NOT_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "annotations", "videos"}


def load_benchmark(
    name: str,
    *,
    videos: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> "datasets.DatasetDict":
    """Load a benchmark.

    Args:
        name (`str`): `"msrvtt_1k"`, `"msrvtt_3k"`, `"msvd"`, `"vatex"`, `"didemo"`; `"moving_shapes"`, which the
            package draws itself; or `"videofolder"`, your own videos with captions, see [`VideoFolderConfig`].
        videos (`str` or `os.PathLike`): folder of the video files; for videofolder also a data set, as a folder that
            `datasets` saved, or as `hf://org/name`.
        annotations (`str` or `os.PathLike`, *optional*): folder of the annotation files, in any format in which they
            circulate; required by all benchmarks except moving_shapes and videofolder. For videofolder, a table of
            captions or a data set.
        cache_dir (`str` or `os.PathLike`, *optional*): folder for the table, and for the list of the videos that are
            missing or do not open (`NAME-videos.csv`). By default `.datasets` in `videos`.
        **options: other options of the benchmark's config: `strict`, `splits` and `lists` for all benchmarks with
            annotations; `train`, `validation` and `seed` for msrvtt_1k; `merge` for didemo; the sizes, `seed`,
            `shapes`, `scale`, `named`, `still` and `in_turn` for moving_shapes; for videofolder see
            [`VideoFolderConfig`].

    Returns:
        `datasets.DatasetDict` with the splits `"train"`, `"validation"` and `"test"`. Each row is a video:
        `video_id` (`str`), `video` (`str`, path of the file or of a folder of frames; empty if it is missing or does
        not open), `captions` (`list[str]`), `start` and `end` (`float` or `None`: segment of the file to read, in
        seconds), and further columns of the benchmark. The `info.description` of a split states which files were
        read, and on further lines how they differ from the published benchmark.

    Raises:
        ValueError: there is no benchmark or option of this name, a folder cannot be used, or the annotations are
            missing, damaged or contradictory.

    Example:

    ```python
    >>> shapes = load_benchmark("moving_shapes", videos="data/moving_shapes", seed=0)
    >>> shapes["test"][0]["captions"][0]
    'an orange square spins, a white ring shrinks, a green triangle circles and an orange ring bounces'
    >>> msvd = load_benchmark("msvd", annotations="data/msvd", videos="data/msvd/videos", splits=["test"])
    ```
    """
    builder = create_builder(name, videos=videos, annotations=annotations, cache_dir=cache_dir, **options)
    builder.download_and_prepare()
    return builder.as_dataset()


def benchmark_title(data: Mapping[str, Any]) -> str:
    """Return the name of the data of a recipe, for records and cards: the benchmark, or the title of one's own videos.

    Args:
        data (`Mapping`): the recipe's section `data`.
    """
    if data["benchmark"] != "videofolder":
        return data["benchmark"]
    own = (data.get("options") or {}).get("title")
    return own or os.path.basename(os.path.normpath(data["videos"]))


def create_builder(
    name: str,
    *,
    videos: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> "datasets.GeneratorBasedBuilder":
    """Create the `datasets` builder of a benchmark; see [`load_benchmark`] for arguments and errors."""
    if not isinstance(name, str):
        raise ValueError(f"the name of a benchmark is one of {', '.join(sorted(_BUILDERS))}; got {name!r}")
    if name not in _BUILDERS:
        nearest = get_close_matches(name, _BUILDERS, n=1, cutoff=0.0)[0]
        names = ", ".join(sorted(_BUILDERS))
        raise ValueError(f"no benchmark is named {name!r}; did you mean {nearest!r}? There are: {names}")
    module, builder_name = _BUILDERS[name]
    builder_class = getattr(import_module(f".{module}", __name__), builder_name)
    folders = {"videos": os.path.expanduser(videos)}
    if name == "videofolder":
        folders["annotations"] = os.path.expanduser(annotations or "")
        if str(videos).startswith("hf://"):
            cache_dir = cache_dir or os.path.join(HF_HOME, "modeling_pig")
    elif name != "moving_shapes":
        folders["annotations"] = os.path.expanduser(annotations or "")
    elif annotations is not None:
        raise ValueError("moving_shapes takes no `annotations`: leave them out, the package draws the videos")
    known = {field.name for field in fields(builder_class.BUILDER_CONFIG_CLASS)} - _NOT_OPTIONS
    for option in set(options) - known:
        nearest = get_close_matches(option, known, n=1, cutoff=0.0)[0]
        names = ", ".join(sorted(known))
        raise ValueError(f"{name} has no option {option!r}; did you mean {nearest!r}? There are: {names}")
    cache_dir = os.path.expanduser(cache_dir or os.path.join(folders["videos"], ".datasets"))
    return builder_class(cache_dir, **folders, **options)
