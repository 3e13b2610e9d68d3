"""Sphinx's configuration for the site: `make docs` builds it in build/docs/html."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fastrnn._version import __version__

ROOT = Path(__file__).parents[1]
SOURCES = "https://github.com/fastrnn/fastrnn/blob/main"

project = "fastrnn"
author = "The fastrnn contributors"
copyright = author
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
nitpicky = True
# Types of torch, whose documentation is elsewhere.
nitpick_ignore_regex = [(r"py:.*", r"(?!fastrnn).*")]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebook; the page shows the outputs that it has
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autodoc_typehints = "none"  # the docstrings say more
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Inputs", "params_style")]

html_theme = "furo"
html_title = f"fastrnn {release}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Pages of the site whose text stands elsewhere in the repository.
ELSEWHERE = {
    "changelog": ROOT / "CHANGELOG.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "examples": ROOT / "examples/README.md",
}
# Pages that other pages lead to in the sidebar. In the repository their links do.
BELOW = {
    "benchmarks": "benchmarks/*",
    "design/index": "design/*",
    "howto/index": "howto/*",
}
LINK = re.compile(r"\]\((?P<path>[\w./-]+)(?P<anchor>#[\w-]+)?\)")


def read_page(app: Any, page: str, source: list[str]) -> None:
    """Lead the links of a page, which are relative as in the repository, to pages of the site.

    Those to files that are none lead to the repository.
    """
    file = ELSEWHERE.get(page, Path(app.env.doc2path(page)))
    pages = {path: name for name, path in ELSEWHERE.items()}
    here = (app.srcdir / page).parent

    def target(link: re.Match[str]) -> str:
        path, anchor = (file.parent / link["path"]).resolve(), link["anchor"] or ""
        if path in pages:
            path = app.srcdir / f"{pages[path]}.md"
        if not path.exists():
            return link[0]
        is_page = path.is_relative_to(app.srcdir) and path.suffix in {".md", ".ipynb"}
        if is_page or path.suffix in {".png", ".svg"}:
            return f"]({os.path.relpath(path, here)}{anchor})"
        return f"]({SOURCES}/{path.relative_to(ROOT)}{anchor})"

    source[0] = LINK.sub(target, file.read_text(encoding="utf-8"))
    if page in BELOW:
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n/{BELOW[page]}\n```\n"


def setup(app: Any) -> None:
    app.connect("source-read", read_page)
