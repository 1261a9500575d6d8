"""Training-stage defenses in a study: what they see, how they are scored, where they lie."""

import shutil

import pandas as pd
import pytest
import torch

from ppr_core.defenses.ss import Ss
from ppr_core.lab import engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.plan import Plan
from ppr_core.lab.store import Store
from ppr_core.lab.study import Study
from ppr_core.reporting import results
from tests.conftest import TINY_STUDY

STUDY = {
    **TINY_STUDY,
    "attacks": {"badnet": {}, "wanet": {}},
    "defenses": {"ft": {"schedule": {"epochs": 1}}, "ss": {}},
    "measures": {"path": {"points": 2}, "aligned_path": {}, "flagged": {}, "clean_model": {}},
}


@pytest.fixture(scope="module")
def studied(store_template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("anew") / "mlruns"
    shutil.copytree(store_template, folder)
    seen = {}
    original = Ss.run

    def spy(self, model, data, *, rng, build):
        seen[len(seen)] = data, model.state_dict()["linear.bias"].clone()
        return original(self, model, data, rng=rng, build=build)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PPR_DATA", str(folder.parent / "data"))
        patch.setattr(Ss, "run", spy)
        plan, store = Plan(Study(**STUDY)), Store(folder)
        wanted = [plan.last(Cell("badnet", name, 0)) for name in ("none", "ft", "ss")]
        for name in ("ft", "ss"):
            wanted += plan.measured(Cell("badnet", name, 0)).values()
        wanted += [plan.purified(Cell(attack, "ss", 0)) for attack in ("wanet", "none")]
        assert engine.run(plan, Lab(store), wanted=wanted) == {}
    return plan, Lab(store), seen


def test_it_sees_the_training_set_as_its_victim_did(studied):
    plan, lab, seen = studied
    for (data, bias), attack in zip(seen.values(), ("badnet", "wanet", "none"), strict=True):
        assert data.classes == plan.images.train.classes
        cell = Cell(attack, "ss", 0)
        if attack == "none":
            assert torch.equal(data.images, plan.images.train.images)
            continue
        victim = lab.result(plan.backdoored(cell))
        assert torch.equal(bias, victim.tensors["model.linear.bias"]), "it is handed the victim"
        poisons = victim.tensors["poison_indices"]
        assert (data.labels[poisons] == 0).all() and len(poisons) == 30
        changed = (data.images != plan.images.train.images).flatten(1).any(1).nonzero().squeeze(1)
        covers = 60 if attack == "wanet" else 0
        assert len(changed) == 30 + covers, "covers and all"
        assert set(poisons.tolist()) <= set(changed.tolist())


def test_it_retrains_by_the_studys_own_recipe_and_leaves_the_reserve_out_of_its_key(studied):
    plan, *_ = studied
    stage = plan.purified(Cell("badnet", "ss", 0))
    assert stage.method.training.epochs == STUDY["training"]["epochs"]
    assert not stage.given
    other = Plan(Study(**{**STUDY, "reserve": 50}))
    assert other.purified(stage.cell).key == stage.key
    assert other.purified(Cell("badnet", "ft", 0)).key != plan.purified(Cell("badnet", "ft", 0)).key
    own = Plan(Study(**{**STUDY, "defenses": {"ss": {"training": {"epochs": 1}}}}))
    assert own.defenses["ss", None].training.epochs == 1
    assert own.defenses["ss", None].training.batch_size == STUDY["training"]["batch_size"]


def test_what_it_flags_is_scored(studied):
    plan, lab, _ = studied
    rows = results.cells(plan, lab.store).set_index(["attack", "defense"])
    cell = Cell("badnet", "ss", 0)
    flagged = set(lab.result(plan.purified(cell)).tensors["flagged"].tolist())
    poisons = set(lab.result(plan.backdoored(cell)).tensors["poison_indices"].tolist())
    row = rows.loc[("badnet", "ss")]
    assert row["flag_tpr"] == pytest.approx(100 * len(flagged & poisons) / 30)
    assert row["flag_fpr"] == pytest.approx(100 * len(flagged - poisons) / 270)
    assert row["flag_precision"] == pytest.approx(100 * len(flagged & poisons) / len(flagged))
    assert pd.isna(rows.loc[("badnet", "ft"), "flag_tpr"])


def test_its_model_lies_in_another_basin(studied):
    plan, lab, _ = studied
    rows = results.cells(plan, lab.store)
    table = rows.set_index(["attack", "defense"])
    assert table.loc[("badnet", "ss"), ["p_asr", "aligned_barrier"]].notna().all()
    assert pd.isna(table.loc[("badnet", "ss"), "barrier"])
    text = results.markdown_table(rows)
    [line] = [line for line in text.splitlines() if line.startswith("| badnet | ss")]
    assert results.APART in line
    [line] = [line for line in text.splitlines() if line.startswith("| badnet | ft")]
    assert results.APART not in line
    more = {"path": {"points": 3}, "existence": {"form": "code"}}
    both = Plan(Study(**{**STUDY, "measures": more}))
    for label in more:
        assert both.taken(label, Cell("badnet", "ss", 0)) is None
    read = both.taken("existence", Cell("badnet", "ft", 0)).parents
    assert "ss" not in [stage.cell.defense for stage in read]
    assert {"existence", "barrier"} <= results.WITHIN and "aligned_barrier" not in results.WITHIN
    ends = [lab.model(plan.source(Cell("badnet", name, 0))) for name in ("none", "ss")]
    one, two = (model.state_dict()["backbone.0.weight"].flatten() for model in ends)
    assert torch.corrcoef(torch.stack([one, two]))[0, 1] < 0.5, "it starts from other weights"
