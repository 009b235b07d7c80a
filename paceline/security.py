"""Who is on the other side of a connection: mutual TLS, and the role that a certificate gives its holder.

Every role has a certificate of one certificate authority, and shows it whether it calls or is called. It says its role
twice, since a server and a client look at different things: as the URI `spiffe://paceline/ROLE`, which servers read
(`peer_role`), and as the DNS name `ROLE.paceline`, which is the name that our clients expect of a server, whatever its
address. So a drafter's certificate opens no verifier's door and answers for no coordinator, and a pod needs no
certificate that knows its address. `paceline certs` makes such certificates; any authority can.

Files are read again when they change: by servers at the next handshake, by callers with the next channel, which they
make when a connection is lost (workers, coordinators) or the files have changed (`paceline.client`).
"""

from __future__ import annotations

import datetime
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from paceline.errors import Forbidden, InvalidInput, Unavailable
from paceline.files import stamp

log = logging.getLogger(__name__)

TRUST_DOMAIN = "paceline"
ROLE_MARK = "{role}"  # in a path: the name of the role that reads it, so that one setting serves all of them
EXPIRES_SOON = datetime.timedelta(days=7)


class PeerRole(enum.StrEnum):
    """What a certificate says that its holder is."""

    CLIENT = "client"
    COORDINATOR = "coordinator"
    DRAFTER = "drafter"
    VERIFIER = "verifier"

    @property
    def uri(self) -> str:
        """How a certificate tells servers."""
        return f"spiffe://{TRUST_DOMAIN}/{self}"

    @property
    def dns_name(self) -> str:
        """How a certificate tells clients."""
        return f"{self}.{TRUST_DOMAIN}"


_BY_URI = {role.uri.encode(): role for role in PeerRole}


def peer_role(context: Any) -> PeerRole | None:
    """What the certificate on the other side of a call says; None without TLS, and for none or several of our roles.

    `context` is a gRPC servicer's. The certificate has been checked against the authority by then.
    """
    names = context.auth_context().get("peer_uri", ())
    roles = {_BY_URI[name] for name in names if name in _BY_URI}
    return roles.pop() if len(roles) == 1 else None


def check_peer(context: Any, *allowed: PeerRole) -> None:
    """Raises `Forbidden` unless the peer's certificate gives it one of the `allowed` roles."""
    role = peer_role(context)
    if role not in allowed:
        wanted = " or ".join(allowed) or "nobody"
        raise Forbidden(f"this call is for {wanted}, and the caller's certificate says {role or 'no role of ours'}")


@dataclass(frozen=True, slots=True)
class Tls:
    """The three PEM files of a role: its certificate (and chain), its key, and the authority's certificate."""

    role: PeerRole
    cert: str
    key: str
    ca: str

    @classmethod
    def of(cls, role: PeerRole, cert: str | None, key: str | None, ca: str | None) -> Self | None:
        """None if nothing is given. Raises `InvalidInput` if one is missing, unreadable, expired or another role's."""
        paths = {"tls-cert": cert, "tls-key": key, "tls-ca": ca}
        missing = [name for name, path in paths.items() if not path]
        if len(missing) == len(paths):
            return None
        if missing:
            raise InvalidInput(missing[0], "", f"give {', '.join(f'--{name}' for name in paths)} together, or none")
        tls = cls(role, *(str(path).replace(ROLE_MARK, role) for path in paths.values()))
        expires = tls.read().check(tls)
        left = expires - datetime.datetime.now(datetime.UTC)
        level = logging.WARNING if left < EXPIRES_SOON else logging.INFO
        log.log(level, "%s ends on %s, in %d days", tls.cert, f"{expires:%Y-%m-%d %H:%M} UTC", left.days)
        return tls

    def read(self) -> Pem:
        """The files as they are now. Raises `InvalidInput` for one that cannot be read."""
        return Pem(_read("tls-cert", self.cert), _read("tls-key", self.key), _read("tls-ca", self.ca))

    def stamp(self) -> object:
        """Changes when one of the files does."""
        return stamp(self.cert, self.key, self.ca)

    def channel_credentials(self) -> Any:
        """For one channel, from the files as they are now. Raises `Unavailable` while one cannot be read."""
        try:
            pem = self.read()
        except InvalidInput as error:
            raise Unavailable(str(error)) from None
        return grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)

    def server_credentials(self) -> Any:
        """Every peer must show a certificate of the authority; changed files are used from the next handshake on."""
        renew = _Renewal(self)
        return grpc.dynamic_ssl_server_credentials(renew.configuration(), renew, require_client_authentication=True)


@dataclass(frozen=True, slots=True)
class Pem:
    """What the files of a `Tls` hold."""

    cert: bytes
    key: bytes
    ca: bytes

    def check(self, tls: Tls) -> datetime.datetime:
        """When the certificate ends. Raises `InvalidInput` unless all three fit one another and the role."""
        certificate = _parsed("tls-cert", tls.cert, lambda: x509.load_pem_x509_certificates(self.cert))[0]
        _parsed("tls-ca", tls.ca, lambda: x509.load_pem_x509_certificates(self.ca))
        key = _parsed("tls-key", tls.key, lambda: serialization.load_pem_private_key(self.key, None))
        if key.public_key() != certificate.public_key():
            raise InvalidInput("tls-key", tls.key, f"does not belong to {tls.cert}; give the key made with it")
        expires: datetime.datetime = certificate.not_valid_after_utc
        if expires < datetime.datetime.now(datetime.UTC):
            raise InvalidInput("tls-cert", tls.cert, f"has ended on {expires:%Y-%m-%d %H:%M} UTC; renew it")
        for kind, name in ((x509.UniformResourceIdentifier, tls.role.uri), (x509.DNSName, tls.role.dns_name)):
            if name not in _alternative_names(certificate, kind):
                fix = f"is no {tls.role}'s: it must carry {tls.role.uri} and {tls.role.dns_name} as alternative names"
                raise InvalidInput("tls-cert", tls.cert, fix)
        return expires


class _Renewal:
    """Called by gRPC before every handshake: the new configuration if the files have changed, else None."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._stamp = tls.stamp()

    def configuration(self) -> Any:
        pem = self._tls.read()
        pem.check(self._tls)
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.ca)

    def __call__(self) -> Any:
        now = self._tls.stamp()
        if now == self._stamp:
            return None
        try:
            # Certificate and key change one after the other: while they do not fit, the former ones stay in use, and
            # the next handshake looks again.
            configuration = self.configuration()
        except InvalidInput as error:
            log.error("the former certificate stays in use: %s", error)
            return None
        self._stamp = now
        log.warning("%s has changed and is in use", self._tls.cert)
        return configuration


def _read(field: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(2**20)
    except OSError as error:
        fix = f"cannot be read ({error.strerror}); `paceline certs DIR` makes certificates to try things out"
        raise InvalidInput(field, path, fix) from None


def _parsed(field: str, path: str, parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except (ValueError, TypeError) as error:
        raise InvalidInput(field, path, f"is no PEM file of the kind, or needs a password: {error}") from None


def _alternative_names(certificate: x509.Certificate, kind: Any) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(names.get_values_for_type(kind))
