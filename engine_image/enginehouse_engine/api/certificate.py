"""The certificate by which an API server is known, read again when its files have changed.

An engine lives longer than many a certificate, and the kubelet exchanges a secret's files while it runs.
Invariant: a pair that cannot be used (half written, of two different keys) changes nothing: new connections get what the last good
one gave. Does not look by itself: every TLS handshake does.
"""

from __future__ import annotations

import logging
import os
import ssl
from typing import Final

from enginehouse_engine.config import ConfigError

logger = logging.getLogger("enginehouse.api")

_ProvesItself = ssl.SSLObject | ssl.SSLSocket
_Version = tuple[tuple[int, int], ...]


class Certificate:
    """Raises ConfigError when there is no usable pair at the start."""

    def __init__(self, certificate_file: str, key_file: str) -> None:
        self._files: Final = (certificate_file, key_file)
        try:
            self._seen = self._version()
            self.context: Final = self._read()
            """For the listener. Each handshake goes on with the newest one."""
        except (OSError, ssl.SSLError) as error:
            wanted = f"a certificate chain and its private key as PEM, in {certificate_file} and {key_file}"
            raise ConfigError(f"HTTPS wants {wanted}, found: {error}") from error
        self._newest = self.context
        self.context.sni_callback = self._hand_over

    def _hand_over(self, connection: _ProvesItself, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._up_to_date()

    def _up_to_date(self) -> ssl.SSLContext:
        try:
            version = self._version()
            if version != self._seen:
                self._seen = version
                self._newest = self._read()
                logger.info("the certificate in %s has changed: new connections get it", self._files[0])
        except (OSError, ssl.SSLError) as error:
            logger.error("the changed certificate in %s cannot be used, the one before goes on: %s", self._files[0], error)
        return self._newest

    def _version(self) -> _Version:
        found = [os.stat(file) for file in self._files]
        return tuple((one.st_ino, one.st_mtime_ns) for one in found)

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password that it could wait for at a terminal.
        context.load_cert_chain(*self._files, password=lambda: "")
        return context
