"""What travels of the script's own modules: which there are, in which version, and their code.

A function of an importable module travels by name, so a worker imports that module. It has to be the version that the
script itself runs, whatever lies on disk meanwhile, and whatever a worker (or Python's caches) knew before. Therefore
each packed function names the modules of the script that it may reach, and a worker runs their code as the script
packed it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One module of the script.

    Attributes:
        name: as it is imported.
        digest: of its source; what tells versions from each other. Empty for one that is not there.
        file: where its source lies.
        folders: where submodules are looked for; None when it is no package.
        blob: the blob that holds its marshalled code; empty when it is imported as usual, as extensions are.
        at, size: where in that.
    """

    name: str
    digest: bytes
    file: str
    folders: list[str] | None = None
    blob: bytes = b""
    at: int = 0
    size: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(list[Entry])


def pack_manifest(entries: Iterable[Entry]) -> bytes:
    """Return entries as they travel."""
    return _encode(list(entries))


def unpack_manifest(packed: bytes) -> list[Entry]:
    """Return what :func:`pack_manifest` packed; nothing of nothing."""
    return _decoder.decode(packed) if packed else []
