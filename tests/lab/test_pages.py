"""An executed notebook as a page that needs no network."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ppr_core.lab import pages

LINKS = [("Gallery", "index.html"), ("One", "01_one.html"), ("Two", "02_two.html")]


@pytest.fixture
def copy(tmp_path):
    """A notebook with all that pages treat in a way of their own."""
    given = new_code_cell("secret: int = 1", metadata={"tags": ["parameters"]})
    figure = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    widget = new_output("display_data", {pages.WIDGET: {}, "text/plain": "VBox(children=())"})
    cells = [
        new_markdown_cell("# 1. One: a question?\n\n$$\\min_W \\; L(W)$$\n\n[two](02_two.ipynb)"),
        new_markdown_cell("| symbol | meaning |\n|---|---|\n| $\\lVert x \\rVert_2$ | a < b |"),
        given,
        new_code_cell("price = '$5 and $6'", outputs=[figure, widget]),
    ]
    path = tmp_path / "01_one.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_a_page_has_equations_pictures_and_no_script(copy):
    html = pages.page(copy)
    assert "<title>1. One: a question?</title>" in html
    assert html.count("<math") == 2 and "$$" not in html
    row = re.search(r"<td><math.*?</math></td>\s*<td>a &lt; b</td>", html, re.DOTALL)
    assert row, "a formula does not end its cell"
    assert "<script" not in html
    assert not re.search(r"""(src|href)=["']?https?:""", html), "nothing comes from elsewhere"
    assert "data:image/png;base64,iVBORw0KGgo=" in html and "&lt;Figure&gt;" not in html
    assert 'alt="1. One: a question?"' in html
    assert "VBox" not in html and "A slider stands here in JupyterLab" in html
    assert "secret" not in html, "the defaults are folded away"
    assert "$5 and $6" in re.sub(r"<[^>]+>", "", html), "code is no formula"
    assert '<nav class="book">' not in html and "02_two.ipynb" in html


def test_in_a_site_pages_lead_to_pages(copy):
    html = pages.page(copy, nav=LINKS, here="01_one.html")
    assert '<a href="01_one.html" aria-current="page">One</a>' in html
    assert html.count('href="02_two.html"') == 2 and ".ipynb" not in html
    alone = pages.page(copy, nav=LINKS[:2], here="01_one.html")
    assert "02_two" not in alone and "two" in alone, "no link leads nowhere"


def test_text_in_a_frame_is_escaped():
    assert "a &lt; b" in pages.framed("t", "a < b")
