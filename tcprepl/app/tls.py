"""The TLS side of listeners, which can be given new certificates while they listen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from OpenSSL import SSL, crypto
from twisted.internet import ssl
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IOpenSSLContextFactory
from zope.interface import implementer

from tcprepl.errors import ConfigError

if TYPE_CHECKING:  # who connects needs no settings
    from tcprepl.settings import TlsSettings

#: How each certificate of a PEM file begins.
BEGIN = b"-----BEGIN CERTIFICATE-----"


@implementer(IOpenSSLContextFactory)  # Twisted warns of what does not say that it is one
class Certificates:
    """The context factory of a listener: each connection gets what was put in use last.

    Args:
        options: What is in use at first.
    """

    def __init__(self, options: ssl.CertificateOptions) -> None:
        self._options = options

    def use(self, options: ssl.CertificateOptions) -> None:
        """Use *options* for connections that are made from now on."""
        self._options = options

    @property
    def end_s(self) -> float | None:
        """When what is in use ends, in seconds since 1970; None if that cannot be told."""
        certificate = getattr(self._options, "certificate", None)
        if not isinstance(certificate, crypto.X509):
            return None
        return certificate.to_cryptography().not_valid_after_utc.timestamp()

    def getContext(self) -> Any:  # noqa: N802  # Twisted's name
        """Return the context of a new connection (Twisted calls this)."""
        return self._options.getContext()


def tls_context(tls: TlsSettings) -> ssl.CertificateOptions:
    """Return the TLS side of a listener, from the files that *tls* names.

    Raises:
        ConfigError: A file cannot be read, or does not hold what it should.
    """
    pem = _read(tls.private_key) + b"\n" + _read(tls.certificate)
    try:
        certificate = _certificate(ssl.PrivateCertificate.loadPEM, pem, tls.certificate)
    except VerifyError:
        raise ConfigError(
            f"{tls.certificate}: its first certificate is not that of the key in {tls.private_key}"
        ) from None
    chain = _read(tls.certificate).split(BEGIN)[2:]
    extra = [
        _certificate(ssl.Certificate.loadPEM, BEGIN + part, tls.certificate).original
        for part in chain
    ]
    trust = None if tls.client_ca is None else trust_root(tls.client_ca)
    options = ssl.CertificateOptions(
        privateKey=certificate.privateKey.original,
        certificate=certificate.original,
        extraCertChain=extra,
        trustRoot=trust,
        raiseMinimumTo=ssl.TLSVersion.TLSv1_2,
    )
    try:
        options.getContext()
    except SSL.Error as error:
        raise ConfigError(f"{tls.certificate}: OpenSSL does not take it: {error}") from None
    return options


def trust_root(path: Path) -> Any:
    """Return trust in the certificates of a PEM file.

    Raises:
        ConfigError: The file cannot be read, or does not hold what it should.
    """
    parts = _read(path).split(BEGIN)[1:] or [b""]
    try:
        found = [ssl.Certificate.loadPEM(BEGIN + part) for part in parts]
    except (crypto.Error, ValueError) as error:
        raise ConfigError(
            f"{path}: expected PEM with certificates of authorities: {error}"
        ) from None
    return ssl.trustRootFromCertificates(found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _certificate(load: Callable[[bytes], Any], pem: bytes, path: Path) -> Any:
    try:
        return load(pem)
    except (crypto.Error, ValueError) as error:
        raise ConfigError(f"{path}: expected PEM with a certificate and its key: {error}") from None
