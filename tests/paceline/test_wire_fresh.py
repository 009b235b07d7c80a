"""The committed code in paceline/wire is what proto/ generates."""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]


def test_the_committed_code_is_fresh(tmp_path: Path) -> None:
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    assert protos
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", *outputs, *protos]) == 0
    fresh = {path.name: path.read_text() for path in (tmp_path / "paceline" / "wire").iterdir()}
    committed = {
        path.name: path.read_text() for path in (ROOT / "paceline" / "wire").glob("*.py*") if path.name != "__init__.py"
    }
    assert fresh.keys() == committed.keys()
    stale = [name for name, text in fresh.items() if committed[name] != text]
    assert not stale, f"run `make proto`: {', '.join(stale)}"
