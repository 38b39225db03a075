"""Configuration of the site: ``make docs``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import customops  # noqa: E402

project = "customops"
release = version = customops.__version__
copyright = "the authors of customops, MIT licence"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docs.book.mathml",
    "docs.book.docstrings",
]

html_theme = "furo"
html_title = "customops"
html_static_path = ["book/static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": False}
html_math_renderer = "mathml"
pygments_style = "friendly"

exclude_patterns = ["files"]

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
nb_execution_timeout = 120
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_ipywidgets_js: dict = {}  # nothing is fetched
nb_merge_streams = True

autodoc_typehints = "none"  # the signature has what the source has
python_maximum_signature_line_length = 60
napoleon_use_param = False
napoleon_use_rtype = False
suppress_warnings = ["misc.highlighting_failure"]  # of text that shows a program
