"""docs/wire.md is what the schema says now."""

from __future__ import annotations

import re

from deploy.wire_reference import PAGE, page


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make proto`"


def test_links_lead_somewhere() -> None:
    text = page()
    linked = set(re.findall(r"\]\(#([a-z]+)\)", text))
    assert len(linked) > 10
    assert linked <= {name.lower() for name in re.findall(r"^### (?:enum )?(\w+)$", text, flags=re.MULTILINE)}
