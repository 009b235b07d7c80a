"""The demo pair as an application that is built already, for `serve build`: it takes no builder, and no arguments.

serve build deploy.ray.demo:app -o paceline.yaml     every deployment's settings, to be changed one by one
"""

from __future__ import annotations

from pathlib import Path

import yaml

from deploy.ray.app import build

_FILE = Path(__file__).with_suffix(".yaml")  # so that the demo is described once

app = build(yaml.safe_load(_FILE.read_text())["applications"][0]["args"])
