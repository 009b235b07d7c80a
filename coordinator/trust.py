"""Whose draft rows are believed: the coordinator's opinion of a drafter, never the drafter's own word.

The rules `token` and `block` are exact if the rows that come with a draft are the laws its tokens were drawn from, and
nobody else can check that. So they are used only with drafters that are trusted; `match` and `coupled` need no trust.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from coordinator.config import CoordinatorConfig
from paceline.rpc import is_loopback
from paceline.security import PeerRole, peer_role
from paceline.types import WorkerInfo


def is_trusted(info: WorkerInfo, call: Any, config: CoordinatorConfig) -> bool:
    """Whether the rows of the drafter that registers by `call` (gRPC's servicer context) are believed.

    Either the operator vouches for every drafter, or the authority for this one: its certificate says that it is a
    drafter. Or it is a process of this machine: it has registered over loopback, and it is there that it will be
    connected to. Behind `--insecure` loopback says nothing, since a proxy
    or a tunnel on this machine brings in others' calls.
    """
    if config.trust_drafters or peer_role(call) is PeerRole.DRAFTER:
        return True
    peer_host = unquote(call.peer()).partition(":")[2].rpartition(":")[0]  # ipv4:127.0.0.1:4321, ipv6:[::1]:4321
    hosts = (peer_host, info.address.rpartition(":")[0])
    return not config.insecure and all(map(is_loopback, hosts))
