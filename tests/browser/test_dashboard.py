"""The same notebook under Voila: code hidden, sliders alive."""

import sys

from ppr_core.cli.servers import free_port
from tests.browser import driver


def test_the_dashboard_hides_code_and_answers(page, notebook, folder):
    asked, refused = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: refused.append(request.url))
    with driver.voila(notebook, folder) as address:
        page.goto(address, wait_until="commit")
        page.get_by_text("Is the backdoor gone, or asleep?").wait_for()
        assert not page.locator(".ppr-t-out").count(), (
            "there is something to read before the kernel"
        )
        for word in ("Running", "Executing"):
            assert word not in page.inner_text("body")
        driver.drawn(page)
        outside = {url for url in asked if "127.0.0.1" not in url and url.startswith("http")}
        assert outside <= set(refused), "nothing comes from another host"
        assert page.get_by_text("is the purified model really safe?").count()
        assert "ppr_core.explorer" not in page.inner_text("body")
        before = driver.says(page, "t")
        driver.put(page, "t", 0.25)
        assert driver.settled(page, "t", before).startswith("t = 0.25")


def test_the_command_serves_the_explorer_with_a_token(page, folder, monkeypatch):
    monkeypatch.setenv("PPR_STORE", str(folder / "empty"))
    port = free_port(8966)
    command = [sys.executable, "-m", "ppr_core", "dashboard", f"--port={port}"]
    with driver.serving(command, f"http://127.0.0.1:{port}/", folder):
        page.goto(f"http://127.0.0.1:{port}/")
        assert "login" in page.url, "nobody gets in without the token"
        log = (folder / "ppr_core.log").read_text()
        token = log.partition("?token=")[2].split()[0]
        page.goto(f"http://127.0.0.1:{port}/?token={token}")
        page.get_by_text("holds no purified model of the study demo").wait_for()
