"""The HTML report says what the tables of a terminal and of the notebooks say."""

import base64
import re

import pandas as pd

from ppr_core.lab.plan import Plan
from ppr_core.reporting import captions, claims, report, results
from ppr_core.reporting.evidence import Evidence

ROW = {
    **dict.fromkeys([*results.ABOUT, *results.MEASURED]),
    **{"dataset": "cifar10", "model": "resnet18", "poison_rate": 0.05, "attack": "badnet"},
    **{"defense": "fst", "seed": 0, "oracle": False, "status": "done"},
    **{"o_c_acc": 93.0, "o_asr": 1.0, "p_c_acc": 93.5, "p_asr": 98.0},
}


def written(store, study, **figures):
    evidence = Evidence(pd.DataFrame([{**ROW, **figures}]))
    return report.write(Plan(study), store, evidence).read_text()


def test_qra_and_lmc_have_columns_where_they_were_measured(store, tiny_study):
    html = written(store, tiny_study)
    assert "<th>QRA P</th>" not in html
    html = written(store, tiny_study, q_p_asr=71.25, barrier=3.0)
    assert "<th>QRA P</th><th>barrier</th>" in html
    assert "+97.0</td><td>71.2</td><td>3.0</td>" in html


def test_the_papers_tables_have_ours_over_its_own(store, tiny_study):
    html = written(store, tiny_study, level="paper", scale="")
    assert "Table 3. CIFAR-10, ResNet-18, 5 % poisoned: 4 of 136 numbers" in html
    assert "<td>98.0<span>100</span></td>" in html
    assert "-a: no study has this cell." in html
    assert "At another scale" not in html
    html = written(store, tiny_study, dataset="shapes")
    assert "The paper's tables" not in html


def test_another_scale_stands_apart_and_says_so(store, tiny_study):
    html = written(store, tiny_study, level="smaller", scale="width 16 (64)")
    row = "<td>3</td><td>badnet</td><td>fst</td><td>p_asr</td><td>100.00</td><td>98.00</td>"
    assert f"{row}<td>-2.00</td><td>-</td><td>width 16 (64)</td>" in html
    assert "The paper's tables" not in html


def test_claims_tell_their_grade_and_what_they_rest_on(store, tiny_study):
    html = written(store, tiny_study, defense="clean", p_asr=4.0)
    assert "<td>yes<small>seen</small></td>" in html
    assert "1 seed, 1 cell" in html
    assert "mean 2.4, worst cell 8.1" in html


def test_claims_that_a_study_does_not_test_are_folded_away(store, tiny_study):
    html = written(store, tiny_study, defense="clean", p_asr=4.0)
    judged, _, folded = html.partition("<details>")
    assert "5. The clean model stays low under RA" in judged
    assert "1. RA wakes every purified model" in folded
    count = int(re.search(r"Not tested here: (\d+) claims", folded).group(1))
    assert folded.count('<tr class="not-tested">') == count
    assert "not-tested" not in judged.partition("</style>")[2]


def test_figures_are_those_of_this_study_not_of_another_of_its_name(store, tiny_study, tmp_path):
    study = tiny_study.replace(notebooks=["02_retuning_attack"])
    plans = [Plan(study.replace(seeds=seeds)) for seeds in ([0], [0, 1])]
    for index, plan in enumerate(plans):
        (tmp_path / "2_robustness.png").write_bytes(f"picture {index}".encode())
        tags = {"kind": "notebook", "notebook": "02_retuning_attack", "settings": plan.mark}
        run = store.start("tiny", "02_retuning_attack", tags=tags)
        store.attach(run, tmp_path / "2_robustness.png", "figures")
        store.finish(run)
    for index, plan in enumerate(plans):
        html = report.write(plan, store, claims.gather(plan, store)).read_text()
        assert html.count("data:image/png;base64,") == 1
        assert base64.b64encode(f"picture {index}".encode()).decode() in html
    assert "data:image" not in written(store, study.replace(seeds=[1]))


def test_with_further_studies_the_papers_figures_are_those_of_the_union(
    store, tiny_study, tmp_path
):
    plan = Plan(tiny_study.replace(notebooks=["06_claims"]))
    for name in ("6_figure_01.png", "6_other.png"):
        (tmp_path / name).write_bytes(name.encode())
    tags = {"kind": "notebook", "notebook": "06_claims", "settings": plan.mark}
    run = store.start("tiny", "06_claims", tags=tags)
    for path in tmp_path.glob("6_*.png"):
        store.attach(run, path, "figures")
    store.finish(run)
    rows = pd.DataFrame([ROW | {"level": "paper", "scale": ""}])
    figures = report._figures(plan, store, Evidence(rows))
    assert len(figures) == 2, "alone, the notebook's"
    other = rows.assign(poison_rate=0.1)
    shown = report._figures(plan, store, Evidence(rows, further=other))
    titles = [figure["title"] for figure in shown]
    assert titles == ["other", "The paper's Figure 1, from this study and those beside it."]
    assert base64.b64decode(shown[1]["source"].partition(",")[2]).startswith(b"\x89PNG")


def test_it_opens_with_its_contents(store, tiny_study):
    html = written(store, tiny_study, level="smaller", scale="width 16 (64)")
    contents = re.search(r"<nav.*?</nav>", html, re.DOTALL).group()
    places = re.findall(r'href="#(\w+)"', contents)
    assert places == ["results", "claims", "numbers", "settings"]
    assert all(f'id="{place}"' in html for place in places)


def test_what_a_setting_is_has_no_column_of_results(store, tiny_study):
    html = written(store, tiny_study, width=16, epochs=8, ra_share=0.05)
    table = html[html.index('<table class="results">') :].partition("</table>")[0]
    assert "width" not in table and "epochs" not in table


def test_a_method_of_ones_own_leaves_the_studys_report_alone(store, tiny_study):
    plan, evidence = Plan(tiny_study), Evidence(pd.DataFrame([ROW]))
    first = report.write(plan, store, evidence)
    text = first.read_text()
    other = report.write(plan, store, evidence, ["mine", "yours"])
    assert (first.name, other.name) == ("tiny.html", "tiny-mine-yours.html")
    assert first.read_text() == text


def test_captions_say_the_finding():
    pam = {**ROW, "defense": "pam", "rho": 0.0, "o_asr": 2.0, "p_asr": 60.0, "path_distance": 0.1}
    rows = [{**ROW, "path_distance": 0.4}, pam, {**pam, "rho": 1.0, "p_asr": 4.0}]
    evidence = Evidence(pd.DataFrame(rows))
    said = {name: captions.caption(f"2_{name}", evidence) for name in ("robustness", "rho")}
    assert "retuning wakes 2 of these" in said["robustness"]
    assert "from rho 0 to 1 P-ASR goes from 60 to 4 %" in said["rho"]
    assert "pam rho 1 has the lowest P-ASR" in captions.caption("2_trade_off", evidence)
    assert "the backdoor sleeps: fst 0.40" in captions.caption("4_backdoor_error", evidence)
    assert captions.caption("1_triggers", evidence) == captions.SEEN["triggers"]
    assert captions.caption("9_of_ones_own", evidence) == "of ones own"
