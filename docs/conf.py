"""Sphinx: the guides as they are, and an API reference from the docstrings. `make docs` builds it."""

import re
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

project = "AEGIS for LeRobot"
release = version_of("lerobot_policy_aegis")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
html_theme = "alabaster"
html_theme_options = {
    "description": "Fine-tune a VLM into a robot policy, and keep what it knew",
    "page_width": "75em",
}

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def _name_files_outside(app: Sphinx, _page: str, source: list[str]) -> None:
    """Links to files of the repository that are no pages become their paths; one that leads nowhere is a warning."""

    def named(link: re.Match[str]) -> str:
        path = (Path(app.srcdir) / link[2]).resolve()
        if not path.exists():
            logging.getLogger(__name__).warning("a link names %s, which does not exist", link[2])
        return f"{link[1]} (`{link[2].removeprefix('../')}`)"

    source[0] = _OUTSIDE.sub(named, source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _name_files_outside)
