"""`paceline certs`: a development certificate authority, and one certificate a role."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy import options
from deploy.options import Parser
from paceline.errors import InvalidInput
from paceline.security import PeerRole

CA = "ca"
CA_DAYS = 3650
BACKDATED = datetime.timedelta(minutes=5)  # clocks differ
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate authority: what it signs with."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def run(argv: Sequence[str]) -> int:
    values = parser().parse(argv, os.environ)
    folder = Path(values.dir)
    make(folder, hosts=(*LOCAL_HOSTS, *values.hosts), days=values.days)
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=values.days)
    if values.json:
        told = {
            "folder": str(folder),
            "valid_until": f"{ends:%Y-%m-%d}",
            "roles": list(PeerRole),
            "options": flags(folder),
        }
        print(json.dumps(told))
        return 0
    print(f"{folder}: one certificate a role, valid until {ends:%Y-%m-%d}; run this again before, to renew them")
    print(f"every command takes them so: {' '.join(flags(folder))}")
    print(f"keep {folder / CA}.key to yourself: whoever has it can be any role; it is needed here only, to renew")
    return 0


def flags(folder: Path) -> tuple[str, ...]:
    """The options by which any command uses the certificates in `folder`."""
    return (
        "--tls-cert",
        f"{folder}/{{role}}.crt",
        "--tls-key",
        f"{folder}/{{role}}.key",
        "--tls-ca",
        f"{folder}/ca.crt",
    )


def make(folder: Path, *, hosts: Sequence[str] = LOCAL_HOSTS, days: int = 90) -> None:
    """Write ca.crt, ca.key, ROLE.crt and ROLE.key; an authority that is there already signs again.

    Each file is replaced as a whole, the certificate after its key, so that running roles may read at any time.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        signer = _signer(folder)
        for role in PeerRole:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _certificate(role, key, signer, hosts, datetime.timedelta(days=days))
            _write(folder / f"{role}.key", _key_pem(key), 0o600)
            _write(folder / f"{role}.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as error:
        raise InvalidInput("DIR", str(folder), f"cannot be written: {error.strerror}") from None


def _signer(folder: Path) -> Signer:
    """The authority in `folder`, or a new one."""
    cert_path, key_path = folder / f"{CA}.crt", folder / f"{CA}.key"
    if cert_path.exists() != key_path.exists():
        fix = f"holds only one of {cert_path.name} and {key_path.name}: add the other, or give another folder"
        raise InvalidInput("DIR", str(folder), fix)
    if cert_path.exists():
        try:
            key: Any = serialization.load_pem_private_key(key_path.read_bytes(), None)
            return Signer(x509.load_pem_x509_certificate(cert_path.read_bytes()), key)
        except (ValueError, TypeError) as error:
            raise InvalidInput("DIR", str(folder), f"{CA}.crt and {CA}.key cannot be used: {error}") from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "paceline development CA")])
    builder = _builder(name, name, key.public_key(), datetime.timedelta(days=CA_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    _write(key_path, _key_pem(key), 0o600)
    _write(cert_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return Signer(certificate, key)


def _certificate(
    role: PeerRole, key: ec.EllipticCurvePrivateKey, signer: Signer, hosts: Sequence[str], life: datetime.timedelta
) -> x509.Certificate:
    """For both ends of a connection, since every role calls and all but clients are called."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"paceline {role}")])
    builder = _builder(name, signer.certificate.subject, key.public_key(), life)
    names = [x509.UniformResourceIdentifier(role.uri), x509.DNSName(role.dns_name), *map(_host, dict.fromkeys(hosts))]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.add_extension(purposes, critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    return builder.add_extension(issuer, critical=False).sign(signer.key, hashes.SHA256())


def _builder(name: x509.Name, issuer: x509.Name, key: Any, life: datetime.timedelta) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by more than `mode` says."""
    part = path.with_suffix(path.suffix + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    part.replace(path)


def parser() -> Parser:
    it = Parser(
        "certs",
        """Make a certificate authority in DIR, and a certificate for each role: coordinator, drafter, verifier, client.

With these, all traffic is encrypted, and every side knows the other's role: a client cannot register as a worker, nor
a drafter as a verifier. Give each machine ca.crt and the pair of its role, and start everything with the same options;
{role} stands for the role that reads them:

  paceline certs certs/
  export PACELINE_TLS_CERT=certs/{role}.crt PACELINE_TLS_KEY=certs/{role}.key PACELINE_TLS_CA=certs/ca.crt
  paceline serve --target big/ --drafter small/ --host 0.0.0.0
  paceline generate --server 10.0.0.1:50051 --prompt "Once upon a time"

Run it again to renew: the authority stays, and running roles take up the new files by themselves. In production any
authority will do, if its certificates carry what these carry: the URI spiffe://paceline/ROLE and the DNS name
ROLE.paceline as alternative names.""",
    )
    it.argument("dir", metavar="DIR", help="where to write; made if it is not there")
    group = it.group("certificates")
    group.add(
        "--hosts",
        kind=options.hosts,
        default=(),
        shown="this machine only",
        metavar="HOST[,…]",
        help="further names and addresses for the certificates; Paceline itself goes by roles and needs none",
    )
    group.add(
        "--days", kind=options.whole(1, 825), default=90, metavar="N", help="how long the roles' certificates are valid"
    )
    it.group("report").add("--json", kind=options.boolean, default=False, help="print what was made as one JSON object")
    return it
