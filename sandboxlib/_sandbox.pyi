# SPDX-License-Identifier: Apache-2.0
# The compiled module: the functions and enums of csrc/sandbox.h, which has their types.
from typing import Any

ffi: Any
lib: Any
