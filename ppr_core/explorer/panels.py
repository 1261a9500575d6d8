"""What panels are, and those of epsilon and t: views over what the store holds, and live models."""

from collections.abc import Callable, Iterable
from html import escape

import ipywidgets as widgets
import numpy as np
import pandas as pd

from ppr_core.explorer import pages, words
from ppr_core.explorer.choice import Choice, Latest
from ppr_core.explorer.holdings import UNUSABLE, not_measured
from ppr_core.explorer.live import MEASURED, Samples, Walk
from ppr_core.lab.graph import Cell
from ppr_core.lab.reader import Reader
from ppr_core.reporting import plots

ERRORS = {"backdoor_error": "backdoor error", "clean_error": "clean error"}
POSITION = "position t: backdoored at 0, purified at 1"
MARGIN = 0.02  # of an axis, beyond its range


class Panel:
    """Sliders, what they say, and a picture; `load` when another model is chosen, `move` else.

    The choice of the model stands above each panel, so that it is in sight wherever one reads.

    Args:
        name: of the panel, in its CSS classes: `ppr-NAME` is the slider, `ppr-NAME-out` the rest.
        slider: asks; of the places that it takes while an answer is made, only the last counts.
        choice: of the model.
        lab: reads weights.
        further: sliders that ask as well.
    """

    def __init__(
        self,
        name: str,
        slider: widgets.FloatSlider,
        choice: Choice,
        lab: Reader,
        *further: widgets.ValueWidget,
    ) -> None:
        self.slider, self.choice, self.lab = slider, choice, lab
        slider.add_class(f"ppr-{name}")
        self.text, self.detail = widgets.HTML(), widgets.HTML()
        self.pictures: list[widgets.Image] = []
        # Without the alignment a picture would be stretched to the height of what stands beside it.
        layout = widgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="0 .25rem")
        self.row = widgets.HBox(layout=layout)
        out = widgets.VBox([self.text, self.row])
        out.add_class(f"ppr-{name}-out")
        self.controls = widgets.VBox([slider, *further])
        self.box = widgets.VBox([choice.box, self.controls, out])
        self.figure: plots.Figure | None = None
        self.table = pd.DataFrame()
        moved = Latest(lambda: self.attempt(self.move))
        for asks in (slider, *further):
            asks.layout.width = "min(34rem, 100%)"
            asks.observe(moved, "value")
        choice.listen(lambda: self.attempt(self.load))
        self.attempt(self.load)

    def load(self) -> None:
        """Read what the chosen model needs, then answer."""
        raise NotImplementedError(f"{type(self).__name__}.load")

    def move(self) -> None:
        """Answer where the slider stands."""
        raise NotImplementedError(f"{type(self).__name__}.move")

    def show(self, text: str, detail: str = "", *pictures: bytes) -> None:
        """Put text and pictures where the last ones stood, without a flicker."""
        self.text.value, self.detail.value = text, detail
        while len(self.pictures) < len(pictures):
            self.pictures.append(widgets.Image(format="png"))
            self.pictures[-1].add_class(pages.PICTURE)
        for image, picture in zip(self.pictures, pictures, strict=False):
            if image.value != picture:
                image.value = picture
        shown = (*([self.detail] if detail else []), *self.pictures[: len(pictures)])
        if self.row.children != shown:
            self.row.children = shown

    @property
    def shown(self) -> list[bytes]:
        """The pictures that stand in the panel."""
        return [child.value for child in self.row.children if isinstance(child, widgets.Image)]

    def verdict(self, cell: Cell, sentence: str) -> str:
        """Return what figures of a model mean; where it fails a check, that in its place, in red.

        Args:
            cell: the model.
            sentence: what they mean otherwise.
        """
        held = self.choice.study
        failed = held.failed(cell)
        name = f"{cell.attack} / {held.name(cell)}"
        return pages.refused(words.gated(name, failed)) if failed else pages.told(sentence)

    def nothing(self, why: str) -> None:
        """Say why there is nothing to show."""
        self.figure, self.table = None, pd.DataFrame()
        self.show(pages.note(why))

    def attempt(self, answer: Callable[[], None]) -> None:
        """Answer, or say why not: an error unseen would leave the last answer standing."""
        try:
            answer()
        except (*UNUSABLE, RuntimeError) as error:
            self.nothing(f"{type(error).__name__}: {error}")


def slider(name: str, top: float, step: float, value: float, unit: str = "") -> widgets.FloatSlider:
    """Return a slider that tells of its places while it is dragged."""
    return widgets.FloatSlider(
        value=value,
        max=top,
        step=step,
        description=f"{name}{f' ({unit})' if unit else ''}",
        readout_format=".2f" if step < 0.5 else ".1f" if step < 1 else ".0f",
        style={"description_width": "7rem"},
    )


def between(points: pd.DataFrame, x: str, at: float, columns: Iterable[str]) -> dict[str, float]:
    """Return the values of lines at a place, read off straight lines between their points."""
    points = points.sort_values(x)
    known = {name: points.dropna(subset=[name]) for name in columns}
    return {n: float(np.interp(at, rows[x], rows[n])) for n, rows in known.items() if len(rows)}


