"""The explorer in JupyterLab: one session, test after test in the order of the file."""

import pytest

from tests.browser import driver


@pytest.fixture(scope="module")
def opened(page, notebook, folder):
    with driver.lab(notebook, folder) as address:
        driver.open_lab(page, address)
        driver.run_all(page)
        yield page


def picture(page, name):
    return page.locator(f".ppr-{name}-out img.widget-image").first.get_attribute("src")


def test_every_panel_has_its_pictures_once(opened):
    for name in driver.PANELS:
        opened.locator(f".ppr-{name}-out img.widget-image").first.wait_for()
        assert opened.locator(f".ppr-{name}-out").count() == 1
    assert opened.locator(".ppr-epsilon-out table.ppr-sample img").count() == 4 * 6


def placed(page, name):
    """What a panel says first, by the slider's place."""
    handle = page.locator(f".ppr-{name} .noUi-handle")
    value = float(handle.get_attribute("aria-valuetext"))
    words = {"rho": f"rho {value:g}", "epsilon": f"epsilon {value:g}/255", "t": f"t = {value:.2f}"}
    return words[name]


def arrived(page, name):
    """Say whether a panel speaks of its slider's place; a busy machine takes its time over it."""
    for _ in range(40):
        page.wait_for_timeout(250)
        if driver.says(page, name).startswith(placed(page, name)):
            return True
    return False


@pytest.mark.parametrize("name", driver.PANELS)
def test_a_slider_moves_by_keyboard(opened, name):
    before, image = driver.says(opened, name), picture(opened, name)
    opened.locator(f".ppr-{name} .noUi-handle").focus()
    steps = 15 if name == "rho" else 4
    for _ in range(steps):
        opened.keyboard.press("ArrowLeft")
    assert driver.settled(opened, name, before) != before
    assert arrived(opened, name), "the newest position is the one shown"
    assert picture(opened, name) != image


@pytest.mark.parametrize("name", driver.PANELS)
def test_a_slider_moves_by_mouse(opened, name):
    before = driver.says(opened, name)
    opened.locator(f".ppr-{name}").scroll_into_view_if_needed()
    handle = opened.locator(f".ppr-{name} .noUi-handle").bounding_box()
    track = opened.locator(f".ppr-{name} .noUi-target").bounding_box()
    middle = handle["y"] + handle["height"] / 2
    opened.mouse.move(handle["x"] + handle["width"] / 2, middle)
    opened.mouse.down()
    opened.mouse.move(track["x"] + 0.95 * track["width"], middle, steps=8)
    opened.mouse.up()
    assert driver.settled(opened, name, before) != before
    assert arrived(opened, name), "the place where the mouse let go is the one shown"


def test_another_defense_changes_the_panels(opened):
    driver.put(opened, "t", 0.5)
    before = picture(opened, "t")
    menu = opened.locator(".ppr-defense select").first  # they stand above every panel
    chosen = menu.input_value()
    menu.select_option(label="ft" if chosen != "ft" else "ep (oracle)")
    opened.wait_for_function(
        "old => document.querySelector('.ppr-t-out img.widget-image').src != old", arg=before
    )
    assert driver.says(opened, "t").startswith(placed(opened, "t")), "at the same place"
    menu.select_option(label=chosen)


def test_compute_can_be_cancelled_and_done(opened):
    before = driver.says(opened, "rho")
    driver.put(opened, "rho", 1)
    driver.settled(opened, "rho", before)
    assert "is not computed; shown is the nearest" in driver.says(opened, "rho")
    compute, cancel = opened.locator(".ppr-compute"), opened.locator(".ppr-cancel")
    status = opened.locator(".ppr-status")
    assert cancel.is_disabled()
    compute.click()
    status.get_by_text("starting").wait_for()
    cancel.click()
    status.get_by_text("cancelled").wait_for()
    compute.click()
    status.get_by_text("done").wait_for()
    opened.get_by_text("rho 1: C-Acc").first.wait_for()
    assert compute.is_disabled()
    offered = opened.locator(".ppr-defense select").first.locator("option").all_inner_texts()
    assert "pam rho 1" in [name.replace("\xa0", " ") for name in offered]


def test_restart_and_run_all_duplicates_nothing(opened):
    opened.get_by_role("menuitem", name="Kernel", exact=True).click()
    opened.get_by_text("Restart Kernel and Run All Cells…").click()
    # The old outputs go when the first cell runs again.
    opened.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    opened.locator(".ppr-rho-out").wait_for(state="detached")
    driver.drawn(opened)
    for name in driver.PANELS:
        assert opened.locator(f".ppr-{name}-out").count() == 1
        assert opened.locator(f".ppr-{name}-out img.widget-image").count() in (1, 2)
    driver.put(opened, "rho", 1)
    opened.get_by_text("rho 1: C-Acc").wait_for()  # computed before the restart
