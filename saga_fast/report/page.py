"""The Jinja environment of the package's HTML templates."""

from __future__ import annotations

import jinja2


def environment() -> jinja2.Environment:
    """The environment of the templates: variables are escaped, and a missing variable is an error."""
    # select_autoescape() decides by the file's ending and would not escape in "*.html.j2".
    return jinja2.Environment(
        loader=jinja2.PackageLoader("saga_fast.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
