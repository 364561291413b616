# SPDX-License-Identifier: Apache-2.0
"""Config: what an image says of its command. The documents were parsed by the child."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from .._spec.command import BASE_ENVIRONMENT
from .child import documents
from .unpack import refusals, set_variable


class Config(NamedTuple):
    """entrypoint, cmd: the two halves of the command; an .aci has only the first. account: the user
    as the image writes it.
    """

    entrypoint: list[str]
    cmd: list[str]
    env: dict[str, str]
    cwd: str
    account: str


def of_oci(config: dict[str, Any]) -> Config:
    """The Config of an OCI image. Raises ImageError if the document is wrong."""
    with refusals():
        settings = documents.checked(config.get("config") or {}, dict, "config")
        env = dict(BASE_ENVIRONMENT)
        for setting in documents.strings(settings.get("Env"), "Env"):
            name, equals, value = setting.partition("=")
            set_variable(env, name if equals else "", value)
        entrypoint = documents.strings(settings.get("Entrypoint"), "Entrypoint")
        cmd = documents.strings(settings.get("Cmd"), "Cmd")
        cwd = documents.strings([settings.get("WorkingDir") or "/"], "config")[0]
        account = documents.oci_account(config)
    return Config(entrypoint, cmd, env, os.path.join("/", cwd), account)


def of_aci(manifest: dict[str, Any]) -> Config:
    """The Config of an app container image. Raises ImageError if the manifest is wrong."""
    with refusals():
        app = documents.checked(manifest.get("app") or {}, dict, "app")
        name = documents.strings([manifest.get("name") or ""], "name")[0]
        env = {**BASE_ENVIRONMENT, "AC_APP_NAME": name}
        for setting in documents.checked(app.get("environment") or [], list, "environment"):
            entry = documents.checked(setting, dict, "a variable of environment")
            variable = [entry.get("name"), entry.get("value")]
            set_variable(env, *documents.strings(variable, "environment"))
        cwd = documents.strings([app.get("workingDirectory") or "/"], "app")[0]
        argv = documents.strings(app.get("exec"), "exec")
        account = documents.aci_account(manifest)
    return Config(argv, [], env, os.path.join("/", cwd), account)
