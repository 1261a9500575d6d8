"""Executed notebooks as HTML pages that need no network: no script, equations as MathML."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nbformat
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

TEMPLATE = "page.html.j2"
MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<line>[^$\n]+?)\$", re.DOTALL)
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<notebook>\w+)\.ipynb\)")
GIVEN = "injected-parameters"
FOLDED = """<details><summary>The parameters of this run</summary>

```python
{}
```

</details>"""
WIDGET = "application/vnd.jupyter.widget-view+json"
SLIDER = "<p><i>A slider stands here in JupyterLab.</i></p>"

Links = Sequence[tuple[str, str]]  # (text, address)


def page(notebook: Path, *, nav: Links = (), here: str = "") -> str:
    """Return an executed notebook as a page.

    Args:
        notebook: path of the executed copy.
        nav: links above it; addresses of other notebooks in it are then those of their pages.
        here: the address of this page, among those.
    """
    content = nbformat.read(notebook, as_version=4)
    heading = ""
    for cell in content.cells:
        if cell.cell_type == "markdown":
            heading = _heading(cell.source) or heading
            cell.source = MATH.sub(_mathml, cell.source)
            if nav:
                cell.source = LINK.sub(partial(_led, {link for _, link in nav}), cell.source)
        elif GIVEN in cell.metadata.get("tags", ()):  # by papermill: all of a study's settings
            cell.cell_type, cell.source = "markdown", FOLDED.format(cell.source)
        else:
            cell.outputs = [_still(output, heading) for output in cell.outputs]
    settings = Config()
    settings.TagRemovePreprocessor.remove_input_tags = {"parameters"}  # those it got are shown
    settings.HTMLExporter.preprocessors = ["nbconvert.preprocessors.TagRemovePreprocessor"]
    exporter = HTMLExporter(template_name="basic", config=settings)
    body, _ = exporter.from_notebook_node(content)
    return framed(title(content), Markup(body), nav=nav, here=here)


def title(content: NotebookNode) -> str:
    """Return the first heading of a notebook."""
    texts = (cell.source for cell in content.cells if cell.cell_type == "markdown")
    return next(filter(None, map(_heading, texts)), "notebook")


def _heading(text: str) -> str:
    """Return the last heading of a text, or nothing."""
    return next(iter(re.findall(r"^#+ (.+)$", text, re.MULTILINE)[-1:]), "").strip()


def framed(title: str, body: str, *, nav: Links = (), here: str = "") -> str:
    """Return a page: a body under the links, in the colours that the reader's system has.

    Args:
        title: of the page.
        body: HTML; text that is no `Markup` is escaped.
        nav: links above it.
        here: the address of this page, among those.
    """
    colours = {
        name: Markup(HtmlFormatter(style=style).get_style_defs(".highlight"))
        for name, style in (("light", "default"), ("dark", "github-dark"))
    }
    return (
        environment()
        .get_template(TEMPLATE)
        .render(title=title, body=body, nav=nav, here=here, **colours)
    )


def environment(package: str = "ppr_core.lab") -> Environment:
    """Return what renders the templates of a package; `theme.css.j2` is known to all of them."""
    places = [PackageLoader(name, "") for name in dict.fromkeys([package, "ppr_core.lab"])]
    return Environment(
        loader=ChoiceLoader(places),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
    )


def _led(there: set[str], found: re.Match[str]) -> str:
    """Return a link to a notebook as one to its page; its text alone where the site has none."""
    page = f"{found['notebook']}.html"
    return f"[{found['text']}]({page})" if page in there else found["text"]


def _mathml(found: re.Match[str]) -> str:
    block = found["block"]
    made = convert(block or found["line"], display="block" if block else "inline")
    return made.replace("|", "&#x0007C;")  # which would end the cell of a table


def _still(output: NotebookNode, heading: str) -> NotebookNode:
    """Return an output as a page without scripts can show it, a picture named by its heading."""
    if WIDGET in output.get("data", {}):
        return nbformat.v4.new_output("display_data", {"text/html": SLIDER})
    if "image/png" in output.get("data", {}):
        output.metadata["image/png"] = {"alt": heading}
    return output
