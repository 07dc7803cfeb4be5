"""Benchmarks of text-to-video retrieval as Hugging Face datasets: a row is a video with its captions."""

import os
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import datasets

# Name of a benchmark, which is the name of its module here, and its builder in that module.
_BUILDERS = {"moving_shapes": "MovingShapes"}


def load_benchmark(name: str, *, videos: str | os.PathLike, **options: Any) -> "datasets.DatasetDict":
    """Loads a benchmark.

    Args:
        name (`str`): `"moving_shapes"`, which the package draws itself.
        videos (`str` or `os.PathLike`): Folder of the video files. Nothing is written outside it: the table
            of the captions is kept in its `.datasets`.
        **options: What the benchmark's config takes besides, such as `seed` or `test`.

    Returns:
        `datasets.DatasetDict` with the splits `"train"`, `"validation"` and `"test"`. Each row is a video:
        `video_id` (`str`), `video` (`str`, path of the file, under `videos`), `captions` (`list[str]`), and
        what the benchmark has besides.

    Raises:
        ValueError: If there is no benchmark of this name.

    Example:
        >>> shapes = load_benchmark("moving_shapes", videos="data/moving_shapes", seed=0)
        >>> shapes["test"][0]["captions"][0]
        'an orange square spins, a white ring shrinks, a green triangle circles and an orange ring bounces'
    """
    if name not in _BUILDERS:
        nearest = get_close_matches(name, _BUILDERS, n=1, cutoff=0.0)[0]
        known = ", ".join(sorted(_BUILDERS))
        raise ValueError(f"no benchmark is named {name!r}; did you mean {nearest!r}? There are: {known}")
    builder_class = getattr(import_module(f".{name}", __name__), _BUILDERS[name])
    videos = os.path.expanduser(videos)
    builder = builder_class(cache_dir=os.path.join(videos, ".datasets"), videos=videos, **options)
    builder.download_and_prepare()
    return builder.as_dataset()
