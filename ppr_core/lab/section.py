"""What a notebook holds on to: its study, its lab, and the run that keeps what it makes."""

import ast
import inspect
import os
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from ppr_core.config import unknown
from ppr_core.errors import ConfigError, need
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.places import ROOT
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study


class Section:
    """One section of the paper, executed.

    Args:
        title: the notebook's name, such as "02_retuning_attack".
        names: the notebook's `globals()`, see `resolve`. A setting that is None comes from
            `params/<name>.yaml`, so that no default stands twice.

    Raises:
        ConfigError: an unknown or unusable setting, before anything runs.
    """

    def __init__(self, title: str, names: Mapping[str, Any]) -> None:
        self.plan = Plan(resolve(names))
        self.store = Store()
        self.lab = Lab(self.store)
        self.study = self.plan.study
        self.run = os.environ.get("PPR_RUN", "")
        self.own = not self.run  # executed by hand or by plain papermill: the run is ours
        if self.own:
            self.run = self.store.start(
                self.study.name, title, tags={"kind": "notebook", "notebook": title}
            )

    def need(self, *measures: str) -> None:
        """Raise ConfigError unless the study takes these measures."""
        for name in measures:
            need(
                name in self.plan.measures,
                f"expected a study that measures {name!r}, got {self.study.name!r}; add "
                f"`measures: {{{name}: {{}}}}` to its file",
            )

    def settings(self) -> HTML:
        """Return the study's settings that differ from their defaults, folded, all of them."""
        usual = Study(name=self.study.name).flat()
        own = {n: value for n, value in self.study.flat().items() if value != usual.get(n)}
        lines = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
            for name, value in own.items()
        )
        return HTML(
            f"<details><summary>The study {escape(self.study.name)} differs from the defaults in "
            f"{len(own)} settings</summary><table><tr><th>setting</th><th>value</th></tr>{lines}"
            "</table></details>"
        )

    def compute(self) -> None:
        """Compute what the store does not hold yet; say what failed.

        Executed as a part of a study, there is nothing to compute: what failed is in the tables.
        """
        if os.environ.get("PPR_COMPUTED"):
            return
        if self.own:
            self.store.log(self.run, tags={"settings": self.plan.mark})
        for name, reason in engine.run(self.plan, self.lab).items():
            print(f"failed: {name}: {reason}")

    def figure(self, figure: Figure, name: str) -> Figure:
        """Keep a figure as an artifact of this section's run, and return it to be shown."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight")
            self.store.attach(self.run, path, "figures")
        return figure

    def drawn(
        self, points: pd.DataFrame, draw: Callable[[pd.DataFrame], Figure], name: str, measure: str
    ) -> Figure | Markdown:
        """Return a kept figure of points; where the study has none, what to add to its file."""
        if len(points):
            return self.figure(draw(points), name)
        return Markdown(
            f"The study {self.study.name} does not measure this: add `{measure}: {{}}` to the "
            "`measures` in its file."
        )

    def table(self, table: pd.DataFrame, name: str, shown: Any = None) -> Any:
        """Keep a table as an artifact of this section's run, and return what is shown of it.

        Args:
            table: with every column.
            name: of the artifact.
            shown: a shorter form for readers; the whole table, rounded, if not given.
        """
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / f"{name}.csv"
            table.to_csv(path, index=False)
            self.store.attach(self.run, path, "tables")
        return table.round(2) if shown is None else shown

    def close(self) -> None:
        """Finish the run, where this section opened it."""
        if self.own:
            self.store.finish(self.run)


def source(what: Callable | type) -> Markdown:
    """Return the source of a function or class without its docstring, in the page's own colours."""
    text = textwrap.dedent(inspect.getsource(what))
    node = ast.parse(text).body[0]
    lines = text.splitlines()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            documented = inner.body[0]
            for number in range(documented.lineno - 1, documented.end_lineno or documented.lineno):
                lines[number] = ""
    kept = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if line or after]
    text = "\n".join(kept).strip("\n")
    return Markdown(f"```python\n{text}\n```")


def resolve(names: Mapping[str, Any]) -> Study:
    """Build a study from a notebook's names, unset ones from the file of the study's name.

    Args:
        names: settings by name, and `overrides`: more of them, groups merged key by key.

    Raises:
        ConfigError: a parameter that is no setting (papermill itself only warns of it), or a
            study that no file describes.
    """
    for name in _parameters(names):
        known = (*Study.model_fields, "overrides", "base")
        need(name in known, unknown("parameter", name, known))
    given = {key: names[key] for key in Study.model_fields if names.get(key) is not None}
    overrides = names.get("overrides") or {}
    file = ROOT / "params" / f"{given.get('name', '')}.yaml"
    if file.is_file():
        given = {**Study.load(file).model_dump(exclude_unset=True), **given}
    elif len({**given, **overrides}) < 2:
        files = ", ".join(path.stem for path in sorted((ROOT / "params").glob("*.yaml")))
        raise ConfigError(f"expected the name of a study file, got {given}; known: {files}")
    return Study(**merged(given, overrides))


def _parameters(names: Mapping[str, Any]) -> list[str]:
    """Return the names that a notebook's parameters were given under.

    In a notebook these are what its own parameters cell and papermill's assign, as IPython keeps
    the text of executed cells; everything else in `globals()` is nobody's parameter.
    """
    if "In" not in names:
        return list(names)
    texts = [
        text for text in names["In"] if "\nname: " in f"\n{text}" or text[:12] == "# Parameters"
    ]
    found = []
    for node in (node for text in texts for node in ast.parse(text).body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with some overridden; where both are groups, key by key."""
    made = dict(values)
    for name, value in overrides.items():
        both = isinstance(made.get(name), Mapping) and isinstance(value, Mapping)
        made[name] = merged(made[name], value) if both else value
    return made
