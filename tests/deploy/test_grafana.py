"""The board asks for series that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import DEPLOY, ROOT

BOARD = DEPLOY / "grafana" / "paceline.json"
# Words of PromQL, and of a legend or a label, which are not series.
_NAME = re.compile(r"\b(vllm:[a-z_]+|paceline_[a-z_]+|ray_serve_[a-z_]+)")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["type"] != "row"]


def asked_for() -> set[str]:
    return {name for panel in panels() for target in panel["targets"] for name in _NAME.findall(target["expr"])}


def test_every_panel_asks_for_what_the_coordinator_exports() -> None:
    """docs/metrics.md names what is exported: that it does, tests/coordinator/test_metrics_export.py sees to."""
    known = set(re.findall(r"`((?:vllm:|paceline_)[a-z_]+)", (ROOT / "docs" / "metrics.md").read_text()))
    histograms = {f"{name}_bucket" for name in known}
    ours = {name for name in asked_for() if not name.startswith("ray_")}
    assert len(ours) > 15
    assert ours <= known | histograms


def test_every_panel_asks_for_what_ray_serve_exports() -> None:
    serve = pytest.importorskip("ray.serve")
    source = "".join(file.read_text() for file in Path(serve.__file__).parent.glob("_private/*.py"))
    names = {name.removeprefix("ray_").removesuffix("_bucket") for name in asked_for() if name.startswith("ray_")}
    assert len(names) > 3
    assert {name for name in names if f'"{name}"' not in source} == set()


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_links_lead_to_rays_dashboard_wherever_it_is() -> None:
    board = json.loads(BOARD.read_text())
    (where,) = [variable for variable in board["templating"]["list"] if variable["name"] == "ray_dashboard"]
    assert where["type"] == "textbox"
    assert where["current"]["value"] == where["query"] == "http://127.0.0.1:8265", "Ray's own default"
    assert [link["url"] for link in board["links"]] == [
        f"${{ray_dashboard:raw}}/#/{page}" for page in ("serve", "cluster")
    ]
    for link in board["links"]:
        assert link["type"] == "link"
        assert link["tooltip"]


def test_the_pages_that_are_linked_are_the_dashboards() -> None:
    ray = pytest.importorskip("ray")
    scripts = list((Path(ray.__file__).parent / "dashboard" / "client" / "build" / "static" / "js").glob("main.*.js"))
    assert scripts, "ray[serve] brings the dashboard's pages"
    source = "".join(script.read_text() for script in scripts)
    for link in json.loads(BOARD.read_text())["links"]:
        page = link["url"].rpartition("/")[2]
        assert f'path:"{page}"' in source, page
