"""The documentation site, which ``make docs`` builds.

Sphinx's source folder is the repository, so a link that is right on GitHub is right on the site. A link leads to a file:
another page, or any other file of the repository, of which the site keeps a copy. A link to a folder is a warning.
"""

from __future__ import annotations

from sphinx.application import Sphinx

import potq.kernels
import potq.qat
from potq.version import __version__

FACES = (potq, potq.kernels, potq.qat)

project = "potq"
copyright = "the potq authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/**.rst", "*/README.md", "*.md"]
exclude_patterns = [".*", "build", "dist", "demo-out", "src", "csrc", "tests"]

myst_heading_anchors = 3
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"potq {__version__}"
html_extra_path = ["redirect"]  # index.html, which leads to docs/index.html
html_copy_source = False

nitpicky = True  # a docstring's reference to a name of potq must lead somewhere; other packages' pages are not asked
nitpick_ignore_regex = [("py:.*", r"(?!potq\.).*|.*\.(_\w+|T)")]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", _stands_elsewhere)


def _stands_elsewhere(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leave out of a module's page what has its place on the page of the package that users import it from."""
    if name == "model_config":  # pydantic's
        return True
    return True if what == "module" and any(getattr(face, name, None) is member for face in FACES) else None
