"""Format text for the cards of repositories."""

import re


def one_line(text: str) -> str:
    """Replace each run of white space by one space."""
    return " ".join(text.split())


def escape(text: str) -> str:
    """Format text as one line of Markdown that shows all its characters: none is markup in Markdown or HTML."""
    text = re.sub(r"([\\`*_{}\[\]#|~!$@]|^[-+=]|:(?=//)|(?<=www)\.)", r"\\\1", one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


__all__ = ["escape", "one_line"]
