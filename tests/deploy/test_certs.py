"""`paceline certs`."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509

from deploy.certs import make, run
from deploy.cli import main
from paceline.security import PeerRole


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_every_role_gets_a_certificate_and_a_key_that_only_its_owner_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "certs"
    assert run([str(folder), "--hosts", "db.example.org,10.0.0.1", "--days", "30"]) == 0
    names = {"ca", *PeerRole}
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("crt", "key")}
    for name in names:
        assert stat.S_IMODE((folder / f"{name}.key").stat().st_mode) == 0o600
    ca = certificate(folder / "ca.crt")
    for role in PeerRole:
        it = certificate(folder / f"{role}.crt")
        it.verify_directly_issued_by(ca)
        alternative = it.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert alternative.get_values_for_type(x509.UniformResourceIdentifier) == [role.uri]
        assert {role.dns_name, "localhost", "db.example.org"} == set(alternative.get_values_for_type(x509.DNSName))
        assert ipaddress.ip_address("10.0.0.1") in alternative.get_values_for_type(x509.IPAddress)
        assert not it.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert it.not_valid_after_utc - it.not_valid_before_utc <= datetime.timedelta(days=30, minutes=6)
    told = capsys.readouterr().out
    assert f"{certificate(folder / 'client.crt').not_valid_after_utc:%Y-%m-%d}" in told, "when they end is said"
    assert "--tls-cert" in told
    assert "ca.key" in told


def test_run_again_it_renews_under_the_same_authority(tmp_path: Path) -> None:
    make(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make(tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name for name in after if after[name] == before[name]} == {"ca.crt", "ca.key"}
    certificate(tmp_path / "drafter.crt").verify_directly_issued_by(certificate(tmp_path / "ca.crt"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "DIR: is required"),
        (["{dir}", "--hosts", "no host"], "--hosts"),
        (["{dir}", "--days", "0"], "--days"),
        (["{dir}", "other"], "unknown option"),
        (["{dir}/file/below"], "cannot be written"),
        (["{dir}/half"], "holds only one of ca.crt and ca.key"),
        (["{dir}/broken"], "cannot be used"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("")
    for name, files in (("half", ["ca.crt"]), ("broken", ["ca.crt", "ca.key"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("nonsense")
    assert main(["certs", *(argument.format(dir=tmp_path) for argument in arguments)]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
