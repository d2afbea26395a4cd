"""How pages are made from templates."""

from __future__ import annotations

import jinja2


def environment() -> jinja2.Environment:
    """Templates of the package; what they are given is escaped, and what they miss is an error."""
    # autoescape=True, not select_autoescape: that goes by the ending and would leave "*.html.j2" unescaped.
    return jinja2.Environment(
        loader=jinja2.PackageLoader("saga_fast"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
