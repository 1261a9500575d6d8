"""What needs nothing but forward and parameters works on any module."""

import pytest
import torch
from torch import nn

from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.connectivity import path
from ppr_core.defenses import DEFENSES
from ppr_core.defenses.sources.cleanse import Cleanse
from ppr_core.metrics import triggered
from ppr_core.models.wrap import wrap
from ppr_core.reactivation.query import Query
from ppr_core.reactivation.retuning import Retuning
from ppr_core.weights import snapshot
from tests.conftest import shrink, tiny_set
from tests.defenses.test_registry import call
from tests.models.test_wrap import After, Branching, drawn

TRIGGER = Trigger(ATTACKS["badnet"](), {})
INVERSION = shrink(Cleanse())
ANY = {"ep": {}, "ft": {}, "ft_sam": {}, "ibau": {}, "pam": {"inversion": INVERSION}}
NETWORKS = {"bare": After, "whole": lambda: wrap(After()), "cut": lambda: wrap(Branching())}


def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ANY)
def test_defenses_need_no_parts(name, network):
    model = drawn(NETWORKS[network]).eval()
    outcome = call(DEFENSES[name], model, tiny_set(16, size=32), **ANY[name])
    before, after = model.state_dict(), outcome.model.state_dict()
    assert before.keys() == after.keys()
    assert all(tensor.isfinite().all() for tensor in after.values())
    if name != "pam":  # which does nothing where no class stands out
        assert not all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("network", NETWORKS)
def test_reactivations_and_paths_need_no_parts(network):
    one, two = (drawn(NETWORKS[network], seed).eval() for seed in (0, 1))
    data = tiny_set(32, size=32)
    marked = triggered(data, TRIGGER, 0)
    retuning = Retuning(share=0.5, poisoned=2, schedule={"epochs": 1, "batch_size": 8})
    retuned = retuning(one, data, rng=rng(), poisons=marked).model
    assert not torch.equal(snapshot(retuned).popitem()[1], snapshot(one).popitem()[1])
    query = Query(clean=8, poisoned=8, width=8, schedule={"epochs": 1, "batch_size": 8})
    stamped = data.subset(data.labels != 0)
    given = {"retuned": retuned, "surrogate": two, "triggered": stamped}
    found = query(one, data, rng=rng(), **given).tensors
    assert all(tensor.isfinite().all() for tensor in found.values())
    line = path(one, snapshot(one), snapshot(retuned), test=data, stamped=marked, points=3)
    assert len(line.clean_error) == 3


def test_a_study_sees_the_features_of_a_foreign_network():
    """BTI-DBF, with a foreign network's own map; FST and D3 with its last layer."""
    model = drawn(lambda: wrap(nn.Sequential(After().stem, After().stage, *pooled()))).eval()
    for name in ("bti", "fst", "d3", "lp", "fine_pruning", "anp", "clp"):
        outcome = call(DEFENSES[name], model, tiny_set(16, size=32))
        assert all(tensor.isfinite().all() for tensor in outcome.model.state_dict().values())


def pooled():
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
