# SPDX-License-Identifier: Apache-2.0
"""A channel whose calls carry metadata that is made anew for each, as a token that changes.

Interceptors of gRPC do the same, for four kinds of calls in as many ways, and each costs a call
several times as much. Stubs take from a channel the four methods below alone.
"""

from __future__ import annotations

from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Metadata = tuple[tuple[str, str], ...]


class Marked:
    """A channel. metadata: a function that takes the name of a method, and returns the pairs."""

    def __init__(self, channel: Any, metadata: Callable[[str], Metadata]) -> None:
        self._channel = channel
        self._metadata = metadata

    def _wrap(self, made: Any, method: str) -> Any:
        return _Method(made, method.rpartition("/")[2], self._metadata)

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Any:
        return self._wrap(self._channel.unary_unary(method, *args, **options), method)

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Any:
        return self._wrap(self._channel.unary_stream(method, *args, **options), method)

    def stream_unary(self, method: str, *args: Any, **options: Any) -> Any:
        return self._wrap(self._channel.stream_unary(method, *args, **options), method)

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Any:
        return self._wrap(self._channel.stream_stream(method, *args, **options), method)

    def close(self) -> None:
        self._channel.close()


class _Method:
    """A method of a stub: called, or started by future() or with_call()."""

    def __init__(self, method: Any, name: str, metadata: Callable[[str], Metadata]) -> None:
        self._method = method
        self._name = name
        self._metadata = metadata

    def _more(self, options: dict[str, Any]) -> dict[str, Any]:
        given = tuple(options.get("metadata") or ())
        return {**options, "metadata": (*given, *self._metadata(self._name))}

    def __call__(self, request: Any, **options: Any) -> Any:
        return self._method(request, **self._more(options))

    def with_call(self, request: Any, **options: Any) -> Any:
        return self._method.with_call(request, **self._more(options))

    def future(self, request: Any, **options: Any) -> Any:
        return self._method.future(request, **self._more(options))
