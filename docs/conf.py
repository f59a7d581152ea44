"""Sphinx settings. `python -m sphinx -W -b html docs build/docs` builds the pages offline."""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from tfcompress.version import __version__

project = "tfcompress"
release = version = __version__
copyright = "the authors of tfcompress"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = f"tfcompress {release}"
# Sphinx has a page `search` of its own: `sensitivity` includes ours.
exclude_patterns = ["search.md"]
myst_heading_anchors = 3
autosummary_generate = False
autodoc_typehints = "none"
# Keras documents what every layer and callback has.
_OF_KERAS = (
    "from_config get_config build call compute_output_spec compute_output_shape compute_loss "
)
_OF_KERAS += "train_step test_step losses set_model exclude_from_weight_decay"
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": ", ".join(_OF_KERAS.split()),
}
napoleon_google_docstring = True
napoleon_use_ivar = True
# In docstrings a single backquote is code, as in Markdown.
default_role = "code"
# Links from pages to files of the repository lead nowhere in the site.
suppress_warnings = ["myst.xref_missing", "autosectionlabel"]


def _to_rst(app, what, name, obj, options, lines) -> None:
    """Docstrings are written with the code spans and fences of Markdown."""
    del app, what, name, obj, options
    text, parts = "\n".join(lines), []
    for i, part in enumerate(re.split(r"^([ ]*)```\w*\n(.*?)^[ ]*```$", text, flags=re.S | re.M)):
        if i % 3 == 0:
            spans = re.split(r"`+([^`]+)`+", part)
            spans[::2] = [span.replace("|", "\\|") for span in spans[::2]]
            # A letter behind a code span, as in a plural, needs an escaped space.
            spans[2::2] = [rf"\ {s}" if s[:1].isalnum() else s for s in spans[2::2]]
            spans[1::2] = [f"``{' '.join(span.split())}``" for span in spans[1::2]]
            parts.append("".join(spans))
        elif i % 3 == 1:
            indent = part
        else:
            body = "\n".join(f"    {line}" if line else "" for line in part.splitlines())
            parts.append(f"\n{indent}.. code-block:: python\n\n{body}\n")
    lines[:] = "".join(parts).splitlines()


def setup(app) -> None:
    """Called by Sphinx. Before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _to_rst, priority=100)
