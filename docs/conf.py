"""Sphinx configuration; ``make docs`` builds with warnings as errors and without the internet."""

from pyroflows import __version__

project = "pyroflows"
author = "The pyroflows contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pyroflows {release}"
