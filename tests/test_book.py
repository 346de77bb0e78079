"""The site of the notebooks: built by `make book` without a warning, opened in a headless Chromium, without a network."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_browser import browser, until  # noqa: F401 (a fixture)

from deepchest_utils.notebook.runner import find_notebooks

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[1]
LOADED = "return [...document.querySelectorAll(arguments[0])].map(e => e.complete && e.naturalWidth)"
FETCHED = "return performance.getEntriesByType('resource').map(e => e.name)"
FIGURES = "[role=main] img, article img"


@pytest.fixture(scope="module")
def site() -> Path:
    """The built site, anew."""
    make = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    installed = make(["make", ".book/.installed", f"PYTHON={sys.executable}"])
    assert installed.returncode == 0, installed.stderr
    done = make(["make", "book"])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # no warning either
    assert "open .book/site/index.html" in done.stdout
    return ROOT / ".book" / "site"


def opened(browser, page: str) -> None:  # noqa: F811
    until(lambda: page in browser.current_url, page)
    until(lambda: browser.execute_script("return document.readyState") == "complete", f"end of {page}")


def test_readers_find_figures_links_formulas_and_words(site, browser):  # noqa: F811
    browser.get((site / "index.html").as_uri())
    opened(browser, "README.html")
    pictures = browser.execute_script(LOADED, FIGURES)
    assert pictures
    assert min(pictures) > 100  # px; 0 if it did not load
    browser.find_element(By.CSS_SELECTOR, "article a[href='notebooks/02_loss_trend_weighting.html']").send_keys(
        Keys.ENTER
    )
    opened(browser, "notebooks/02_loss_trend_weighting.html")
    figures = [width for width in browser.execute_script(LOADED, FIGURES) if width]
    assert len(figures) >= 4
    assert browser.find_elements(By.CSS_SELECTOR, "article math")
    assert browser.execute_script("return document.body.scrollWidth <= window.innerWidth")
    assert all(name.startswith("file:") or "colab" in name for name in browser.execute_script(FETCHED))
    browser.get(f"{(site / 'search.html').as_uri()}?q=prevalence")
    found = until(lambda: browser.find_elements(By.CSS_SELECTOR, "#search-results li a"), "hit")
    assert any("notebooks/" in str(link.get_attribute("href")) for link in found)


def test_every_notebook_is_a_page_with_its_figures(site, browser):  # noqa: F811
    for path in find_notebooks():
        browser.get((site / "notebooks" / f"{path.stem}.html").as_uri())
        opened(browser, path.stem)
        shown = browser.execute_script(LOADED, f"{FIGURES.replace('img', 'img:not([src^=http])')}")
        committed = path.read_text().count('"image/png"') + path.read_text().count('"image/jpeg"')
        assert len(shown) >= committed > 0
        assert all(width > 50 for width in shown)
        folded = browser.find_elements(By.CSS_SELECTOR, "article details.hide")
        assert len(folded) == path.read_text().count('"source_hidden": true')
        assert not browser.find_elements(By.CSS_SELECTOR, "article .traceback, article .stderr")
