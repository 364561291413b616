# SPDX-License-Identifier: Apache-2.0
"""The docstrings and annotations of everything public: for readers, and for the API pages."""

import inspect
import re
import typing

import pytest

import sandboxlib

CALLABLE = [name for name in sandboxlib.__all__ if callable(getattr(sandboxlib, name))]


def _public(name):
    """The functions of a public name, by dotted names: itself, or the public methods of a class."""
    value = getattr(sandboxlib, name)
    if not inspect.isclass(value):
        return {name: value} if inspect.isroutine(value) else {}
    found = {}
    for attribute, method in inspect.getmembers(value):
        owner = next(c for c in value.__mro__ if attribute in vars(c))
        if not attribute.startswith("_") and callable(method) and _is_ours(owner):
            found[f"{name}.{attribute}"] = method
    return found


def _is_ours(owner):
    return owner.__module__.partition(".")[0] == "sandboxlib"


FUNCTIONS = {
    dotted: function for name in sandboxlib.__all__ for dotted, function in _public(name).items()
}
for module in ("utils", "load", "load.appc", "load.oci"):
    parent = sandboxlib
    for part in module.split("."):
        parent = getattr(parent, part)
    for name, function in inspect.getmembers(parent, inspect.isfunction):
        if not name.startswith("_") and function.__module__ == parent.__name__:
            FUNCTIONS[f"{module}.{name}"] = function


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_each_parameter_of_a_public_function_is_in_its_docstring(name):
    doc = inspect.getdoc(FUNCTIONS[name]) or ""
    for parameter in inspect.signature(FUNCTIONS[name]).parameters:
        if parameter not in ("self", "unknown"):
            assert re.search(rf"\b{parameter}\b", doc), f"{name} does not say what {parameter} is"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_get_type_hints_reads_each_public_function(name):
    hints = typing.get_type_hints(FUNCTIONS[name])
    parameters = set(inspect.signature(FUNCTIONS[name]).parameters) - {"self"}
    assert parameters | {"return"} <= hints.keys()


@pytest.mark.parametrize("name", [n for n in CALLABLE if inspect.isclass(getattr(sandboxlib, n))])
def test_each_argument_of_a_public_class_is_in_its_docstring(name):
    value = getattr(sandboxlib, name)
    typing.get_type_hints(value)
    assert value.__doc__
    if issubclass(value, (BaseException, sandboxlib.Result, sandboxlib.Usage, sandboxlib.Outputs)):
        return  # made by sandboxlib alone; what they have is in their docstrings
    if name in ("Process", "AsyncProcess", "Runner", "CommandOptions"):
        return
    for parameter in inspect.signature(value).parameters:
        if parameter != "unknown":
            assert re.search(rf"\b{parameter}\b", value.__doc__), f"{name}: {parameter}"
