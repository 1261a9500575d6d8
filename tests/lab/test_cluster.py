"""Two Ray nodes that share a tracking server and no folder; one is lost, and so is the driver."""

import os
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
import yaml

from ppr_core.lab.store import Store
from tests.conftest import TINY_STUDY
from tests.lab.test_server import Server

pytestmark = pytest.mark.cluster
STUDY = {**TINY_STUDY, "device": "cpu", "training": {"epochs": 40, "batch_size": 50}}


@pytest.fixture
def nodes(store_template, tmp_path):
    """A server, a head, and a worker that is to be lost; each node has folders of its own."""
    utils = pytest.importorskip("ray.cluster_utils")
    server = Server.over(store_template, tmp_path / "server")
    cluster, made = utils.Cluster(), {}
    for name in ("head", "worker"):
        own = {"PPR_STORE": str(tmp_path / name), "PPR_DATA": str(tmp_path / name / "data")}
        made[name] = cluster.add_node(num_cpus=1, env_vars=own)
    yield server, cluster, made
    cluster.shutdown()
    server.stop()


def drive(server, cluster, folder):
    own = {"PPR_STORE": str(folder / "driver"), "PPR_DATA": str(folder / "driver" / "data")}
    own |= {"MLFLOW_TRACKING_URI": server.uri, "RAY_ADDRESS": cluster.address}
    words = ["study", str(folder / "tiny.yaml"), "--no-notebooks", "--engine", "ray"]
    command = [sys.executable, "-m", "ppr_core", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **own}, **pipes)


def folders_at_work(store):
    """The own folder of each process that computes a stage."""
    found = []
    for run in store.search("tiny", query="attributes.status = 'RUNNING'", kind="stage"):
        pid = int(run.data.tags["ppr.process"].partition(":")[0])
        found.append(psutil.Process(pid).environ()["PPR_STORE"])
    return found


def test_a_lost_node_and_a_killed_driver_cost_one_attempt(nodes, tmp_path, monkeypatch):
    server, cluster, made = nodes
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    store, both = Store(tmp_path / "reader"), {str(tmp_path / name) for name in made}
    driver, deadline = drive(server, cluster, tmp_path), time.time() + 120
    while set(folders_at_work(store)) != both:
        assert driver.poll() is None, driver.communicate()
        assert time.time() < deadline
        time.sleep(0.3)
    driver.kill()
    driver.communicate()
    cluster.remove_node(made["worker"], allow_graceful=False)
    again = drive(server, cluster, tmp_path)
    out, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert "badnet       ep (oracle)" in out
    runs = store.search("tiny", kind="stage")
    ends = Counter(run.info.status for run in runs)
    assert ends == {"FINISHED": 7, "KILLED": 1}, "what ran on the head outlived the driver"
    done = Counter(r.data.tags["ppr.key"] for r in runs if r.info.status == "FINISHED")
    assert set(done.values()) == {1}
    assert not (tmp_path / "driver" / "artifacts").exists(), "results go by the server"
    for name in made:
        assert list((tmp_path / name / "data").glob("cache/shapes-*")), "data of its own"
