"""The site of the notebooks, for Sphinx: pages are files of the repository as they are, and nothing is run.

sphinx-build -c .ci/book . .book/site, from the repository's folder; `make book` does it.
"""

import re
from html import escape
from pathlib import Path

from docutils.nodes import SkipNode, math, math_block
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[2]
project = "DeepChest"
author = "The DeepChest contributors"
root_doc = "README"
extensions = ["myst_nb"]
html_theme = "furo"
html_title = "DeepChest"
html_extra_path = ["index.html"]  # leads to README.html
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_math_renderer = "mathml"
include_patterns = [
    "*.md", "data/**.md", "deepchest_utils/*.md", "notebooks/*.md", "notebooks/[0-9]*.ipynb",
    "notebooks/appendix/A*.ipynb", "notebooks/solutions/*.ipynb",
]  # fmt: skip
exclude_patterns = [".*", "runs", "data/raw", "data/processed"]
nb_execution_mode = "off"
nb_number_source_lines = False
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
# links to source files and folders stay as they are on GitHub; a folded cell may have a title alone
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type", "misc.highlighting_failure"]
SPELLINGS = {  # of TeX, as docutils knows them
    r"\\([Bb]ig+)(?![A-Za-z])": r"\\\1l",
    r"(\\[td]?frac)(\d)(\d)": r"\1{\2}{\3}",
    r"\\dots(?![A-Za-z])": r"\\ldots",
}
CONTENTS = """

```{{toctree}}
:hidden:
:caption: {caption}
{pages}
```
"""


def _pages(pattern: str) -> list[str]:
    return [path.relative_to(ROOT).with_suffix("").as_posix() for path in sorted(ROOT.glob(pattern))]


def _add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """The table of contents, below the README, which on GitHub has none."""
    if page != root_doc:
        return
    parts = {
        "Notebooks": [*_pages("notebooks/[0-9][0-9]_*.ipynb"), "notebooks/README"],
        "Appendix": _pages("notebooks/appendix/*.ipynb"),
        "Solutions": _pages("notebooks/solutions/*.ipynb"),
        "Package and data": [
            "deepchest_utils/README", "data/README", "data/PHANTOM", "deepchest_utils/MODEL_CARD", "CLAIM",
            *_pages("data/results/*.md"), "CONTRIBUTING", "CHANGELOG",
        ],
    }  # fmt: skip
    for caption, pages in parts.items():
        source[0] += CONTENTS.format(caption=caption, pages="\n".join(pages)) if pages else ""


def _adapt_notebook(app: Sphinx, page: str, source: list[str]) -> None:
    """Cells that JupyterLab folds are folded here as well; its anchors have capitals, those of this site have none."""
    if (ROOT / f"{page}.ipynb").exists():
        source[0] = re.sub(r"(\.ipynb#)([\w-]+)", lambda m: m[1] + m[2].lower(), source[0])
        folded = re.compile(r'"jupyter": \{\s*"source_hidden": true\s*\}(,\s*"tags": \[)?')
        source[0] = folded.sub(lambda m: '"tags": ["hide-input"' + (", " if m[1] else "]"), source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", _add_contents)
    app.connect("source-read", _adapt_notebook)
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))


def _formula(translator: HTML5Translator, node: math | math_block) -> None:
    """MathML, which browsers draw by themselves: MathJax would be fetched from the network."""
    text = node.astext()
    for pattern, known in SPELLINGS.items():
        text = re.sub(pattern, known, text)
    try:
        translator.body.append(tex2mathml(text, as_block=isinstance(node, math_block)))
    except MathError as unknown:
        getLogger(__name__).warning("a formula is shown as TeX (%s): %s", unknown, node.astext(), location=node)
        translator.body.append(f"<code>{escape(node.astext())}</code>")
    raise SkipNode
