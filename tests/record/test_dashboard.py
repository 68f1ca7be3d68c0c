"""The dashboard of a run as a user sees it: TensorBoard's pages in a browser without a window.

The browser is driven through chromedriver's own protocol, which is JSON over HTTP (W3C WebDriver).
"""

import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from odebench.record import layout

pytestmark = pytest.mark.browser

BROWSER = [
    "--headless=new",
    "--window-size=1400,1100",
    "--no-sandbox",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
]

# TensorBoard's parts lie in shadow roots inside shadow roots. For each element of the tag `card`: its text,
# and the position [x, y, width, height] of the first element of the tag `plot` in it, if there is one.
CARDS = """
const [card, plot] = arguments;
const inside = function* (node) {
  for (const root of [node, node.shadowRoot]) {
    for (const child of root ? root.childNodes : []) { yield child; yield* inside(child); }
  }
};
const named = (node, tag) => [...inside(node)].filter(child => child.nodeName.toLowerCase() === tag);
const shown = child => child.nodeName === "#text" && child.parentNode.nodeName !== "STYLE";
return named(document.body, card).map(node => {
  const box = named(node, plot).map(found => found.getBoundingClientRect())[0];
  const words = [...inside(node)].filter(shown).map(child => child.textContent.trim()).filter(text => text);
  return [words.join(""), box ? [box.x, box.y, box.width, box.height] : null];
});
"""


class Browser:
    """One page of a Chromium without a window."""

    def __init__(self, driver_url, folder):
        self._driver_url = driver_url
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        options = {"goog:chromeOptions": {"args": [*BROWSER, f"--user-data-dir={folder}"]}}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
        self._path = f"/session/{session['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver_url + path, data, method=method)
        with self._opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def show(self, url):
        """Load the page again, also if only the part after the # differs."""
        for address in ("about:blank", url):
            self.call("POST", f"{self._path}/url", {"url": address})

    def cards(self, card, plot):
        """(text, position of the plot) of each card on the page."""
        return self.call("POST", f"{self._path}/execute/sync", {"script": CARDS, "args": [card, plot]})

    def picture(self):
        """A screenshot: [height, width, RGB]."""
        png = base64.b64decode(self.call("GET", f"{self._path}/screenshot"))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)

    def close(self):
        self.call("DELETE", self._path)


@contextlib.contextmanager
def server(command, log, started):
    """Run a server during the block; yield the match of the regular expression `started` in its output."""
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield until(lambda: re.search(started, log.read_text()))[1]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(condition, seconds=120):
    """Wait until the condition is true and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def page(tiny_odenet, tmp_path_factory):
    """Show a page of the dashboard of one tiny run; return the browser."""
    folder = tmp_path_factory.mktemp("dashboard")
    odebench = [sys.executable, "-m", "odebench"]
    subprocess.run([*odebench, "train", *tiny_odenet, f"run_dir={folder / 'runs' / 'tiny'}"], check=True)
    board = [*odebench, "tensorboard", str(folder / "runs"), "--", "--host", "127.0.0.1", "--port", "0"]
    with (
        server(board, folder / "board.log", r"at (http://\S+)") as board_url,
        server(["chromedriver", "--port=0"], folder / "driver.log", r"successfully on port (\d+)") as port,
        contextlib.closing(Browser(f"http://127.0.0.1:{port}", folder / "browser")) as browser,
    ):

        def show(address):
            browser.show(board_url + address)
            return browser

        yield show


def curve_width(picture, place):
    """The fraction of a plot's columns with coloured pixels: those of curves, as grids and axes are grey."""
    x, y, width, height = map(round, place)
    plot = picture[y : y + height, x : x + width]
    assert plot.size, f"a plot at {place} is outside the window"
    coloured = plot.max(axis=2) - plot.min(axis=2) > 25
    return coloured.any(axis=0).mean()


def assert_curves(browser, card, plot, titles):
    """Wait until each card with such a title shows a curve, which is wider than a dot."""

    def plots():
        found = browser.cards(card, plot)
        places = [place for title in titles for text, place in found if title in text]
        return places if len(places) == len(titles) and None not in places else None

    def drawn():
        picture, places = browser.picture(), until(plots)
        return all(curve_width(picture, place) > 0.3 for place in places)

    until(drawn)


def test_the_first_page_begins_with_the_curves_that_matter(page):
    browser = page("")
    titles = ["val/accuracy", "val/loss", "nfe/forward", "nfe/backward"]
    assert_curves(browser, "scalar-card", "line-chart-grid-view", titles)
    ((pinned, _),) = browser.cards("metrics-pinned-view", "x")
    assert [title for title in [*titles, "memory/peak_mib", "time/step_ms"] if title not in pinned] == []


def test_groups_of_single_numbers_come_last(page):
    browser = page("")
    groups = until(lambda: [text.split("/")[0] for text, _ in browser.cards("metrics-card-group-toolbar", "x")])
    assert "when_done" in groups[-1]


def test_time_series_draws_a_curve_of_each_nfe(page):
    browser = page("?tagFilter=nfe/.*ward$#timeseries")
    assert_curves(browser, "scalar-card", "line-chart-grid-view", ["nfe/forward", "nfe/backward"])


def test_scalars_draws_a_curve_of_each_training_number(page):
    browser = page("#scalars&tagFilter=train%2F")
    assert_curves(browser, "tf-scalar-card", "vz-line-chart2", ["train/loss", "train/accuracy"])


def test_custom_scalars_draws_what_belongs_together(page):
    titles = list(layout.SOLVER_CHARTS)
    assert_curves(page("#custom_scalars"), "tf-custom-scalar-multi-line-chart-card", "vz-line-chart2", titles)


def test_hparams_has_one_row_for_the_run_and_a_column_for_each_choice(page):
    browser = page("#hparams")
    (table, _) = until(lambda: [c for c in browser.cards("tf-hparams-table-view", "x") if "mnist5k" in c[0]])[0]
    assert table.count("tiny in runs") == 1
    costs = ["final/nfe_forward", "final/nfe_backward", "final/peak_mib"]
    assert [title for title in ["best/accuracy", "final/test_accuracy", *costs] if title not in table] == []
    ((pane, _),) = browser.cards("tf-hparams-query-pane", "x")
    choices = ["model.name", "solver.name", "solver.rtol", "gradient.name", "optim.lr", "best/accuracy"]
    assert [choice for choice in choices if choice not in pane] == []