def path_picture(points: pd.DataFrame, title: str) -> plots.Picture:
    """Return the errors along a path; without points, axes for live figures."""
    lines = dict(ERRORS)
    if len(points):
        ways = points.pivot(index="t", columns="batch_norm", values="backdoor_error")
        points = points[points["batch_norm"] == points["batch_norm"].iloc[0]]
        if "recalibrate" in ways and len(ways.columns) > 1:
            points = points.merge(ways[["recalibrate"]].reset_index(), on="t")
            points = points.rename(columns={"recalibrate": "recalibrated"})
            lines["recalibrated"] = "recalibrated"
    limits = (-MARGIN, 1 + MARGIN)
    return plots.Picture([plots.Curves(title, "t", POSITION, points, lines, limits)])


class EpsilonPanel(Panel):
    """QRA at any budget: images, what every stage's model answers, and the measured rates."""

    rates = {"p_asr": "P-ASR", "c_asr": "C-ASR", "control": "unseen clean"}

    def __init__(self, choice: Choice, lab: Reader) -> None:
        super().__init__("epsilon", slider("epsilon", 16.0, 0.5, 16.0, "1/255"), choice, lab)

    def load(self) -> None:
        """Read the generator and the models, and what was measured over the budget."""
        held, cell = self.choice.study, self.choice.cell
        self.samples = None
        stage = held.query(cell)
        if stage is not None:
            self.samples = Samples(held, self.lab, cell)
            rows = held.rows(stage).assign(eps=lambda points: 255 * points["eps"])
            points = rows[rows["scored"] == "self"].set_index("eps")
            control = rows[rows["scored"] == "clean_unseen"].set_index("eps")
            points = points.assign(control=control["p_asr"]).reset_index()
            points = points.dropna(axis="columns", how="all")  # not every study has the control
            self.lines = {name: self.rates[name] for name in self.rates if name in points}
            top = max(1.0, float(points["eps"].max()))
            self.slider.max = top
            title = f"{cell.attack}, {held.name(cell)}, seed {cell.seed}"
            axis, limits = "epsilon (1/255)", (-MARGIN * top, (1 + MARGIN) * top)
            curves = plots.Curves(title, "eps", axis, points, self.lines, limits)
            self.picture, self.points = plots.Picture([curves]), points
        self.move()

    def move(self) -> None:
        """Perturb the images by the chosen budget, and ask every model."""
        if self.samples is None:
            self.nothing(not_measured("query", self.choice.study, self.choice.cell))
            return
        asked = self.slider.value
        sample = self.samples.at(asked / 255)
        found = between(self.points, "eps", asked, self.lines)
        rates = {name: found[column] for column, name in self.lines.items()}
        start = between(self.points, "eps", 0.0, ["p_asr"])["p_asr"]
        says = words.of_epsilon(asked, start, found["p_asr"], found.get("control"))
        classes = self.samples.plain.classes
        true = [classes[index] for index in self.samples.plain.labels.tolist()]
        target = classes[self.samples.trigger.target]
        text = (
            f"<p><b>epsilon {asked:g}/255</b>{self._read(asked)}: {pages.figures(rates)}. The "
            f"attacker's target is <b>{escape(target)}</b>, in red.</p>"
        )
        text += self.verdict(self.choice.cell, says)
        self.show(text, pages.sample(sample, true), self.picture.png([(asked, found)]))
        self.figure, self.table = self.picture.figure, sample.answers

    def _read(self, asked: float) -> str:
        """Say where a budget lies that was not measured itself."""
        measured = sorted(self.points["eps"])
        if min(abs(eps - asked) for eps in measured) < 1e-6:
            return ""
        low = max((eps for eps in measured if eps < asked), default=measured[0])
        high = min((eps for eps in measured if eps > asked), default=measured[-1])
        return f" (read off the line between the measured {low:g} and {high:g}/255)"


class PathPanel(Panel):
    """The model at any point of the path, asked at once, beside the measured curve."""

    def __init__(self, choice: Choice, lab: Reader) -> None:
        super().__init__("t", slider("t", 1.0, 0.01, 0.5), choice, lab)

    def load(self) -> None:
        """Read the two ends of the path, and what was measured along it."""
        held, cell = self.choice.study, self.choice.cell
        self.points = held.path(cell)
        self.walk = Walk(held, self.lab, cell)
        title = f"{cell.attack}: the path to {held.name(cell)}, seed {cell.seed}"
        self.picture = path_picture(self.points, title)
        self.move()

    def move(self) -> None:
        """Ask the model at the chosen point."""
        t = self.slider.value
        errors = self.walk.at(t)
        found = {"C-Acc": 100 - errors["clean_error"], "backdoor error": errors["backdoor_error"]}
        about = f"measured now, on {MEASURED} test images of each kind; lines: on all of them"
        text = f"<p><b>t = {t:.2f}</b>: {pages.figures(found)} <i>({about})</i></p>"
        says = words.of_path(t, 100 - errors["backdoor_error"], self.points)
        text += self.verdict(self.choice.cell, says)
        if not len(self.points):
            missing = not_measured("path", self.choice.study, self.choice.cell)
            text += pages.note(f"No curve. {missing}")
        self.show(text, "", self.picture.png([(t, errors)]))
        self.figure = self.picture.figure
        self.table = pd.DataFrame([{"t": t, **found}])
