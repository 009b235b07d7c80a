"""Certificates of all roles, made once for a session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from deploy.certs import make
from paceline.security import PeerRole, Tls


@functools.cache
def authority(name: str = "ours") -> Path:
    """A folder of certificates; another name is another authority."""
    folder = Path(tempfile.mkdtemp(prefix=f"paceline-certificates-{name}-"))
    make(folder)
    return folder


def tls(role: PeerRole, folder: Path | None = None, *, ca: Path | None = None) -> Tls:
    """As `role` is started with them. `ca`: the folder of the authority that is believed, if it is another one."""
    folder = folder or authority()
    made = Tls.of(role, f"{folder}/{{role}}.crt", f"{folder}/{{role}}.key", f"{ca or folder}/ca.crt")
    assert made is not None
    return made
