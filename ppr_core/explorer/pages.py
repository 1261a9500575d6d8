"""What the panels say: HTML from results, with nothing in it that needs a network."""

import base64
from html import escape
from typing import Any

import pandas as pd
from torch import Tensor
from torchvision.io import encode_png

from ppr_core.explorer.live import Sample

SIDE = 64  # of a shown image, CSS pixels
# Colours of the theme that JupyterLab or Voila has; of a light page where there is none.
BAD, NOTE = "var(--jp-error-color1, #c0392b)", "var(--jp-ui-font-color2, var(--soft, #5b6775))"
MARKED = "var(--jp-layout-color2, var(--shade, #f3f6f9))"  # --shade and so on are lab/page's
LINE = "var(--jp-border-color2, var(--line, #d8dee6))"
PICTURE = "ppr-picture"  # class of a picture of curves
# Pictures of curves are drawn on white. A dark theme turns light into dark and keeps the hues.
STYLE = f"""<style>[data-jp-theme-light="false"] .{PICTURE} {{
  filter: invert(.93) hue-rotate(180deg); }} .{PICTURE} {{ max-width: 100%; }}</style>"""


def figures(values: dict[str, float]) -> str:
    """Return named percentages on one line."""
    return " · ".join(f"{name} <b>{value:.1f} %</b>" for name, value in values.items())


def note(text: str) -> str:
    """Return an aside, its `code` marked as such."""
    parts = escape(text, quote=False).split("`")
    marked = [f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)]
    return f'<p style="color:{NOTE};line-height:1.45;max-width:60rem">{"".join(marked)}</p>'


def told(sentence: str) -> str:
    """Return the sentence that says what the figures mean."""
    return f'<p style="font-weight:600;line-height:1.45;max-width:60rem">{escape(sentence)}</p>'


def refused(sentence: str) -> str:
    """Return, in red, the sentence that says why figures mean nothing."""
    style = f"color:{BAD};font-weight:600;line-height:1.45;max-width:60rem"
    return f'<p style="{style}">{escape(sentence)}</p>'


def table(frame: pd.DataFrame, strong: int | None = None) -> str:
    """Return a table, one row marked: settings in the first column, percentages in the others."""
    head = "".join(f"<th {CELL}>{escape(str(name))}</th>" for name in frame.columns)
    lines = []
    for index, row in enumerate(frame.itertuples(index=False)):
        mark = f' style="background:{MARKED};font-weight:600"' if index == strong else ""
        texts = [f"{row[0]:g}", *(f"{value:.1f}" for value in row[1:])]
        cells = "".join(f"<td {CELL}>{text}</td>" for text in texts)
        lines.append(f"<tr{mark}>{cells}</tr>")
    return f'<table style="border-collapse:collapse"><tr>{head}</tr>{"".join(lines)}</table>'


CELL = f'style="padding:.1rem .55rem;text-align:right;border-bottom:1px solid {LINE}"'


def sample(shown: Sample, labels: list[str]) -> str:
    """Return the images of a sample, under each row what every model makes of them.

    Args:
        shown: images and answers.
        labels: true classes, one an image.
    """
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    lines = [f"<tr><th {SIDE_HEAD}>true class</th>{head}</tr>"]
    for row, images in shown.images.items():
        title = f"perturbation × {round(shown.factor, 1):g}" if row == "perturbation" else row
        cells = "".join(
            f"<td>{_image(image, f'{row}, a {label}')}</td>"
            for image, label in zip(images, labels, strict=True)
        )
        lines.append(f"<tr><th {SIDE_HEAD}>{title}</th>{cells}</tr>")
        answers = shown.answers[shown.answers["row"] == row]
        for model, group in answers.groupby("model", sort=False):
            cells = "".join(_answer(answer) for answer in group.itertuples())
            lines.append(f"<tr><td {SIDE_HEAD}>{escape(str(model))} says</td>{cells}</tr>")
    return (
        '<table class="ppr-sample" style="border-collapse:collapse;text-align:center;'
        f'font-size:11px;line-height:1.45">{"".join(lines)}</table>'
    )


SIDE_HEAD = 'style="text-align:right;padding-right:.8rem;white-space:nowrap"'


def _answer(answer: Any) -> str:
    """One model's prediction and confidence; the attacker's target stands out."""
    style = f"color:{BAD};font-weight:700;" if answer.target else ""
    says = f"{escape(answer.predicted)} {answer.confidence:.0f} %"
    return f'<td style="{style}padding:0 .25rem;white-space:nowrap">{says}</td>'


def _image(image: Tensor, alt: str) -> str:
    data = base64.b64encode(bytes(encode_png(image.contiguous(), 3).numpy())).decode()
    size = f'width="{SIDE}" height="{SIDE}"'
    style = 'style="image-rendering:pixelated;margin:2px"'
    return f'<img src="data:image/png;base64,{data}" {size} {style} alt="{escape(alt)}">'
