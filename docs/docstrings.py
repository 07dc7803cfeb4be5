"""Read docstrings in the dialect of transformers: [`Name`] is a link, and types stand in backticks."""

import re

import griffe


class TransformersDocstrings(griffe.Extension):
    """Turn [`Name`] into links to the objects of the package, and `` name (`type`) `` into `name (type)`."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        objects = list(_objects_of(pkg))
        paths = {found.name: found.path for found in objects if not found.name.startswith("_")}
        for found in objects:
            if found.docstring is not None:
                found.docstring.value = _as_markdown(found.docstring.value, paths)


def _objects_of(parent: griffe.Object):
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects_of(member)


def _as_markdown(docstring: str, paths: dict[str, str]) -> str:
    def link(match: re.Match) -> str:
        name = match[1].lstrip("~")
        first, _, rest = name.partition(".")
        path = paths.get(first)
        return f"[`{name}`][{path}{'.' + rest if rest else ''}]" if path else f"`{name}`"

    docstring = re.sub(r"\[`([~\w.]+)`\](?!\[|\()", link, docstring)
    # `name (`type`, *optional*): text` -> `name (type, optional): text`
    return re.sub(
        r"^(\s*[\w*, ]+ \()(.*?`.*?)(\):)",
        lambda match: match[1] + match[2].replace("`", "").replace("*optional*", "optional") + match[3],
        docstring,
        flags=re.MULTILINE,
    )
