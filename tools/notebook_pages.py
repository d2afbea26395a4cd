"""MkDocs hook: notebooks of docs/ become pages, and links to them lead there."""

import json

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


class _Notebook(File):
    """A file that MkDocs treats as a page, whatever its name ends in."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the notebooks among the files of the site."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            files.append(_Notebook(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:  # noqa: ARG001 - what MkDocs calls it with
    """The Markdown of a notebook; None for other pages, which MkDocs reads itself."""
    return notebook_markdown(page.file.content_string) if isinstance(page.file, _Notebook) else None


def notebook_markdown(notebook: str) -> str:
    """The cells of a notebook (JSON, nbformat 4) as Markdown."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook)["cells"])
    return "\n\n".join(f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells) + "\n"
