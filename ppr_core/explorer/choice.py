"""Which study, attack, defense and seed: dropdowns over what the store holds."""

import asyncio
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from ppr_core.explorer.holdings import Held
from ppr_core.lab.graph import Cell, Variant

WAIT_S = 0.03  # in which a newer event may overtake one that has not been answered


class Latest:
    """Answers the newest event only; those that it overtook are dropped.

    Where an event loop runs (a live kernel) the answer waits a moment, so that events which queued
    up behind a slow answer meet here; elsewhere it comes at once. A further event does not prolong
    the wait: figures move while a slider is dragged.

    Args:
        answer: called without arguments.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        self.answer = answer
        self.waiting = False

    def __call__(self, *_: object) -> None:
        """Take note of an event."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.answer()
            return
        if not self.waiting:
            self.waiting = True
            loop.call_later(WAIT_S, self._answer)

    def _answer(self) -> None:
        self.waiting = False
        self.answer()


def in_loop(answer: Callable[..., object]) -> Callable[..., object]:
    """Return a call that any thread may make: the event loop, where one runs, answers it."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return answer
    return lambda *given: loop.call_soon_threadsafe(answer, *given)


class Choice:
    """Four dropdowns; each offers only what the store holds for those before it.

    Args:
        held: what the store holds, by study; at least one.
    """

    def __init__(self, held: dict[str, Held]) -> None:
        self.held = held
        names = {"study": 12, "attack": 11, "defense": 13, "seed": 7}
        self.menus = [widgets.Dropdown(description=name) for name in names]
        for menu, (name, width) in zip(self.menus, names.items(), strict=True):
            menu.layout.width = f"{width}rem"
            menu.style.description_width = "initial"
            menu.add_class(f"ppr-{name}")
            menu.observe(self._changed, "value")
        self._listeners: list[Latest] = []
        self._filling = False
        study = next(iter(held))
        self._fill([study, *places(held[study].telling)])
        self.box = widgets.HBox(self.menus, layout=widgets.Layout(flex_flow="row wrap"))

    @property
    def study(self) -> Held:
        """What the store holds of the chosen study."""
        return self.held[self.menus[0].value]

    @property
    def cell(self) -> Cell:
        """The chosen purified model."""
        attack, (defense, variant), seed = (menu.value for menu in self.menus[1:])
        return Cell(attack, defense, seed, variant)

    def listen(self, answer: Callable[[], None]) -> None:
        """Call `answer` whenever another model is chosen."""
        self._listeners.append(Latest(answer))

    def pick(self, cell: Cell) -> None:
        """Choose another model of the chosen study."""
        if cell != self.cell:
            self._fill([self.menus[0].value, *places(cell)])
            self._tell()

    def renew(self, held: dict[str, Held], cell: Cell | None = None) -> None:
        """Offer what the store holds by now; the choice stays, unless a cell is to be chosen."""
        self.held = held
        kept = [menu.value for menu in self.menus]
        self._fill([kept[0], *places(cell)] if cell else kept)
        self._tell()

    def _changed(self, change: object) -> None:
        if not self._filling:
            self._fill([menu.value for menu in self.menus])
            self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _fill(self, wanted: list[Any]) -> None:
        """Set options and values, menu by menu, as near to what is wanted as may be."""
        self._filling = True
        try:
            _set(self.menus[0], list(self.held), wanted[0])
            cells = self.study.cells
            names = {places(cell)[1]: self.study.name(cell) for cell in cells}
            for place, menu in enumerate(self.menus[1:]):
                values = list(dict.fromkeys(places(cell)[place] for cell in cells))
                _set(menu, values, wanted[place + 1], lambda value: names.get(value, str(value)))
                cells = [cell for cell in cells if places(cell)[place] == menu.value]
        finally:
            self._filling = False


def places(cell: Cell) -> tuple[str, tuple[str, Variant | None], int]:
    """Return what the three dropdowns say of a cell: attack, defense with variant, seed."""
    return cell.attack, (cell.defense, cell.variant), cell.seed


def _set(
    menu: widgets.Dropdown, values: list[Any], wanted: Any, name: Callable[[Any], str] = str
) -> None:
    options = [(name(value), value) for value in values]
    if list(menu.options) != options:
        menu.options = options
    menu.value = wanted if wanted in values else values[0]
