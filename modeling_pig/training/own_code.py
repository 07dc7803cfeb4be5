"""Import the model class, the loss and the data set that a recipe names by a dotted path.

A recipe that names no path imports no code.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from modeling_pig import PigForRetrieval, load_benchmark

from .recipe import DataRecipe


if TYPE_CHECKING:
    import datasets


COLUMNS = ("video_id", "video", "captions")


def import_object(path: str, field: str) -> Any:
    """Import an object by its path. Modules in the working directory are found, after all others.

    Args:
        path (`str`): `package.module:name`.
        field (`str`): field of the recipe that holds the path, for errors.

    Raises:
        ValueError: the module cannot be imported, or has no such name.
    """
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"The recipe's {field} is {path}, which cannot be imported ({error}): expected package.module:name, in an "
            "installed package, the working directory or PYTHONPATH."
        ) from error


def import_model_class(path: str | None, default: type[PigForRetrieval]) -> type[PigForRetrieval]:
    """Import the class that `model.class` names; `default` if it names none.

    Raises:
        ValueError: the path cannot be imported, or is no subclass of [`PigForRetrieval`].
    """
    if path is None:
        return default
    found = import_object(path, "model.class")
    if not (isinstance(found, type) and issubclass(found, PigForRetrieval)):
        raise ValueError(f"The recipe's model.class is {path}, a {type(found).__name__}: expected a PigForRetrieval.")
    return found


def load_data(data: DataRecipe) -> "datasets.DatasetDict":
    """Load the data of a recipe: a benchmark by its name, or the result of the function that its path names.

    The function receives `videos`, `annotations` and `options` as [`load_benchmark`] does, and returns the same.

    Raises:
        ValueError: the benchmark cannot be loaded, or the result of the function has other splits or columns.
    """
    if ":" not in data.benchmark:
        return load_benchmark(data.benchmark, videos=data.videos, annotations=data.annotations, **data.options)
    load = import_object(data.benchmark, "data.benchmark")
    splits = load(videos=data.videos, annotations=data.annotations, **data.options)
    for name, split in dict(splits).items():
        if missing := [column for column in COLUMNS if column not in getattr(split, "column_names", ())]:
            raise ValueError(
                f"The split {name} of {data.benchmark} lacks {', '.join(missing)}: expected a DatasetDict with "
                f"the columns {', '.join(COLUMNS)}, and optionally start and end."
            )
    return splits


__all__ = ["import_model_class", "import_object", "load_data"]
