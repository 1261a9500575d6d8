"""The stage graph computed for real, on data so small that it takes moments."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml

from ppr_core.errors import StoreError
from ppr_core.lab import desk, engine
from ppr_core.lab.desk import Lab
from ppr_core.lab.graph import Cell
from ppr_core.lab.plan import Plan
from ppr_core.lab.study import Study
from ppr_core.reporting import findings, results
from tests.conftest import TINY_PAM, TINY_STUDY


def computed(store, **overrides):
    plan = Plan(Study(**{**TINY_STUDY, **overrides}))
    failures = engine.run(plan, Lab(store))
    return plan, failures


def test_what_is_logged_on_the_way_are_the_epochs_of_the_whole(store, monkeypatch):
    """Of methods that train a teacher, in rounds, twice, or a trigger generator besides."""
    monkeypatch.setattr(desk, "LOG_EVERY_S", 0.0)
    short = {"schedule": {"epochs": 3}, "teacher": {"epochs": 2}}
    twice = {"training": {"epochs": 2}, "second": {"epochs": 2}}
    bti = {**TINY_PAM, "rounds": 2}
    plan, failures = computed(
        store,
        dataset={**TINY_STUDY["dataset"], "size": 32},
        attacks={"sbl": twice},
        defenses={"nad": short, "pam": bti},
    )
    assert failures == {}
    for stage in plan.stages():
        if stage.kind in ("backdoored", "purified"):
            run = store.find(stage.key)
            points = store.client.get_metric_history(run.info.run_id, "epoch_loss")
            told = store.load(run).history
            assert [(p.step, p.value) for p in points] == [(r["epoch"], r["loss"]) for r in told]


def test_a_study_runs_once_and_then_is_read(store, monkeypatch):
    plan, failures = computed(store)
    assert failures == {}
    rows = results.cells(plan, store)
    assert list(rows["defense"]) == ["none", "clean", "ft", "ep"]
    assert (rows["status"] == "done").all()
    assert rows.set_index("defense").loc[["clean", "ft", "ep"], results.FIGURES].notna().all().all()
    assert rows.set_index("defense").loc["ep", "oracle"]
    monkeypatch.setattr(Lab, "compute", None)  # calling it would fail
    assert computed(store)[1] == {}
    again = results.cells(plan, store)
    pd.testing.assert_frame_equal(rows, again)


def test_rows_name_ras_poisons_and_a_model_trained_from_scratch(store):
    names = {}
    for pretrained in (True, False):
        model = {"name": "resnet18_imagenet", "pretrained": pretrained}
        rows = results.cells(Plan(Study(**{**TINY_STUDY, "model": model})), store)
        assert set(rows["ra_poisons"]) == {3}
        [names[pretrained]] = set(rows["model"])
    assert names == {True: "resnet18_imagenet", False: "resnet18_imagenet from scratch"}


def test_ra_starts_from_the_purified_model(store):
    plan, _ = computed(store)
    lab = Lab(store)
    for defense in ("ft", "ep"):
        purified = lab.result(plan.purified(Cell("badnet", defense, 0)))
        retuned = lab.result(plan.retuned(Cell("badnet", defense, 0)))
        assert [record["epoch"] for record in retuned.history] == [0, 1, 2]
        assert retuned.history[0]["asr"] == purified.metrics["asr"] == retuned.metrics["o_asr"]
        assert retuned.history[-1]["asr"] == retuned.metrics["p_asr"]
    history = results.histories(plan, store, "retuned")
    assert set(history["defense"]) == {"clean", "ft", "ep"}


def test_the_defense_sees_the_reserve_and_nothing_else(store, monkeypatch):
    """What a defense is handed: its model, clean reserve images, and what it may name."""
    from ppr_core.defenses.finetune import Ft

    plan = Plan(Study(**TINY_STUDY))
    seen = {}
    original = Ft.run

    def spy(self, model, data, *, rng, validation=None):
        seen.update(data=data, validation=validation)
        return original(self, model, data, rng=rng)

    monkeypatch.setattr(Ft, "run", spy)
    Lab(store).result(plan.purified(Cell("badnet", "ft", 0)))
    originals = {image.numpy().tobytes() for image in plan.images.train.images}
    assert len(seen["data"]) == 48
    assert len(seen["validation"]) == 12
    for part in seen.values():
        assert all(image.numpy().tobytes() in originals for image in part.images)


def test_a_defense_that_is_no_oracle_cannot_ask_for_the_trigger(store, monkeypatch):
    from ppr_core.defenses.finetune import Ft

    monkeypatch.setattr(Ft, "run", lambda self, model, data, *, rng, trigger: None)
    with pytest.raises(TypeError, match="trigger"):
        Lab(store).result(Plan(Study(**TINY_STUDY)).purified(Cell("badnet", "ft", 0)))


def test_a_failed_defense_stays_in_the_table(store, monkeypatch):
    from ppr_core.defenses.finetune import Ft

    def broken(self, model, data, *, rng):
        raise RuntimeError("cannot serve this model")

    monkeypatch.setattr(Ft, "run", broken)
    plan, failures = computed(store)
    assert set(failures) == {"badnet/ft purified s0", "badnet/ft retuned s0"}
    rows = results.cells(plan, store).set_index("defense")
    assert "cannot serve this model" in rows.loc["ft", "status"]
    assert rows.loc["ep", "status"] == "done"
    assert "failed" in results.text_table(results.cells(plan, store))


def test_seeds_are_averaged_with_their_spread():
    frame = pd.DataFrame(
        {
            "attack": "badnet",
            "defense": "ft",
            "rho": None,
            "oracle": False,
            "seed": [0, 1, 2],
            "status": ["done", "done", "failed: x"],
            "o_c_acc": [90.0, 92.0, None],
            "o_asr": [1.0, 3.0, None],
            "p_c_acc": [90.0, 90.0, None],
            "p_asr": [50.0, 60.0, None],
        }
    )
    row = results.summary(frame).iloc[0]
    assert (row["o_asr"], row["p_asr"], row["change"]) == (2.0, 55.0, 53.0)
    assert row["p_asr_std"] == pytest.approx(7.0711, abs=1e-3)
    assert (row["seeds"], row["failed"]) == (3, 1)
    assert "55.0 ± 7.1" in results.text_table(frame)


def test_what_an_oracle_chose_is_said_so_and_counts_neither_as_purified_nor_as_a_control():
    names = ["clean", "ep", "anp", "anp_oracle", "bti", "ft", "fst"]  # FT does not purify
    frame = pd.DataFrame(
        {
            "attack": "badnet",
            "defense": names,
            "rho": None,
            "oracle": [False, True, False, True, False, False, False],
            "seed": 0,
            "status": "done",
            "o_c_acc": 90.0,
            "p_c_acc": 90.0,
            "o_asr": [1.0, 3.0, 4.0, 0.0, 2.0, 97.0, 3.0],
            "checks": [""] * 6 + ["C-Acc is at chance"],
            "p_asr": 90.0,
            "q_p_asr": [None, 20.0, 60.0, 100.0, 80.0, 99.0, 99.0],
            "q_c_asr": 1.0,
            "q_unseen_p_asr": [None, 50.0, 2.0, 50.0, 4.0, 90.0, 90.0],
            "q_unseen_c_asr": 0.5,
        }
    )
    assert "anp_oracle (oracle)" in results.text_table(frame)
    assert any("2 of 3 defenses" in line for line in findings.of_robustness(frame))
    pairs = pd.DataFrame(
        [("anp", "bti", 30.0), ("bti", "anp", 50.0), ("bti", "ft", 99.0), ("ep", "bti", 1.0)],
        columns=["source", "target", "p_asr"],
    ).assign(attack="badnet", seed=0)
    purified, control, transfer = findings.of_queries(frame, pairs)
    assert purified.startswith(
        "badnet, 2 of 4 models purified: QRA, the authors' form, moves their mean ASR from 3.0 to "
        "70.0"
    )
    assert transfer == "badnet: learnt on another purified model, it reaches 40.0."
    assert control.startswith("badnet, control: on a clean model that no generator has seen, the")
    eq2 = {"qe_p_asr": frame["q_p_asr"] / 2, "qe_c_asr": 2.0, "qe_clean_p_asr": 5.0}
    both = findings.of_queries(frame.assign(**eq2, qe_clean_c_asr=1.5), pairs)
    assert both[:2] == [purified, control], "the paper's form stands beside the authors'"
    assert "QRA, the paper's form (eq. 2), moves their mean ASR from 3.0 to 35.0; 2.0 %" in both[2]
    assert "on the clean model, not its surrogate, the same images reach 5.0" in both[3]
    assert "reach 3.0; 0.5 % of clean images" in control
    [_, missing] = findings.of_queries(frame.drop(columns="q_unseen_p_asr"), pd.DataFrame())
    assert "not scored on a clean model that no generator has seen" in missing
    awake = frame.assign(o_asr=97.0)
    assert findings.of_queries(awake, pairs) == ["badnet: none of 4 models is purified."]


def cli(*arguments, **environment):
    command = [sys.executable, "-m", "ppr_core", *arguments]
    env = {**os.environ, **environment}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_stopped_and_killed_and_started_again_gives_the_same_numbers(
    store, store_template, tmp_path
):
    study = {**TINY_STUDY, "training": {"epochs": 20, "batch_size": 50}, "defenses": {}}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(study))
    whole = tmp_path / "whole"
    shutil.copytree(store_template, whole)
    reference = cli("study", str(file), "--no-notebooks", PPR_STORE=str(whole))

    def statuses():
        return {run.info.status for run in store.search("tiny", kind="stage")}

    def struck_by(number):
        """Start the study, and strike it once it has saved an epoch."""
        started, began = cli("study", str(file), "--no-notebooks"), time.time()

        def saved():
            files = (tmp_path / "mlruns").glob("scratch/*/victim.pt")
            return any(f.stat().st_mtime > began for f in files)

        while not saved():
            assert started.poll() is None, started.communicate()[1]
            assert time.time() < began + 120
            time.sleep(0.01)
        os.kill(started.pid, number)
        return started.communicate(timeout=60)[1], started.returncode

    err, code = struck_by(signal.SIGTERM)
    assert (code, statuses()) == (130, {"KILLED"})
    assert "stopped; the next start goes on from here" in err
    assert "Traceback" not in err
    assert struck_by(signal.SIGKILL)[1] == -signal.SIGKILL
    assert {"KILLED", "RUNNING"} <= statuses()
    assert reference.wait(timeout=240) == 0

    resumed = cli("study", str(file), "--no-notebooks")
    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert "going on from their checkpoints" in out
    assert "resuming victim after epoch" in err
    table = [line for line in out.splitlines() if line.startswith("badnet")]
    expected = [line for line in reference.stdout.read().splitlines() if line.startswith("badnet")]
    assert table == expected != []
    assert statuses() == {"FINISHED", "KILLED"}


def test_a_store_without_room_fails_with_one_line(tiny_study, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("PPR_STORE", str(tmp_path / "blocked"))
    from ppr_core.lab.store import Store

    with pytest.raises(StoreError, match="expected a writable MLflow store"):
        Store()
