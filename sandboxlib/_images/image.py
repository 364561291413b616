# SPDX-License-Identifier: Apache-2.0
"""Image: a container image as a root. Its layers are unpacked once into the store.

Modules that only the first start needs are imported by it.
"""

from __future__ import annotations

import errno

from .. import _types
from .._spec.command import Command
from .._spec.overlay import Defaults, Layers, Lower, Owners
from .._spec.user import User
from .._store.storage import Storage
from .._values import AnyStore, Value, absolute, check_path, check_text, unknown_keyword
from ..errors import setup_error
from .kinds import default_user, kind_of
from .known import Known, file_key, leased, recalled
from .store import store_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._store.locks import Lease


class Image(Value, Layers):
    """A container image: an OCI image layout (a directory or a tar), what `docker save` writes, or
    an .aci. A frozen value, for the root of a Sandbox or as a layer of an Overlay.

        image = Image("debian.tar")
        with Sandbox(image) as box:
            box.run(image.command())

    path: str or path. ref: str, the name of the image, if the file or directory holds several; None
        by default.

    Its layers are unpacked into the store by the first run, which may take long, and are shared by
    all runs and images from then on. The image's environment, working directory and user are the
    defaults of the runs in it: Command(env=) and (cwd=) and Sandbox(user=) go before them.

    Raises SpecError (a ValueError) if a value is wrong, and SpecTypeError for a value of the wrong
    type, or an unknown keyword argument. A run raises ImageError if the image is broken, hostile or
    too large; SetupError (an OSError) if it or the store cannot be used; UnsupportedError if this
    caller cannot unpack images safely.
    """

    __module__ = "sandboxlib"  # as callers import it, and pickles name it

    _fields = ("path", "ref")
    path: str
    ref: str | None

    def __init__(
        self, path: _types.Path, ref: str | None = None, **unknown: _types.NoReturn
    ) -> None:
        if unknown:
            raise unknown_keyword("Image", unknown, self._fields)
        path = absolute(check_path("the path of an image", path))
        self.__dict__.update(path=path, ref=None if ref is None else check_text("ref", ref))

    def command(self, *args: _types.Path | bytes, store: AnyStore | None = None) -> Command:
        """Returns the Command of the image, as docker run has it: its entrypoint with its
        arguments, or with `args` in their place. It is /bin/sh if the image names none.

        args: str, path or bytes.
        store: Store, where the image is unpacked if it is not yet. None (the default): Store(), the
            caller's cache directory.

        Raises the errors of a run.
        """
        known = self._known(store)
        return Command([*known.entrypoint, *(args or known.cmd)] or ["/bin/sh"])

    def _lowers(self, owners: Owners, store: AnyStore | None = None) -> list[Lower]:
        return [Lower(lease.path, lease) for lease in self._leases(owners, store_of(store))[1]]

    def _key(self, store: AnyStore | None = None) -> str:
        import hashlib

        layers = "\n".join(self._known(store).layers)
        return f"sha256:{hashlib.sha256(layers.encode()).hexdigest()}"

    def _keys(self, store: AnyStore | None = None) -> list[str]:
        return [f"sha256:{name}" for name in self._known(store).layers]

    def _pinned(self, store: AnyStore | None) -> Layers:
        return Pinned(self, self._known(store))

    def _prepare(
        self, owners: Owners | None, store: AnyStore | None, timeout: float | None
    ) -> None:
        if owners is None:
            self._known(store, timeout)
        else:
            self._leases(owners, store_of(store), timeout)

    def _defaults(self, store: AnyStore | None) -> Defaults:
        known, user = self._known(store), default_user()
        if known.ids is None:
            return Defaults(known.env, known.cwd, user)
        return Defaults(known.env, known.cwd, User(*known.ids, ranges=user == "ranges"))

    def _known(self, store: AnyStore | None, timeout: float | None = 600.0) -> Known:
        """What the store knows of the image, which is unpacked if it knows nothing."""
        storage = store_of(store)
        known = recalled(storage, file_key(self.path, self.ref))
        if known is None:
            from . import unpack_image
            from .unpack_layers import way_for

            owners = way_for(None).owners
            known = unpack_image.unpacked(self.path, self.ref, storage, owners, timeout)[0]
        return known

    def _leases(
        self, owners: Owners, storage: Storage, timeout: float | None = 600.0
    ) -> tuple[Known, list[Lease]]:
        """What is known of the image, and leases of its layers, bottom first."""
        kind, key = kind_of(owners), file_key(self.path, self.ref)
        known = recalled(storage, key)
        leases = None if known is None else leased(storage, kind, known)
        if known is None or leases is None:
            from . import unpack_image

            known, leases = unpack_image.unpacked(self.path, self.ref, storage, owners, timeout)
        return known, leases


class Pinned(Image):
    """An Image as it was when this was made: its layers and what it says of commands. If the store
    lost a layer, and the file has another image by now, a run raises SetupError, ESTALE.
    """

    def __init__(self, image: Image, known: Known) -> None:
        super().__init__(image.path, image.ref)
        self.__dict__["_was"] = known

    _was: _types.Any  # Known

    def _known(self, store: AnyStore | None, timeout: float | None = 600.0) -> Known:
        was: Known = self._was
        return was

    def _pinned(self, store: AnyStore | None) -> Layers:
        return self

    def _leases(
        self, owners: Owners, storage: Storage, timeout: float | None = 600.0
    ) -> tuple[Known, list[Lease]]:
        was: Known = self._was
        leases = leased(storage, kind_of(owners), was)
        if leases is None:
            known, leases = super()._leases(owners, storage, timeout)
            if known.layers != was.layers:
                what = f"use the image {self.path}, which has other layers than it had"
                raise setup_error(errno.ESTALE, self.path, "source", what)
        return was, leases
