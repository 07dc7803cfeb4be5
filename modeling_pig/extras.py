"""List what the optional parts of this package require, from the metadata of the installed package."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires


PACKAGE = "modeling-pig"


def list_requirements(extras: Sequence[str], with_core: bool = False) -> list[str]:
    """List the requirements of extras, such as `lancedb>=0.40` for `search`.

    Args:
        extras (`Sequence[str]`): extras of setup.py.
        with_core (`bool`): whether the requirements of the package itself are listed too.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    from packaging.requirements import Requirement

    found = set()
    for requirement in map(Requirement, requires(PACKAGE) or ()):
        marker, requirement.marker = requirement.marker, None
        if with_core if marker is None else any(marker.evaluate({"extra": extra}) for extra in extras):
            found.add(str(requirement))
    return sorted(found)


def pip_install(extra: str) -> str:
    """Return the `pip install` line of an extra: the packages, which a checkout and an installed wheel both find.

    `pip install "modeling-pig[EXTRA]"` would need a package index that has this package.
    """
    try:
        names = " ".join(f'"{requirement}"' for requirement in list_requirements([extra]))
    except PackageNotFoundError:  # a checkout that is only on the path
        names = f'-e ".[{extra}]"'
    return f"pip install {names}"


__all__ = ["list_requirements", "pip_install"]
