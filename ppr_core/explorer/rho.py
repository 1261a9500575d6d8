"""The panel of rho: PAM over what is computed of it, and one more value on demand."""

from html import escape
from typing import Any

import ipywidgets as widgets

from ppr_core.explorer import pages, words
from ppr_core.explorer.choice import Choice, in_loop
from ppr_core.explorer.holdings import holdings, no_pam, not_measured, pams
from ppr_core.explorer.job import Job, Progress
from ppr_core.explorer.panels import MARGIN, Panel, path_picture, slider
from ppr_core.lab.graph import Cell
from ppr_core.lab.reader import Reader
from ppr_core.lab.study import Study
from ppr_core.reporting import plots

FIGURES = {"c_acc": "C-Acc", "o_asr": "O-ASR", "p_asr": "P-ASR"}


class RhoPanel(Panel):
    """C-Acc, O-ASR and P-ASR of PAM over rho, and the path at the nearest computed one."""

    def __init__(self, choice: Choice, lab: Reader, given: Study) -> None:
        self.given = given
        self.job: Job | None = None
        self.followed: Cell | None = None  # the PAM that the slider has chosen for all panels
        self.compute = widgets.Button(description="▶ Compute this rho")
        self.stop = widgets.Button(description="■ Cancel", disabled=True)
        self.bar = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="14rem"))
        self.status = widgets.HTML()
        for widget, name in ((self.compute, "compute"), (self.stop, "cancel"), (self.bar, "bar")):
            widget.add_class(f"ppr-{name}")
        self.status.add_class("ppr-status")
        self.compute.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self.cancel())
        super().__init__("rho", slider("rho", 2.0, 0.05, 1.0), choice, lab)
        row = widgets.Layout(flex_flow="row wrap")
        job = widgets.HBox([self.compute, self.stop, self.bar, self.status], layout=row)
        self.controls.children = (*self.controls.children, job)

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
        chosen = self.curve.loc[self.curve["cell"] == cell, "rho"]
        if len(chosen) and cell != self.followed:  # chosen by menu: the slider goes there
            self.followed = cell
            self.slider.value = float(chosen.iloc[0])
        self.move()

    def _nearest(self) -> Any:
        """Return the row of the computed rho that the slider is nearest to."""
        return self.curve.loc[(self.curve["rho"] - self.slider.value).abs().idxmin()]

    def move(self) -> None:
        """Show the nearest computed rho, and say so where it is not the one asked for."""
        asked = self.slider.value
        running = self.job is not None
        if not len(self.curve):
            plan, cell = self.choice.study.plan, self.choice.cell
            self.compute.disabled = running or not pams(plan, cell.attack, cell.seed)
            self.nothing(no_pam(plan))
            return
        row = self._nearest()
        there = bool(abs(row["rho"] - asked) < 1e-9)
        self.compute.disabled = running or there
        says = f"<b>rho {asked:g}</b>"
        if not there:
            says += f" is not computed; shown is the nearest, <b>rho {row['rho']:g}</b>"
        named = {FIGURES[name]: row[name] for name in FIGURES}
        self.table = self.curve.drop(columns="cell").rename(columns=FIGURES)
        text = f"<p>{says}: {pages.figures(named)}</p>"
        text += self.verdict(row["cell"], words.of_rho(row["rho"], row["o_asr"], row["p_asr"]))
        text += self._follow(row["cell"])
        # The line stands where the slider stands, the rings where there are figures.
        rings = {name: row[name] for name in FIGURES}
        pictures = [self.picture.png([(asked, rings, row["rho"])])]
        path = self._path(row["cell"], row["rho"])
        if path is None:
            missing = not_measured("path", self.choice.study, row["cell"])
            text += pages.note(f"No path. {missing}")
        else:
            pictures.append(path.png([None]))
        self.show(text, pages.table(self.table, int(row.name)), *pictures)
        self.figure = self.picture.figure

    def _follow(self, cell: Cell) -> str:
        """Have the other panels show PAM at this rho too, or say why they do not."""
        chosen = self.choice.cell
        if chosen.defense == "pam":
            self.followed = cell
            self.choice.pick(cell)
            return ""
        name = self.choice.study.name(chosen)
        return pages.note(
            f"The panels below show {name}, which has no rho; choose a pam as the defense, and "
            "they follow this slider."
        )

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
        say = in_loop(lambda progress: self._report(progress, rho, cell))
        self.job = Job(plan.study, held.store, cell, say, held.seconds(cell))

    def cancel(self) -> None:
        """Stop the running computation; finished stages and epochs are kept."""
        if self.job is not None:
            self.stop.disabled = True
            self.job.cancel()

    def _report(self, progress: Progress, rho: float, cell: Cell) -> None:
        self.bar.value = progress.share
        words = "" if progress.state == "running" else f"<b>{progress.state}</b>: "
        left = f" · about {_time(progress.left)} left" if progress.left is not None else ""
        self.status.value = f"rho {rho:g} {words}{escape(progress.text)}{left}"
        if progress.state == "running":
            return
        styles = {"done": "success", "cancelled": "warning", "failed": "danger"}
        self.bar.bar_style = styles[progress.state]
        self.job, self.stop.disabled = None, True
        if progress.state == "done":
            self.attempt(lambda: self._renew(cell))
        else:
            self.attempt(self.move)

    def _renew(self, cell: Cell) -> None:
        """Offer what was computed; where a PAM is chosen, choose it."""
        now = cell if self.choice.cell.defense == "pam" else None
        self.choice.renew(holdings(self.lab.store, self.given), now)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
