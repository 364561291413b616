# SPDX-License-Identifier: Apache-2.0
"""What a cluster and its clients know alone: files that their owner alone reads, and tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def write_private(path: Path, text: str) -> Path:
    """Writes a new file that its owner alone reads. Returns its path."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path


def signed(secret: str, seconds: int) -> str:
    """A token (JWT, HS256) for a server that has the secret, which takes it for so long."""
    head = _packed({"alg": "HS256", "typ": "JWT"})
    text = f"{head}.{_packed({'exp': int(time.time()) + seconds})}"
    return f"{text}.{_encoded(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def _packed(claims: dict[str, Any]) -> str:
    return _encoded(json.dumps(claims).encode())


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
