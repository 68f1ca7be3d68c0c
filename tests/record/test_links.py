"""What TensorBoard shows: which runs, under which names, and which charts first."""

import json
import logging

import pytest
from werkzeug.test import Client

from odebench.errors import UsageError
from odebench.record import dashboard, layout
from odebench.record.dashboard import link_runs, pinned_cards


@pytest.fixture
def folder(tmp_path):
    """Two classifiers of a sweep, a single run, and a density."""
    runs = {
        "sweep/0000_odenet": {"tol": 0.1, "gradient": "adjoint"},
        "sweep/0001_odenet": {"tol": 0.01, "gradient": "backprop"},
        "2026-11-24/14-03-22-123456_odenet_dopri5": {"tol": 0.01, "gradient": "adjoint", "name": "our best"},
        "flow": {"task": "density", "objective": "val/nll_nats"},
    }
    for hour, (name, values) in enumerate(runs.items()):
        path = tmp_path / name
        path.mkdir(parents=True)
        settings = {
            "task": values.get("task", "classification"),
            "name": values.get("name"),
            "model": {"name": "odenet"},
            "solver": {"name": "dopri5", "rtol": values.get("tol", 0.1), "atol": values.get("tol", 0.1)},
            "gradient": {"name": values.get("gradient", "adjoint")},
            "trainer": {"objective": values.get("objective", "val/accuracy")},
        }
        (path / layout.SETTINGS).write_text(json.dumps(settings))
        status = {"status": "done", "step": 1, "time": f"2026-11-24T{20 - hour}:00:00Z"}
        (path / layout.STATUS).write_text(json.dumps(status))
        (path / "events.out.tfevents.1.host").touch()
    return tmp_path


def names(links):
    return sorted(str(path.relative_to(links)) for path in links.rglob("*") if path.is_symlink())


def test_runs_are_named_by_what_varies_and_keep_their_names(folder, tmp_path_factory):
    links = tmp_path_factory.mktemp("links")
    runs = [run for run in dashboard._runs_with_events(folder) if run.setting("task") == "classification"]
    linked = link_runs(runs[1:], folder, links)
    assert names(links) == ["0000_tol=0.1_gradient=adjoint", "0001_tol=0.01_gradient=backprop"]
    link_runs(runs, folder, links, linked)
    assert names(links)[2] == "2026-11-24/14-03-22-123456_our-best_tol=0.01_gradient=adjoint"
    assert len(names(links)) == 3
    assert (links / names(links)[0] / "events.out.tfevents.1.host").exists()


def test_a_single_run_shows_the_name_of_its_folder(folder, tmp_path_factory):
    links = tmp_path_factory.mktemp("links")
    link_runs(dashboard._runs_with_events(folder / "flow"), folder / "flow", links)
    assert names(links) == ["flow"]


def test_one_task_is_shown_and_a_line_says_how_to_open_the_others(folder, caplog):
    caplog.set_level(logging.INFO, "odebench")
    runs = dashboard._runs_with_events(folder)
    assert dashboard._choose_task(runs, folder, None) == "classification"  # the latest
    assert caplog.messages == [f"not shown: 1 of density; odebench tensorboard {folder} --task density"]
    assert dashboard._choose_task(runs, folder, "density") == "density"
    with pytest.raises(UsageError, match="unknown task densty; did you mean density"):
        dashboard._choose_task(runs, folder, "densty")


def test_the_first_page_has_pinned_charts(folder):
    cards = pinned_cards(dashboard._runs_with_events(folder / "sweep"))
    assert [card["tag"] for card in cards[:3]] == ["val/accuracy", "val/loss", "nfe/forward"]
    apps = []

    def page(environ, start_response):
        start_response("200 OK", [])
        return [b"page"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dashboard.program, "create_port_scanning_werkzeug_server", lambda app, flags: apps.append(app))
        flags = type("Flags", (), {"path_prefix": ""})
        dashboard._make_server(cards, page, flags)
    client = Client(apps[0])
    first = client.get("/").get_data(as_text=True)
    assert 'location.replace("?pinnedCards=%5B%7B%22plugin%22%3A+%22scalars%22' in first
    assert client.get("/?smoothing=0").data == client.get("/data/runs").data == b"page"
