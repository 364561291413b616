# SPDX-License-Identifier: Apache-2.0
"""A certificate authority of a test's own, by openssl, and what it signs; tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from lib.machine import require


class Authority:
    """Signs certificates, in a directory: ca.pem, NAME.pem and NAME.key."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        require(shutil.which("openssl"), "there is no openssl")
        self.directory, self.name = directory, name
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-out", f"{name}.pem"),
        )

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.pem"

    def sign(self, name: str) -> tuple[Path, Path]:
        """The paths of a new key and of its certificate, for 127.0.0.1 and localhost."""
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        names = self.directory / f"{name}.ext"
        names.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{self.name}.pem"),
            *("-CAkey", f"{self.name}.key", "-CAcreateserial", "-days", "2"),
            *("-extfile", names.name, "-out", f"{name}.pem"),
        )
        return self.directory / f"{name}.key", self.directory / f"{name}.pem"

    def _openssl(self, *args: str) -> None:
        subprocess.run(
            ["openssl", *args], cwd=self.directory, check=True, capture_output=True, timeout=60
        )


def jwt(secret: str, **claims: Any) -> str:
    """A token of HS256."""

    def packed(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    head = packed(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    text = f"{head}.{packed(json.dumps(claims).encode())}"
    return f"{text}.{packed(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def write_token(path: Path, text: str | bytes) -> Path:
    """Writes a file that its owner alone reads, as a token has to be kept. Returns its path."""
    path.touch(0o600)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
