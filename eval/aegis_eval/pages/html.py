"""Pages from templates: whatever is put into them is escaped, and a page loads nothing from elsewhere.

Python computes what is shown; the markup lies in `templates/`, with colours and sizes in `templates/page.css`.
"""

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("aegis_eval.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **shown: Any) -> str:
    """A whole page.

    Args:
        template: a file of `templates/`.
        shown: what the template asks for, by name; texts are escaped, `markupsafe.Markup` is not.
    """
    return _TEMPLATES.get_template(template).render(shown)


def data_uri(kind: str, data: bytes) -> str:
    """A file inside the page; `kind` is its media type, `image/png` for instance."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
