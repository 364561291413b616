# SPDX-License-Identifier: Apache-2.0
import sysconfig

from setuptools import setup

# One wheel for every CPython from 3.10 on; but free-threaded builds have no limited API.
has_limited_api = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["build_ffi.py:make_ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if has_limited_api else {},
)
