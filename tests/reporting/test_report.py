"""The HTML report says what the tables of a terminal and of the notebooks say."""

import base64

import pandas as pd

from ppr_core.lab.plan import Plan
from ppr_core.reporting import claims, report, results
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
