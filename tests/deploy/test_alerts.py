"""The alerts ask for series, labels and values that exist, and are those that docs/metrics.md speaks of."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.deploy.manifests import DEPLOY, ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text()
# A series, and the labels in braces that are asked of it.
_SERIES = re.compile(r"\b((?:vllm:|paceline_)[a-z_]+)(?:\{([^}]*)\})?")


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "helm" / "paceline" / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def asked_for() -> list[tuple[str, str]]:
    return [series for rule in rules() for series in _SERIES.findall(rule["expr"])]


def test_every_alert_asks_for_what_the_coordinator_exports() -> None:
    """docs/metrics.md names what is exported: that it does, tests/coordinator/test_metrics_export.py sees to."""
    told = re.findall(r"^\| `([\w:]+)(?:\{([\w,]+)\})?` \|", PAGE, flags=re.MULTILINE)
    known = {name: set(labels.split(",")) for name, labels in told}
    assert len(asked_for()) > 10
    for name, matchers in asked_for():
        assert name in known
        assert set(re.findall(r"(\w+)=", matchers)) <= known[name], name


def test_values_of_labels_are_words_of_the_code() -> None:
    source = "".join(
        file.read_text() for folder in ("coordinator", "paceline") for file in (ROOT / folder).rglob("*.py")
    )
    values = {
        word for _, matchers in asked_for() for text in re.findall(r'"([^"]*)"', matchers) for word in text.split("|")
    }
    assert len(values) > 3
    assert {value for value in values if f'"{value}"' not in source} == set()


def test_the_page_speaks_of_every_alert_and_every_alert_is_there() -> None:
    (section,) = re.findall(r"^## Worth an alert\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    names = [rule["alert"] for rule in rules()]
    assert re.findall(r"`(Paceline\w+)`", section) == names
    assert {name for name, _ in asked_for()} <= set(re.findall(r"(?:vllm:|paceline_)[a-z_]+", section))


def test_alerts_wait_and_say_what_is_wrong() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        for opening, closing in ("()", "{}", "[]"):
            assert rule["expr"].count(opening) == rule["expr"].count(closing)
