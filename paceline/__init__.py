"""What every role shares: types, errors, sampling, noise, rows, codec, rpc, client, engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The clients, imported when they are asked for: most processes that import this package have no use for them."""
    if name in ("AsyncClient", "Client"):
        import paceline.client

        return getattr(paceline.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
