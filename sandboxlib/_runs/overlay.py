# SPDX-License-Identifier: Apache-2.0
"""The root of layers of a Plan, and that of one of its runs."""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable
from sys import byteorder

from .. import errors
from .._core import native
from .._core.workspace import Workspace, fill_root
from .._host import machine
from .._spec.command import Command
from .._spec.overlay import MOST_LAYERS, Layers, Lower, Overlay, Owners
from .._spec.spec import Spec
from .._store.storage import storage_of
from .upper import Upper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

    from .._inputs.outputs import Outputs
    from .._inputs.placing import Placer, Ready
    from ..result import Result
    from .on_disk import DiskUpper

lib = native.lib


def owners_of(box: Spec, ids: tuple[int, int] | None) -> Owners:
    """Whose ids files have in the layers and uppers of a Sandbox. ids: as in Plan."""
    uid, gid = os.geteuid(), os.getegid()
    if ids is None:
        return Owners("real", uid, gid)
    return Owners("ranges" if box._user_kind == "ranges" else "single", uid, gid)


def takes_user_attributes(ids: tuple[int, int] | None) -> bool:
    """Whether the overlay keeps its attributes as user.*: trusted.* ones take CAP_SYS_ADMIN in the
    machine's first user namespace (xattr(7)). ids: as in Plan.
    """
    return ids is not None or machine.is_in_user_namespace()


def place_values(
    overlay: Overlay, ids: tuple[int, int] | None, changes: int | None, inodes: str
) -> dict[str, Any]:
    """The values of struct sbx_place for a root of layers. changes: as in Limits. inodes: how many
    files an upper in memory may have.
    """
    how = lib.SBX_STACKED
    if takes_user_attributes(ids):
        how |= lib.SBX_USER_XATTR
    if machine.kernel_is_older_than(6, 15):
        how |= lib.SBX_BY_NAME
    if overlay.upper is None and overlay.storage != "memory":
        how |= lib.SBX_VOLATILE  # it is removed soon: unmounting it need not write it to the disk
    values: dict[str, Any] = {"overlay": how, "upper_inodes": inodes}
    return values if changes is None else {**values, "upper_size": str(changes)}


class StackedRoot:
    """The root of a Plan that is an Overlay: its layers, which it finds, unpacks or stages once.

    ids: as in Plan. targets: of the mounts of a run. hidden: those that show other files than the
    layers have there.

    owners, prefix, targets: as in Upper.
    """

    def __init__(
        self,
        box: Spec,
        ids: tuple[int, int] | None,
        targets: tuple[str, ...],
        hidden: tuple[str, ...],
    ) -> None:
        assert box._overlay is not None
        self.box = box
        self.overlay = box._overlay
        self.owners = owners_of(box, ids)
        self.prefix = b"user.overlay." if takes_user_attributes(ids) else b"trusted.overlay."
        self.targets, self._hidden = targets, hidden
        self._lock = allocate_lock()
        self._lowers: tuple[Lower, ...] | None = None
        self._placer: Placer | None = None

    @property
    def placer(self) -> Placer:
        """What places the inputs and outputs of Commands in this root."""
        if self._placer is None:
            from .._inputs.placing import Placer

            box, store = self.box, storage_of(self.box)
            made = Placer(store, self.lowers, self.prefix, self.owners, box._ids, self._hidden)
            with self._lock:
                self._placer = self._placer or made
        return self._placer

    def lowers(self) -> tuple[Lower, ...]:
        """The layers, bottom first. Raises SandboxError if one cannot be unpacked."""
        found = self._lowers
        if found is None:
            with self._lock:
                found = self._lowers
                if found is None:
                    found = self._lowers = self._find()
        return found

    @property
    def may_stay(self) -> bool:
        """Whether a slot can make the root ahead of a run: a new upper in memory, of layers that
        the kernel takes by descriptor.
        """
        is_new = self.overlay.upper is None and self.overlay.storage == "memory"
        return is_new and not machine.kernel_is_older_than(6, 15)

    def release(self) -> None:
        """Lets go of the layers, so that they can be pruned once no run uses them. The next run
        finds them anew.
        """
        with self._lock:
            self._lowers = None
        if self._placer is not None:
            self._placer.release()

    def disk_upper(
        self, lowers: tuple[Lower, ...], deadline: float | None, stop: Callable[[], None]
    ) -> DiskUpper | None:
        """The upper of a run, locked; None if it is in memory. lowers: of the run."""
        overlay, is_real = self.overlay, self.owners.kind == "real"
        if overlay.upper is None and overlay.storage == "memory":
            return None
        from . import on_disk

        if overlay.upper is None:
            remove = self.box._remove_foreign
            return on_disk.new_upper(overlay.storage, lowers, is_real, remove)
        keys = on_disk.keys_of(overlay.layers, self.prefix)
        args = overlay.upper, overlay.busy, keys, lowers, is_real, deadline, stop
        return on_disk.kept_upper(*args)

    def path_of(self, index: int) -> str:
        """The directory of a layer, for people."""
        known = self._lowers or ()
        return known[index].path if index < len(known) else "of the inputs"

    def _find(self) -> tuple[Lower, ...]:
        found: list[Lower] = []
        for layer in self.overlay.layers:
            if isinstance(layer, Layers):
                found += layer._lowers(self.owners, self.box.store)
            else:
                found.append(Lower(layer))
        check_number(len(found))
        return tuple(found)


#: Where the template of a slot has the inputs of the store, and those in memory.
INPUTS, IN_MEMORY = "/s", "/m"


def input_in_slot(path: str) -> str:
    """Where a slot has a layer of inputs: ENTRY/tree in the store, or NUMBER in memory."""
    entry, name = path.split("/")[-2:]
    return f"{INPUTS}/{entry}/{name}" if name == "tree" else f"{IN_MEMORY}/{name}"


