# SPDX-License-Identifier: Apache-2.0
"""The site: `just docs` builds it into build/site, and a warning is an error.

The source directory is the repository: pages are docs/*.md and the files on top, so that a relative
link is right on a code host and on the site, and one to another file offers it as a download.
"""

import sys
from pathlib import Path

import sandboxlib

sys.path.insert(0, str(Path(__file__).resolve().parent))

import docstrings
import output_of

project = "sandboxlib"
copyright = "the authors of sandboxlib, Apache-2.0"
version = release = sandboxlib.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
include_patterns = [
    "docs/*.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "tests/README.md",
]
root_doc = "docs/index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
smartquotes = False  # it would turn the quotes around a value
add_module_names = False
maximum_signature_line_length = 70
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"sandboxlib {version}"
html_static_path = ["style.css"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": False}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app):  # type: ignore[no-untyped-def]
    app.add_directive("output-of", output_of.OutputOf)
    app.connect("autodoc-process-docstring", docstrings.process)
