# SPDX-License-Identifier: Apache-2.0
"""The tests of this folder once more, where all controllers are in the unified hierarchy (v2).

Where a machine has a controller in v1, v2 lacks it. So a virtual machine boots a kernel that has
none in v1, on the files of this machine.

By hand, since that takes minutes: `apt-get download` a linux-image, unpack it (dpkg -x), and name
its vmlinuz: SANDBOXLIB_KERNEL=.../boot/vmlinuz-VERSION pytest tests/cgroups/test_unified.py --all
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

import pytest
from lib import vm
from lib.machine import needs_root, not_sanitized, require

pytestmark = [needs_root, not_sanitized]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_limits_hold_in_the_unified_hierarchy(tmp_path: Path) -> None:
    if (kernel := os.environ.get("SANDBOXLIB_KERNEL")) is None:
        pytest.skip("SANDBOXLIB_KERNEL names no kernel to boot: this is for by hand")
    require(platform.machine() == "x86_64", "the virtual machine is for x86_64")
    require(shutil.which(vm.QEMU), f"there is no {vm.QEMU}")
    require(os.path.exists("/bin/busybox"), "there is no static busybox")
    here = Path(__file__).resolve()
    command = [sys.executable, "-m", "pytest", "-rfEs", "--color=no", "-p", "no:cacheprovider"]
    command += ["-o", "timeout=250", "-o", "timeout_method=signal", str(here.parent)]
    log = vm.boot(
        Path(kernel), command, directory=here.parents[2], log=tmp_path / "console", timeout=1700
    )
    assert re.search(r"^== exit 0\r?$", log, re.M), log[-6000:]
    # Each of these is skipped where the controllers are in v1 or not at all.
    passed = re.search(r"(\d+) passed", log)
    assert passed, log[-6000:]
    assert int(passed[1]) > 60, log[-6000:]
    assert not re.search("no cgroups for|no cgroup can have", log), log[-6000:]