def check_number(number: int) -> None:
    """UnsupportedError if the kernel does not stack so many layers."""
    if number > MOST_LAYERS:
        raise errors.UnsupportedError(f"{number} layers, and the kernel stacks {MOST_LAYERS}")


class RootOfRun:
    """The overlay of one run: call `prepare` before each start, `finish` once the run is over, and
    `release` in any case.

    command: of which `changes` and whatever else says whether somebody asks for the upper.
    """

    def __init__(self, root: StackedRoot, command: Command) -> None:
        self._root, self._command = root, command
        self._lowers: tuple[Lower, ...] | None = None
        self._ready: Ready | None = None
        self._failure: BaseException | None = None
        self._sockets: tuple[socket, socket] | None = None
        self._disk: DiskUpper | None = None

    def lowers(self) -> tuple[Lower, ...]:
        """The layers of the root, bottom first, and above them those of the inputs."""
        if self._lowers is None:
            command = self._command
            inputs: tuple[Lower, ...] = ()
            if command.inputs or command.outputs:
                cwd = self._root.box._cwd_of(command)
                self._ready = self._root.placer.ready(command, cwd)
                inputs = self._ready.lowers
                for layer in self._root.box._over:
                    inputs += tuple(layer._lowers(self._root.owners, self._root.box.store))
            self._lowers = (*self._root.lowers(), *inputs)
            check_number(len(self._lowers))
        return self._lowers

    @property
    def inputs(self) -> list[str]:
        """Where a slot has the layers of the inputs, the top first."""
        above = self.lowers()[len(self._root.lowers()) :]
        return [input_in_slot(lower.path) for lower in reversed(above)]

    def is_free(self) -> bool:
        """Whether the run need not wait for another one that uses the same upper."""
        overlay = self._root.overlay
        if overlay.upper is None or overlay.busy == "refuse":
            return True
        from .on_disk import is_free

        return is_free(overlay.upper)

    def prepare(self, work: Workspace, deadline: float | None, stop: Callable[[], None]) -> None:
        """Fills the job of a run. It waits for an upper that another run uses, until `deadline`, by
        monotonic(), or until stop() raises.
        """
        if self._sockets is None and self._command._takes_upper:
            from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair

            self._sockets = socketpair(AF_UNIX, SOCK_SEQPACKET)
        told = 0 if self._sockets is None else self._sockets[1].fileno()
        if self._disk is None:
            self._disk = self._root.disk_upper(self.lowers(), deadline, stop)
        above = None if self._disk is None else self._disk.path
        lowers = [lower.path for lower in reversed(self.lowers())]
        fill_root(work, lowers, above, told, self.inputs)

    @property
    def notes_process(self) -> bool:
        """Whether started() has to be called as soon as the run has a process."""
        return self._root.overlay.upper is not None

    def started(self, pid: int) -> None:
        """Notes the first process of the run, for who finds the upper if this process is killed."""
        if self._disk is not None:
            self._disk.note(pid)

    def _take(self, complete: bool) -> Upper | None:
        """The Upper, which the child sent before the command began. None: nobody asked for it."""
        if self._sockets is None:
            return None
        from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_DONTWAIT

        fds: list[int] = []
        flags = MSG_CMSG_CLOEXEC | MSG_DONTWAIT
        try:  # a run that was started a second time has sent two: the last one counts
            while True:
                for _, _, data in self._sockets[0].recvmsg(1, CMSG_SPACE(4), flags)[1]:
                    fds.append(int.from_bytes(data[:4], byteorder))
        except BlockingIOError:
            pass
        except BaseException:
            while fds:  # a descriptor that is lost keeps an upper in memory
                os.close(fds.pop())
            raise
        while len(fds) > 1:
            os.close(fds.pop(0))
        if not fds:
            return None
        root, disk, self._disk = self._root, self._disk, None
        release = None if disk is None else disk.close
        return Upper(
            *(fds[-1], root.prefix, self.lowers(), root.owners, complete, root.targets),
            release=release,
        )

    def finish(self, result: Result, complete: bool) -> None:
        """Takes what the Command asks for out of the upper of a run that is over. Raises SetupError
        if the outputs cannot be read, also if it is asked again.
        """
        if self._failure is not None:
            raise self._failure
        upper = self._take(complete)
        if self._command.outputs:
            try:
                result._outputs = self._outputs(upper)
            except BaseException as failure:
                self._failure = failure
                if upper is not None:
                    upper.close()
                raise
        if upper is None:
            return
        keep = self._command.changes
        if keep == "keep" or (keep == "on-failure" and not result.ok):
            result._changes = self._root.box._changes_of(upper)
        else:
            upper.close()

    def _outputs(self, upper: Upper | None) -> Outputs:
        """What the run left of its declared outputs; no upper came if it ended before it began."""
        if upper is None or self._ready is None:
            from .._inputs.outputs import Outputs

            return Outputs(missing=self._command.outputs)
        from .._inputs.reading import read_outputs

        storage, wanted = storage_of(self._root.box), self._ready.outputs
        try:
            return read_outputs(upper.fd, upper.lowers, upper.prefix, wanted, storage)
        except PermissionError:  # of other ids of the run's, or of mode 000
            outputs: Outputs = self._root.box._outputs_of(upper, wanted, storage)
            return outputs

    def release(self) -> None:
        """Closes the sockets, and removes an upper on disk that nobody asked for."""
        sockets, self._sockets = self._sockets, None
        for end in sockets or ():
            end.close()
        disk, self._disk = self._disk, None
        if disk is not None:
            disk.close()
