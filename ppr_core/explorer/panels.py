"""The three panels: rho, epsilon and t; views over what the store holds, and live models."""

from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd

from ppr_core.explorer import pages
from ppr_core.explorer.choice import Choice, Latest, in_loop
from ppr_core.explorer.holdings import UNUSABLE, holdings, no_pam, not_measured, pams
from ppr_core.explorer.job import Job, Progress
from ppr_core.explorer.live import MEASURED, Samples, Walk
from ppr_core.lab.graph import Cell
from ppr_core.lab.reader import Reader
from ppr_core.lab.study import Study
from ppr_core.reporting import plots

FIGURES = {"c_acc": "C-Acc", "o_asr": "O-ASR", "p_asr": "P-ASR"}
ERRORS = {"backdoor_error": "backdoor error", "clean_error": "clean error"}
POSITION = "position t: backdoored at 0, purified at 1"
MARGIN = 0.02  # of an axis, beyond its range


class Panel:
    """A slider, what it says, and a picture; `load` when another model is chosen, `move` else.

    Args:
        name: of the panel, in its CSS classes: `ppr-NAME` is the slider, `ppr-NAME-out` the rest.
        slider: asks; only its last place counts.
        choice: of the model.
        lab: reads weights.
    """

    def __init__(
        self, name: str, slider: widgets.FloatSlider, choice: Choice, lab: Reader, *beside: object
    ) -> None:
        self.slider, self.choice, self.lab = slider, choice, lab
        slider.layout.width = "34rem"
        slider.add_class(f"ppr-{name}")
        self.text, self.detail = widgets.HTML(), widgets.HTML()
        self.pictures: list[widgets.Image] = []
        # Without the alignment a picture would be stretched to the height of what stands beside it.
        layout = widgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="0 .25rem")
        self.row = widgets.HBox(layout=layout)
        out = widgets.VBox([self.text, self.row])
        out.add_class(f"ppr-{name}-out")
        self.box = widgets.VBox([widgets.HBox([slider, *beside]), out])
        self.figure: plots.Figure | None = None
        self.table = pd.DataFrame()
        slider.observe(Latest(lambda: self._try(self.move)), "value")
        choice.listen(lambda: self._try(self.load))
        self._try(self.load)

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
        for image, picture in zip(self.pictures, pictures, strict=False):
            if image.value != picture:
                image.value = picture
        shown = (*([self.detail] if detail else []), *self.pictures[: len(pictures)])
        if self.row.children != shown:
            self.row.children = shown

    def nothing(self, why: str) -> None:
        """Say why there is nothing to show."""
        self.figure, self.table = None, pd.DataFrame()
        self.show(pages.note(why))

    def _try(self, answer: Callable[[], None]) -> None:
        """Answer, or say why not: an error unseen would leave the last answer standing."""
        try:
            answer()
        except (*UNUSABLE, RuntimeError) as error:
            self.nothing(f"{type(error).__name__}: {error}")


def slider(name: str, top: float, step: float, value: float, unit: str = "") -> widgets.FloatSlider:
    """Return a slider that tells of its last place only, not of every one on the way."""
    return widgets.FloatSlider(
        value=value,
        max=top,
        step=step,
        description=f"{name}{f' ({unit})' if unit else ''}",
        continuous_update=False,
        readout_format=".2f" if step < 0.5 else ".1f",
        style={"description_width": "7rem"},
    )


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


