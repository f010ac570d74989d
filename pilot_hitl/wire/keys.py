"""CURVE keys of a home, in one 0600 file below its 0700 folder.

The hub proves itself with ``hub``; clients and agents of the same user prove themselves with ``peer``. Everything else
that knocks is turned away before a byte of it is read (ZAP, RFC 27 of ZeroMQ).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec
import zmq

from pilot_hitl.wire.modes import own_file
from pilot_hitl.wire.places import private_folder


class Keyring(msgspec.Struct, frozen=True, kw_only=True):
    """Z85 texts of two key pairs."""

    hub_public: str
    hub_secret: str
    peer_public: str
    peer_secret: str


def keyring(home_folder: Path) -> Keyring:
    """Return the home's keys; they are made, once, when there are none.

    Raises:
        PermissionError: the file or its folder is open to others.
    """
    folder = private_folder(private_folder(home_folder) / "hub")
    path = folder / "keys.json"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    hub_public, hub_secret = zmq.curve_keypair()
    peer_public, peer_secret = zmq.curve_keypair()
    made = Keyring(
        hub_public=hub_public.decode(),
        hub_secret=hub_secret.decode(),
        peer_public=peer_public.decode(),
        peer_secret=peer_secret.decode(),
    )
    partial = folder / f".keys.{secrets.token_hex(6)}"
    handle = own_file(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(made))
            file.flush()
            os.fsync(file.fileno())
        # link() fails when somebody was faster, so two first users of a home agree on one pair.
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
    return _read(path)


def _read(path: Path) -> Keyring:
    facts = path.stat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{path} holds secret keys and must be yours alone: run chmod 600 on it")
    return msgspec.json.decode(path.read_bytes(), type=Keyring)
