"""How a command reaches a coordinator: address, certificate and key."""

from __future__ import annotations

import argparse

from deploy import options
from deploy.options import Group, Parser
from deploy.role_options import add_tls, tls_of
from paceline.client import AsyncClient
from paceline.security import PeerRole


def add_server(group: Group) -> None:
    group.add(
        "--server",
        kind=options.addresses,
        default=("127.0.0.1:50051",),
        shown="127.0.0.1:50051",
        metavar="HOST:PORT[,…]",
        help="the coordinator's gRPC address; of several, another goes on when one is lost",
    )


def add_credentials(parser: Parser) -> None:
    add_tls(parser)
    parser.group("key").add(
        "--api-key",
        kind=options.text,
        metavar="KEY",
        help="the key to show where the server asks for one; safer in the environment than on the command line",
    )


def client_of(values: argparse.Namespace) -> AsyncClient:
    """A client as the options of the two functions above say. Raises InvalidInput."""
    return AsyncClient(values.server, tls=tls_of(values, PeerRole.CLIENT), api_key=values.api_key)
