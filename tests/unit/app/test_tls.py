"""The TLS side of listeners: what the files have to hold, and new ones while it listens."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import trustme
from OpenSSL import SSL
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory

from tcprepl.app.tls import Certificates, tls_context
from tcprepl.errors import ConfigError
from tcprepl.settings import TlsSettings

# Twisted hands its certificates to pyOpenSSL in the form of old.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


def issue(where: Path, authority: trustme.CA) -> TlsSettings:
    """Return settings with a fresh chain and key in *where*."""
    where.mkdir(exist_ok=True)
    certificate = authority.issue_cert("localhost")
    chain, key = where / "chain.pem", where / "key.pem"
    certificate.private_key_pem.write_to_path(key)
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(chain, append=number > 0)
    authority.cert_pem.write_to_path(chain, append=True)
    return TlsSettings(certificate=chain, private_key=key)


def test_what_the_files_have_to_hold(tmp_path: Path) -> None:
    """Chain and key, with and without client certificates; what is wrong is told by file."""
    authority = trustme.CA()
    tls = issue(tmp_path, authority)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    for client_ca in (None, ca):
        options = tls_context(tls.model_copy(update={"client_ca": client_ca}))
        assert len(options.extraCertChain) == 1
        assert bool(options.verify) is (client_ca is not None)
    other = issue(tmp_path / "other", authority)
    chain, key = tls.certificate, tls.private_key
    for bad, text in (
        (TlsSettings(certificate=tmp_path / "no", private_key=key), "no: cannot be read"),
        (TlsSettings(certificate=key, private_key=key), "expected PEM"),
        (TlsSettings(certificate=chain, private_key=key, client_ca=key), "expected PEM"),
        (TlsSettings(certificate=chain, private_key=other.private_key), "not that of the key"),
    ):
        with pytest.raises(ConfigError, match=text):
            tls_context(bad)


def test_new_connections_get_what_was_put_in_use_last(tmp_path: Path) -> None:
    """A context that a connection has stays what it was."""
    authority = trustme.CA()
    first, second = (tls_context(issue(tmp_path, authority)) for _ in range(2))
    certificates = Certificates(first)
    assert certificates.end_s is not None
    assert Certificates(object()).end_s is None  # type: ignore[arg-type]
    before = certificates.getContext()
    assert before is first.getContext()
    certificates.use(second)
    assert certificates.getContext() is second.getContext()
    assert before is not second.getContext()


def test_twisted_knows_it_for_a_context_factory(tmp_path: Path) -> None:
    """Otherwise each listener with TLS begins with a warning in the log."""
    certificates = Certificates(tls_context(issue(tmp_path, trustme.CA())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TLSMemoryBIOFactory(certificates, False, Factory())


def test_what_openssl_does_not_take_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key too short for the machine's policy, for example."""

    def refuse(self: object) -> None:
        raise SSL.Error([("", "", "ee key too small")])

    monkeypatch.setattr(CertificateOptions, "getContext", refuse)
    with pytest.raises(ConfigError, match=r"chain.pem: OpenSSL does not take it: .*too small"):
        tls_context(issue(tmp_path, trustme.CA()))
