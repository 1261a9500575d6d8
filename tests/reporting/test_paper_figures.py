"""The paper's figures: their panels, and means over attacks where it shows means."""

import pandas as pd
import pytest

from ppr_core.reporting import plots
from ppr_core.reporting.claims.base import CIFAR10, EVERY
from ppr_core.reporting.evidence import BASELINES, Evidence
from tests.reporting.made_up import cells, line

PLACES = ("dataset", "model", "poison_rate")
NAMES = ["bti", "ep", "pam"]
PLACED = (("resnet18", 0.05), ("resnet18", 0.1), ("resnet50", 0.05))


def evidence(settings=EVERY, attacks=("badnet", "blended"), **at):
    made, paths, pairs = [], [], []
    for place in settings:
        where = dict(zip(PLACES, place, strict=True)) | at
        for attack in attacks:
            scores = {"q_p_asr": 60.0, "q_c_asr": 2.0, "q_unseen_p_asr": 5.0, "q_unseen_c_asr": 1.0}
            more = {"o_asr": 2.0 if attack == "badnet" else 4.0, **scores}
            rows = dict.fromkeys(BASELINES, more)
            rows |= {"clean": 3.0, "ep": 3.0, "pam": {"rho": 0.9, **more}}
            made.append(cells(at={**where, "attack": attack}, **rows))
            for start in ("backdoored", "purified"):
                points = line([0, 50, 98], [*NAMES, "pam rho 0.5"], start, attack)
                paths += [{**point, **where} for point in points]
            both = {"attack": attack, "seed": 0, **where}
            pairs += [{**both, "source": a, "target": b, "p_asr": 30.0}
                      for a in BASELINES for b in BASELINES if a != b]  # fmt: skip
    paths, pairs = pd.DataFrame(paths), pd.DataFrame(pairs)
    paths["name"] = pd.Categorical(paths["defense"], [*NAMES, "pam rho 0.5"])
    rows = pd.concat(made, ignore_index=True)
    return Evidence(rows, paths=paths, transfers=pairs.assign(name=pairs["source"]))


@pytest.fixture(scope="module")
def drawn():
    return plots.paper_figures(evidence(), (1, 2, 3, 4, 5, 12, 15))


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_the_union_of_the_studies_fills_every_figure(drawn):
    assert list(drawn) == [1, 2, 3, 4, 5, 12, 15]
    main = [f"cifar10 resnet18 5 %\n{attack}" for attack in ("badnet", "blended")]
    four = [f"cifar10 {m} {100 * r:g} %" for _, m, r in CIFAR10]
    for number, expected in {1: four, 2: main, 3: four[:1], 4: four, 5: main}.items():
        assert titles(drawn[number]) == expected, number
    assert titles(drawn[12])[0] == "cifar100 resnet18_imagenet 5 %\nbadnet"
    assert len(titles(drawn[15])) == 4, "two rates, two attacks"
    assert all(f"Figure {n}." in figure.get_suptitle() for n, figure in drawn.items())


def test_bars_are_means_over_attacks(drawn):
    axis = drawn[1].axes[0]
    named = [label.get_text() for label in axis.get_yticklabels()]
    widths = [bar.get_width() for bar in axis.containers[0]]
    assert dict(zip(named, widths, strict=False))["bti"] == pytest.approx(3.0)


def test_qra_stands_beside_what_its_generators_do_to_an_unseen_clean_model(drawn):
    axis = drawn[2].axes[0]
    named = [label.get_text() for label in axis.get_yticklabels()]
    assert named[-1] == "clean model"
    clean, triggered = ([bar.get_width() for bar in c] for c in axis.containers[:2])
    assert (clean[-1], triggered[-1], triggered[0]) == (1.0, 5.0, 60.0)


@pytest.mark.parametrize("number", [2, 15, 16])
def test_qra_is_shown_of_purified_models_alone(number):
    made = evidence([("cifar10", *place) for place in PLACED])
    rows = made.cells
    awake = (rows["defense"] == "bti") & (rows["attack"] == "badnet")
    rows.loc[awake, ["o_asr", "q_p_asr", "q_unseen_p_asr"]] = 97.0
    [figure] = plots.paper_figures(made, (number,)).values()
    for axis in figure.axes:
        named = [label.get_text() for label in axis.get_yticklabels()]
        assert ("bti" in named) == axis.get_title().endswith("blended")
        assert max(bar.get_width() for c in axis.containers for bar in c) == 60.0


def test_transfers_are_a_bar_a_source_over_purified_baselines():
    made = evidence([("cifar10", "resnet18", 0.05)])
    rows, pairs = made.cells, made.transfers
    rows.loc[(rows["defense"] == "bti") & (rows["attack"] == "badnet"), "o_asr"] = 97.0
    about = pairs.iloc[0].to_dict() | {"p_asr": 99.0}
    pairs.loc[(pairs["source"] == "bti") & (pairs["attack"] == "badnet"), "p_asr"] = 99.0
    pairs.loc[(pairs["target"] == "bti") & (pairs["attack"] == "badnet"), "p_asr"] = 99.0
    for name in ("ep", "ft", "pam"):
        ends = [{"source": name, "target": "fst"}, {"source": "fst", "target": name}]
        pairs = pd.concat([pairs, pd.DataFrame([about | end for end in ends])])
    found = Evidence(rows, transfers=pairs)
    [axis] = plots.paper_figures(found, (3,))[3].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == BASELINES
    badnet, blended = axis.containers[:2]
    assert [bar.get_width() for bar in blended] == [30.0] * 5, "a bar a source, as in the paper"
    assert [bar.get_width() for bar in badnet if bar.get_width() > 0] == [30.0] * 4


def test_what_is_not_in_the_papers_setting_says_so():
    place = [("cifar10", "resnet18", 0.05)]
    for scale, numbers in (("query width 8 (1024)", (1, 2)), ("path points 3 (21)", (4,))):
        drawn = plots.paper_figures(evidence(place, measure_scale=scale), numbers)
        told = [n for n, one in drawn.items() if "another scale" in one.get_suptitle()]
        assert told == [numbers[-1]], "and not the figure of RA alone"
    other = plots.paper_figures(evidence(place, level="smaller", scale="width 16 (64)"), (1,))
    assert "at another scale than the paper's" in other[1].get_suptitle()


def test_one_setting_fills_what_it_can_and_names_itself():
    alone = evidence([("shapes", "resnet18", 0.1)], level="other", scale="drawn images")
    drawn = plots.paper_figures(alone, (1, 6, 8, 16))
    assert list(drawn) == [1, 6], "the others are of settings that it has not"
    assert titles(drawn[1]) == ["shapes resnet18 10 %"]
    assert plots.paper_figures(Evidence(alone.cells.iloc[:0])) == {}
