"""The interactive figures as a person meets them: JupyterLab in a headless Chromium, a control moved by keyboard, the
figure seen to change.

Server, kernels and browser are the test's own, on a free port of the loopback and in temporary folders, and a process of
theirs that outlives the test is a failure. Nothing waits by the clock: each step waits for what it needs, patiently,
since the machine may have other work.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from deepchest_utils.notebook.runner import find_notebooks

pytestmark = pytest.mark.browser

PATIENCE = 900  # seconds for a step; the longest, a notebook's smoke run, takes one minute on two idle cores
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip
RUN_ALL = "notebook:run-all-cells"
ERROR = "[data-mime-type='application/vnd.jupyter.error']"


def until(condition: Callable[[], object], what: str):
    """The first true value of `condition`; an element that the page has replaced meanwhile is looked up again."""
    wait = WebDriverWait(None, PATIENCE, 0.2, [StaleElementReferenceException])
    return wait.until(lambda _: condition(), f"no {what} after {PATIENCE} s")


def stop(process: subprocess.Popen, how: Callable[[], object]) -> list[str]:
    """Stop it; the names of those of its descendants that outlive it, which are killed."""
    family = psutil.Process(process.pid).children(recursive=True)
    how()
    process.wait(PATIENCE)
    left = psutil.wait_procs(family, timeout=60)[1]
    for other in left:
        other.kill()
    return [other.name() for other in left]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, cache_dir) -> Iterator[tuple[str, str, Path]]:
    """A JupyterLab: its address, its token, and the folder that it serves."""
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    served, settings = folder / "notebooks", folder / "settings" / "@jupyterlab" / "apputils-extension"
    served.mkdir()
    settings.mkdir(parents=True)
    silent = {"fetchNews": "false", "checkForUpdates": False}  # it would ask, and then the network
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(silent))
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    own = {name: str(folder / name) for name in (*names, "IPYTHONDIR", "DEEPCHEST_FIGURES")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTER_TOKEN": token}
    options = ("--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", f"--ServerApp.root_dir={served}")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, "--expose-app-in-browser", "--LabApp.extension_manager=readonly"],
            env=os.environ | own, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        runtime = folder / "JUPYTER_RUNTIME_DIR"
        until(lambda: server.poll() is not None or [*runtime.glob("jpserver-*.json")], "JupyterLab")
        assert server.poll() is None, (folder / "log").read_text()
        yield json.loads(next(runtime.glob("jpserver-*.json")).read_text())["url"], token, served
    finally:
        left = stop(server, server.terminate)
    assert left == []


@pytest.fixture
def browser(tmp_path) -> Iterator[WebDriver]:
    """Chromium with a new profile. What it showed last is kept as `last.png` in the test's folder."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    assert binary, "no Chromium: apt-get install chromium"
    assert driver, "no chromedriver: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.page_load_strategy = "none"  # what to wait for is said below
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    chromium = webdriver.Chrome(options, webdriver.ChromeService(driver))
    # a window without focus has no current notebook; Chromium's own popups may take the focus
    chromium.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    try:
        yield chromium
        chromium.save_screenshot(str(tmp_path / "last.png"))
    finally:
        left = stop(chromium.service.process, chromium.quit)
    assert left == []


def texts(browser: WebDriver, selector: str) -> list[str]:
    """Those of the elements, whether scrolled into view or not."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def run_all(browser: WebDriver, lab: tuple[str, str, Path], source: Path) -> list[WebElement]:
    """Open a smoke version of the notebook, run all its cells; the boxes that hold controls and a figure."""
    address, token, served = lab
    papermill.execute_notebook(str(source), str(served / source.name), {"smoke": True}, prepare_only=True)
    notebook = nbformat.read(served / source.name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.update(outputs=[], execution_count=None)
        cell.metadata.pop("jupyter", None)  # a folded cell shows no number, by which the end of the run is known
    nbformat.write(notebook, served / source.name)

    browser.get(f"{address}lab/workspaces/{source.stem}/tree/{source.name}?token={token}")
    until(lambda: "| Idle" in "".join(texts(browser, "#jp-main-statusbar")), "kernel")
    # by the command behind the menu's entry: a click on a page that is still at work may be lost
    until(lambda: browser.execute_script(f"return window.jupyterapp.commands.isEnabled('{RUN_ALL}')"), "notebook")
    browser.execute_script(f"window.jupyterapp.commands.execute('{RUN_ALL}')")

    def all_ran() -> bool:
        assert texts(browser, ERROR) == []
        prompts = texts(browser, ".jp-Notebook .jp-CodeCell .jp-InputPrompt")
        return [p for p in prompts if re.fullmatch(r"\[\d+\]:", p)] == [f"[{n}]:" for n in range(1, len(cells) + 1)]

    until(all_ran, "end of the run")
    return browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output .widget-vbox")


def control(box: WebElement, title: str) -> WebElement:
    """What takes the keyboard's focus: a slider's handle, or a list."""
    row = f".//*[contains(@class, 'widget-inline-hbox')][*[contains(@class, 'widget-label')][.='{title}']]"
    return box.find_element(By.XPATH, f"{row}//*[@role='slider' or self::select]")


def pictures(box: WebElement) -> list[str]:
    return [str(image.get_attribute("src")) for image in box.find_elements(By.TAG_NAME, "img")]


def change(box: WebElement, title: str) -> None:
    """A slider by keyboard; of a list, another option by a click (JupyterLab itself takes the arrow keys, for cells)."""
    moved = control(box, title)
    if moved.tag_name == "select":
        next(option for option in Select(moved).options if not option.is_selected()).click()
    else:
        moved.send_keys(Keys.ARROW_RIGHT)


CONTROLS = {  # notebook -> of each of its boxes, those that are moved
    "00_two_tasks_in_a_plane": [("angle", "length ratio", "loss ratio"), ("rate",)],
    "02_loss_trend_weighting": [("step up", "cap", "floor"), ("signal", "step down")],
    "04_baseline_comparison": [("metric", "baseline", "findings", "methods")],
    "05_grad_cam": [("number", "images", "finding", "map method")],
}


def saved_outputs(browser: WebDriver, path: Path) -> list[dict]:
    """The outputs in the file once JupyterLab has saved it."""
    before = path.stat().st_mtime_ns
    browser.execute_script("window.jupyterapp.commands.execute('docmanager:save')")
    until(lambda: path.stat().st_mtime_ns > before, "saved notebook")
    content = until(lambda: nbformat.read(path, as_version=4), "notebook")
    assert "widgets" not in content.metadata
    return [output for cell in content.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("name", CONTROLS)
def test_a_figure_changes_with_its_controls(name, browser, lab):
    (source,) = find_notebooks([name])
    boxes = run_all(browser, lab, source)
    assert len(boxes) == len(CONTROLS[name])
    for box, titles in zip(boxes, CONTROLS[name], strict=True):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        shown = until(lambda box=box: pictures(box), "figure")
        for title in titles:
            change(box, title)
            before = shown
            shown = until(lambda box=box, before=before: (now := pictures(box)) != before and now, f"change by {title}")
            assert len(shown) == 1
            assert shown[0].startswith("data:image/png;base64,")
    assert texts(browser, ERROR) == []
    outputs = saved_outputs(browser, lab[2] / source.name)
    explorers = [
        output.data for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    assert len(explorers) == len(boxes)
    assert all(explorer["image/png"] for explorer in explorers)  # for whoever opens the file without a kernel
    assert "it/s]" not in json.dumps(outputs)  # no bar is left
