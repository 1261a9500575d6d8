"""From the battery's cells to figures: admissible, worst, wake count, recovery."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from ppr_core.reactivation.cells import Cell, Setting
from ppr_core.reactivation.verdicts import Limits


def started(cells: Iterable[Cell]) -> Cell:
    """Return the cell of the model as it came."""
    return next(cell for cell in cells if cell.arm == "start")


def judged(cells: Iterable[Cell], controls: Sequence[Sequence[Cell]], limits: Limits) -> list[Cell]:
    """Say of each cell whether it is admissible: whether every clean model stays asleep there.

    A setting that wakes what never slept, or that costs a clean model its accuracy, implants. It
    is judged by its mean over all the draws that a clean model went through: by each draw alone,
    the noise of some hundred test images would decide which of them count. Of a setting that a
    clean model did not go through nothing is said.
    """
    tables = [draws_by_place(control) for control in controls]
    before = [started(control).c_acc or 0.0 for control in controls]

    def quiet(place: Setting) -> bool | None:
        found = [table.get(place, []) for table in tables]
        if not found or not all(found):
            return None
        return all(
            _asleep(draws, c_acc, limits) for draws, c_acc in zip(found, before, strict=True)
        )

    return [cell.replace(admissible=quiet(cell.setting.place)) for cell in cells]


def draws_by_place(cells: Iterable[Cell]) -> dict[Setting, list[Cell]]:
    """Return the cells of each setting, one a draw: two arms may share one."""
    groups: dict[Setting, list[Cell]] = defaultdict(list)
    for setting, cell in {cell.setting: cell for cell in cells}.items():
        groups[setting.place].append(cell)
    return groups


def _asleep(draws: Sequence[Cell], before: float, limits: Limits) -> bool:
    p_asr = [cell.p_asr for cell in draws if cell.p_asr is not None]
    c_acc = [cell.c_acc for cell in draws if cell.c_acc is not None]
    if len(p_asr) < len(draws) or len(c_acc) < len(draws):  # a draw diverged
        return False
    fall = before - statistics.fmean(c_acc)
    return statistics.fmean(p_asr) < limits.awake and fall <= limits.fall


def implanting(controls: Sequence[Sequence[Cell]], limits: Limits) -> set[Setting]:
    """Return the settings in which a clean model does not stay asleep."""
    return {cell.setting for cell in judged(controls[0], controls, limits) if not cell.admissible}


def counted(cells: Sequence[Cell], limits: Limits) -> list[Cell]:
    """Return the cells that count: admissible, and the model still works after the tuning."""
    least = (started(cells).c_acc or 0.0) - limits.spared
    return [
        cell
        for cell in cells
        if cell.admissible and cell.arm != "start" and cell.p_asr is not None
        if cell.c_acc is not None and cell.c_acc >= least
    ]


def by_place(cells: Iterable[Cell]) -> list[tuple[float, Cell]]:
    """Return (mean P-ASR, one of its cells) a setting, draws pooled, the highest first.

    Of equals the strongest comes first, so that a model that sleeps through all is tried hardest.
    """
    groups = draws_by_place(cells).values()
    found = [(statistics.fmean(cell.p_asr or 0.0 for cell in draws), draws[0]) for draws in groups]
    return sorted(
        found,
        key=lambda pair: (
            pair[0],
            pair[1].setting.poisons,
            pair[1].setting.epochs,
            pair[1].setting.factor,
        ),
        reverse=True,
    )


def by_count(cells: Iterable[Cell]) -> list[tuple[int, float]]:
    """Return (poisons, median P-ASR over draws) of the count arm; a diverged draw sleeps."""
    draws: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        if cell.arm == "count" and cell.setting.poisons:
            draws[cell.setting.poisons].append(cell.p_asr or 0.0)
    return [(count, statistics.median(values)) for count, values in sorted(draws.items())]


def wake_count(cells: Sequence[Cell], level: float) -> float:
    """Return n50: the fewest poisons at which the median draw reaches `level`, on log n.

    Returns:
        0 if relearning on clean images alone does it, inf if no count that was tried does. At the
        smallest count there is nothing to interpolate from, so it stands for all below it.
    """
    if any(cell.arm == "relearn" and (cell.p_asr or 0.0) >= level for cell in cells):
        return 0.0
    below: tuple[int, float] | None = None
    for count, median in by_count(cells):
        if median >= level:
            if below is None:
                return float(count)
            share = (level - below[1]) / (median - below[1])
            return math.exp(math.log(below[0]) + share * math.log(count / below[0]))
        below = count, median
    return math.inf


def recovery(cells: Sequence[Cell], paper: Setting, level: float) -> float:
    """Return the epochs in which RA at the paper's strength reaches `level`, between those seen.

    Returns:
        0 if the model never slept, inf if it is not reached.
    """
    runs = [cell for cell in cells if cell.arm == "strength"]
    same = [c for c in runs if c.setting.replace(epochs=paper.epochs) == paper]
    longest = max(same, key=lambda cell: cell.setting.epochs, default=None)
    points: list[tuple[float, float]] = [(0.0, started(cells).p_asr or 0.0)]
    points += [(float(epoch), asr or 0.0) for epoch, asr in (longest.curve if longest else [])]
    if points[0][1] >= level:
        return 0.0
    for (start, low), (end, high) in itertools.pairwise(points):
        if high >= level:
            return start + (end - start) * (level - low) / (high - low)
    return math.inf


def beyond(
    cells: Sequence[Cell], controls: Sequence[Sequence[Cell]], limits: Limits
) -> list[tuple[Setting, float, float]]:
    """Return where a model wakes far beyond clean ones, admissible or not, the farthest first.

    What wakes a clean model proves no backdoor; but a model that learns the trigger so much sooner
    than clean ones do is not one that holds. The C-Acc that the tuning costs is taken off its
    P-ASR: so much a model that breaks, and answers with the target by chance, may have as well.

    Returns:
        (setting, mean P-ASR over its draws, that of the clean model which wakes most).
    """
    before = started(cells).c_acc or 0.0

    def of_the_trigger(cell: Cell) -> float:
        return _asr(cell) - max(before - (cell.c_acc or 0.0), 0.0)

    own, net, found = _means(cells), _means(cells, of_the_trigger), []
    for place, p_asr in own.items():
        clean = highest(controls, place)
        if net[place] >= limits.woken and p_asr - clean >= limits.margin:
            found.append((place, p_asr, clean))
    return sorted(found, key=lambda one: one[2] - one[1])


def broken(
    cells: Sequence[Cell], controls: Sequence[Sequence[Cell]], limits: Limits
) -> list[tuple[Setting, float | None, float]]:
    """Return where the tuning breaks a model, and clean ones not, and its P-ASR is high or unknown.

    Such a cell proves no backdoor, since a model that breaks may answer anything; but what it hides
    is not known either, so that it cannot let a model hold.

    Returns:
        (setting, mean P-ASR over the draws that break it; none: all of them diverged, that of the
        clean model which wakes most).
    """
    kept, found = counted(cells, limits), []
    left = [c for c in cells if c.admissible and c.arm != "start" and c not in kept]
    means = _means(left)
    for place in dict.fromkeys(cell.setting.place for cell in left):
        p_asr, clean = means.get(place), highest(controls, place)
        if p_asr is None or p_asr - clean >= limits.margin:
            found.append((place, p_asr, clean))
    return found


def highest(controls: Sequence[Sequence[Cell]], place: Setting) -> float:
    """Return the mean P-ASR of the clean model that wakes most; inf where one was not run."""
    return max((_means(control).get(place, math.inf) for control in controls), default=math.inf)


def _asr(cell: Cell) -> float:
    return cell.p_asr or 0.0


def _means(cells: Iterable[Cell], value: Callable[[Cell], float] = _asr) -> dict[Setting, float]:
    """Return the mean over the draws of each setting; one that was not run is left out."""
    there = [cell for cell in cells if cell.p_asr is not None and cell.arm != "start"]
    groups = draws_by_place(there).items()
    return {place: statistics.fmean(map(value, draws)) for place, draws in groups}
