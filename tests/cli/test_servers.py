import os
import signal
import socket
import subprocess
import sys
import time

import psutil

from ppr_core.cli.servers import free_port


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_stopped_server_leaves_nothing_behind(store):
    port = free_port(5600)
    command = [sys.executable, "-m", "ppr_core", "ui", "--port", str(port)]
    served = subprocess.Popen(command, env={**os.environ, "PPR_STORE": str(store.folder)})
    deadline = time.monotonic() + 120
    while not answers(port):
        assert served.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = psutil.Process(served.pid).children(recursive=True)
    assert started
    served.send_signal(signal.SIGTERM)
    assert served.wait(timeout=30) == 130
    assert psutil.wait_procs(started, timeout=10)[1] == []
    assert not answers(port)