class RhoPanel(Panel):
    """C-Acc, O-ASR and P-ASR of PAM over rho, and the path at the nearest computed one."""

    def __init__(self, choice: Choice, lab: Reader, given: Study) -> None:
        self.given = given
        self.job: Job | None = None
        self.compute = widgets.Button(description="Compute this rho", icon="play")
        self.stop = widgets.Button(description="Cancel", icon="stop", disabled=True)
        self.bar = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="14rem"))
        self.status = widgets.HTML()
        for widget, name in ((self.compute, "compute"), (self.stop, "cancel"), (self.bar, "bar")):
            widget.add_class(f"ppr-{name}")
        self.status.add_class("ppr-status")
        self.compute.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self.cancel())
        super().__init__("rho", slider("rho", 2.0, 0.05, 1.0), choice, lab)
        controls = widgets.HBox([self.compute, self.stop, self.bar, self.status])
        self.box.children = (self.box.children[0], controls, *self.box.children[1:])

    def load(self) -> None:
        """Read the curve of PAM for the chosen attack and seed."""
        held, cell = self.choice.study, self.choice.cell
        self.curve = held.rho_curve(cell.attack, cell.seed)
        self.paths: dict[Cell, plots.Picture] = {}
        top = max([2.0, *self.curve["rho"]])
        self.slider.max = top
        limits = (-MARGIN * top, (1 + MARGIN) * top)
        title, axis = (
            f"{cell.attack}, seed {cell.seed}: PAM over rho",
            "rho (L2 length of the path step)",
        )
        curves = plots.Curves(title, "rho", axis, self.curve, FIGURES, limits)
        self.picture = plots.Picture([curves])
        self.move()

    def move(self) -> None:
        """Show the nearest computed rho, and say so where it is not the one asked for."""
        asked = self.slider.value
        running = self.job is not None
        if not len(self.curve):
            plan, cell = self.choice.study.plan, self.choice.cell
            self.compute.disabled = running or not pams(plan, cell.attack, cell.seed)
            self.nothing(no_pam(plan))
            return
        index = int((self.curve["rho"] - asked).abs().idxmin())
        row: Any = self.curve.loc[index]
        there = bool(abs(row["rho"] - asked) < 1e-9)
        self.compute.disabled = running or there
        says = f"<b>rho {asked:g}</b>"
        if not there:
            says += f" is not computed; shown is the nearest, <b>rho {row['rho']:g}</b>"
        named = {FIGURES[name]: row[name] for name in FIGURES}
        self.table = self.curve.drop(columns="cell").rename(columns=FIGURES)
        text = f"<p>{says}: {pages.figures(named)}</p>"
        pictures = [self.picture.png([(row["rho"], {name: row[name] for name in FIGURES})])]
        path = self._path(row["cell"], row["rho"])
        if path is None:
            text += pages.note(f"No path. {not_measured('path', self.choice.study.plan)}")
        else:
            pictures.append(path.png([None]))
        self.show(text, pages.table(self.table, index), *pictures)
        self.figure = self.picture.figure

    def _path(self, cell: Cell, rho: float) -> plots.Picture | None:
        if cell not in self.paths:
            points = self.choice.study.path(cell)
            if not len(points):
                return None
            self.paths[cell] = path_picture(points, f"the path to PAM at rho {rho:g}")
        return self.paths[cell]

    # -- one more rho ------------------------------------------------------------------------

    def start(self) -> None:
        """Compute PAM and RA at the chosen rho, in another process."""
        if self.job is not None:
            return
        held, rho = self.choice.study, round(self.slider.value, 6)
        plan, cell = held.with_rho(self.choice.cell, rho)
        self.compute.disabled, self.stop.disabled = True, False
        self.bar.bar_style = "info"
        say = in_loop(lambda progress: self._report(progress, rho))
        self.job = Job(plan.study, held.store, cell, say)

    def cancel(self) -> None:
        """Stop the running computation; finished stages and epochs are kept."""
        if self.job is not None:
            self.stop.disabled = True
            self.job.cancel()

    def _report(self, progress: Progress, rho: float) -> None:
        self.bar.value = progress.share
        words = "" if progress.state == "running" else f"<b>{progress.state}</b>: "
        self.status.value = f"rho {rho:g} {words}{escape(progress.text)}"
        if progress.state == "running":
            return
        styles = {"done": "success", "cancelled": "warning", "failed": "danger"}
        self.bar.bar_style = styles[progress.state]
        self.job, self.stop.disabled = None, True
        if progress.state == "done":
            self._try(lambda: self.choice.renew(holdings(self.lab.store, self.given)))
        else:
            self._try(self.move)


class EpsilonPanel(Panel):
    """QRA at any budget: images, what every stage's model answers, and the measured rates."""

    rates = {"p_asr": "P-ASR (triggered)", "c_asr": "C-ASR (clean)", "control": "unseen clean"}

    def __init__(self, choice: Choice, lab: Reader) -> None:
        super().__init__("epsilon", slider("epsilon", 16.0, 0.5, 8.0, "1/255"), choice, lab)

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
            self.nothing(not_measured("query", self.choice.study.plan))
            return
        asked = self.slider.value
        sample = self.samples.at(asked / 255)
        row = self.points.loc[(self.points["eps"] - asked).abs().idxmin()]
        rates = {name: row[column] for column, name in self.lines.items()}
        there = abs(row["eps"] - asked) < 1e-6
        near = "" if there else f" (measured at {row['eps']:g}/255)"
        classes = self.samples.plain.classes
        true = [classes[index] for index in self.samples.plain.labels.tolist()]
        target = classes[self.samples.trigger.target]
        text = (
            f"<p><b>epsilon {asked:g}/255</b>{near}: {pages.figures(rates)}. The attacker's target "
            f"is <b>{escape(target)}</b>, in red.</p>"
        )
        mark = (asked, {name: row[name] for name in self.lines} if there else {})
        self.show(text, pages.sample(sample, true), self.picture.png([mark]))
        self.figure, self.table = self.picture.figure, sample.answers


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
        if not len(self.points):
            text += pages.note(f"No curve. {not_measured('path', self.choice.study.plan)}")
        self.show(text, "", self.picture.png([(t, errors)]))
        self.figure = self.picture.figure
        self.table = pd.DataFrame([{"t": t, **found}])
