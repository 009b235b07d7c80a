"""What the application takes, and what it refuses, before there is any cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("pydantic")
from pydantic import ValidationError

from deploy.ray.arguments import Arguments, flags, unfolded

EXAMPLES = Path(__file__).parents[3] / "deploy/ray"


def made(**given: Any) -> Arguments:
    return Arguments(**({"target": "big/"} | given))


def test_a_command_line_of_names_with_dots_is_what_a_file_says() -> None:
    said: dict[str, Any] = {
        "target": "big/",
        "drafter": "small/",
        "pools.drafters.max_replicas": "3",
        "verifiers.options.dtype": "bfloat16",
    }
    told = Arguments(**said)
    assert told.drafters["drafters"].model == "small/"
    assert told.drafters["drafters"].max_replicas == 3
    assert told.verifiers.options == {"dtype": "bfloat16"}
    nested: dict[str, Any] = {"target": "big/", "drafter": "small/", "pools": {"drafters": {"max_replicas": 3}}}
    assert Arguments(**nested).drafters == told.drafters


def test_levels_that_are_named_apart_come_together() -> None:
    assert unfolded({"a.b": 1, "a.c.d": 2, "a": {"e": 3}}) == {"a": {"b": 1, "c": {"d": 2}, "e": 3}}


def test_pools_share_the_requests_alike_unless_they_say_otherwise() -> None:
    two = made(pools={"edge": {"model": "small/"}, "gpu": {"model": "middle/", "share": 0.8}})
    assert two.share_of(two.drafters["edge"]) == 0.5
    assert two.share_of(two.drafters["gpu"]) == 0.8


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"windows": 3}, "windows"),
        ({"verifiers": {"min_replicas": 0}}, "without a verifier nothing is served"),
        ({"verifiers": {"min_replicas": 3, "max_replicas": 2}}, "raise max_replicas"),
        ({"pools": {"verifiers": {"model": "small/"}}}, "is no name for a pool"),
        ({"pools": {"edge": {"model": "small/", "options": {"coordinator": "x:1"}}}}, "set by the application itself"),
        ({"host": "10.0.0.1"}, "none of them can be bound to all"),
        ({"host": "node"}, "others could read and write this traffic"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_and_the_fix(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        made(**given)


def test_a_clusters_own_network_takes_tls_or_a_word_that_it_is_trusted() -> None:
    assert made(host="node", insecure=True).host == "node"
    assert made(host="node", tls_cert="c", tls_key="k", tls_ca="a").host == "node"


def test_options_are_written_as_the_roles_command_takes_them() -> None:
    assert flags({"dtype": "bfloat16", "enforce_eager": True, "reflection": False, "max-num-seqs": 8}) == (
        *("--dtype", "bfloat16", "--enforce-eager", "--no-reflection", "--max-num-seqs", "8"),
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_what_serve_deploy_and_the_application_take(path: Path) -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed; pip install 'paceline[ray]'")
    told = schema.ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    for application in told.applications:
        assert application.import_path == "deploy.ray.app:build"
        assert "name" not in application.args, "it is Serve's to give"
        assert Arguments(**application.args)
