"""How clients and replicas talk: frames, payloads, sockets, and what a replica is told when it starts.

A message is one ZeroMQ message: a head (a version byte and one MessagePack array) and the large buffers of its payloads
as frames of their own, in the order in which the head counts them. See ``docs/specs/service-protocol.md``.
"""

from __future__ import annotations

import enum
import hashlib
import importlib
import io
import ipaddress
import pickle
import secrets
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
import zmq.utils.z85

from pilot_hitl.wire.codec import MAX_FRAME, FrameError
from pilot_hitl.wire.keys import Keyring
from pilot_hitl.wire.messages import Number
from pilot_hitl.wire.pickling import ScriptPickler
from pilot_hitl.wire.replicas import KeptBroadcast
from pilot_hitl.wire.sockets import ZAP_ENDPOINT, dealer, keep_alive, router

VERSION = b"\x01"
IN_BAND = 16 * 1024
"""Buffers below this many bytes travel inside the pickle: a frame of its own costs more than the copy."""


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request.

    Attributes:
        number: the client's, and no other client's; it comes back with the reply.
        body: the pickled item.
        buffers: how many of the message's frames are buffers of ``body``.
        timeout: seconds that it may wait, from its arrival; 0 for no bound.
        method: of the handler; empty for the handler itself. Methods are called alone, never in a batch.
        speculative: it waits behind all needed ones.
        deferred: it waits until ``condition`` is decided.
        condition: that it assumes, 0 for none.
        suspect: it was in a handler when a replica ended, so nothing else may be in one with it.
    """

    number: Number
    body: bytes
    buffers: Number = 0
    timeout: float = 0.0
    method: str = ""
    speculative: bool = False
    deferred: bool = False
    condition: Number = 0
    suspect: bool = False


class Requests(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Requests that gathered at a client.

    Attributes:
        requests: in order.
        sent: when, on the client's monotonic clock; 0 where the replica's clock is another one (on another host).
        return_time: seconds that the latest reply took to the client; 0 when not known.
        way_time: where ``sent`` is 0: seconds that the latest request was under way, both ways together; 0 when not
            known.
    """

    requests: list[Request]
    sent: float = 0.0
    return_time: float = 0.0
    way_time: float = 0.0


class Cancelled(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Nobody waits for these any more."""

    numbers: list[Number]


class Status(enum.IntEnum):
    """How a request ended."""

    OK = 0
    RAISED = 1
    """``body`` is the pickled exception."""
    FAILED = 2
    """``body`` is MessagePack of ``[name of an error class, message, detail]``."""
    RETURNED = 3
    """It was not begun: the replica is ending. It may be sent elsewhere."""


class Answered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The reply to one request; ``buffers`` as in :class:`Request`."""

    number: Number
    body: bytes
    buffers: Number = 0
    status: Status = Status.OK


class Replies(msgspec.Struct, frozen=True, array_like=True):
    """What one call of the handler gave one client, and when that was, on the replica's monotonic clock."""

    replies: list[Answered]
    sent: float = 0.0
    service: float = 0.0
    inference: float = 0.0


class ReplicaConfig(msgspec.Struct, kw_only=True, frozen=True, array_like=True):
    """What a replica is told when it starts, as a MessagePack file.

    Attributes:
        home, session, service: which.
        number: of the replica, from 1.
        task: its task.
        hub: endpoint of the hub.
        handler: ``module:Class``, or empty when ``code`` holds the packed one.
        kwargs: pickled, for the class.
        path: folders that the script imports from.
        asked: when the hub asked for it, in seconds since 1970.
        kept: the broadcasts that it must have taken in before it is ready.
        modules: packed manifest of the script's modules.
    """

    home: str
    session: str
    service: str
    number: int
    task: int
    hub: str
    handler: str
    code: bytes
    kwargs: bytes
    path: list[str]
    asked: float
    max_batch: int = 1
    max_wait: float = 0.0
    max_queue: int = 16384
    request_timeout: float = 0.0
    idempotent: bool = True
    max_concurrency: int = 1
    kept: tuple[KeptBroadcast, ...] = ()
    modules: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "requests": msgspec.msgpack.Decoder(Requests | Cancelled),
    "replies": msgspec.msgpack.Decoder(Replies),
}
_said = msgspec.msgpack.Decoder(tuple[str, str, str])


def encode_head(head: Requests | Cancelled | Replies) -> bytes:
    """Return the first frame of a message."""
    return VERSION + _encode(head)


def decode_requests(frame: bytes) -> Requests | Cancelled:
    """Return the head of what a client says.

    Raises:
        FrameError: it is not of this protocol.
    """
    head: Requests | Cancelled = _decode("requests", frame)
    return head


def decode_replies(frame: bytes) -> Replies:
    """Return the head of what a replica says.

    Raises:
        FrameError: it is not of this protocol.
    """
    head: Replies = _decode("replies", frame)
    return head


def _decode(kind: str, frame: bytes) -> Any:
    if frame[:1] != VERSION:
        raise FrameError("not a frame of this protocol version")
    try:
        return _decoders[kind].decode(memoryview(frame)[1:])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(str(error)) from error


def encode_said(name: str, message: str, detail: str = "") -> bytes:
    """Return the body of a FAILED reply."""
    return _encode((name, message, detail))


def decode_said(body: bytes) -> tuple[str, str, str]:
    """Return ``(name of the error class, message, detail)`` of a FAILED reply."""
    try:
        return _said.decode(body)
    except msgspec.MsgspecError as error:
        return "ServiceError", f"the replica's words cannot be read: {error}", ""


# --- payloads ---------------------------------------------------------------------------------------------------------

Buffer = memoryview | bytes
_ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
_SMALL = 16


def pack(value: object) -> tuple[bytes, Sequence[Buffer]]:
    """Return ``(body, buffers)``: a pickle, and what of it travels without being copied.

    Arrays of numpy and tensors of torch (on the CPU) above 16 kB travel as buffers. Classes and functions of the script
    itself travel by value.

    Raises:
        Whatever pickling raises.
    """
    if type(value) in _ATOMS:
        return pickle.dumps(value, 5), ()
    if (body := _pack_array(value)) is not None:
        return body, ()
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < IN_BAND:
            return True
        buffers.append(buffer.raw())
        return False

    if _is_plain(value):
        return pickle.dumps(value, 5, buffer_callback=keep), buffers
    file = io.BytesIO()
    _Pickler(file, buffer_callback=keep).dump(value)
    return file.getvalue(), buffers


def unpack(body: bytes, buffers: Sequence[Any]) -> Any:
    """Return the value; it may use the memory of ``buffers``.

    Raises:
        Whatever unpickling raises.
    """
    if buffers:
        return pickle.loads(body, buffers=buffers)
    return _unpack_array(body) if body[:1] == _ARRAY else pickle.loads(body)


_ARRAY = b"\x01"
"""First byte of a small array, as no pickle begins: then the length of its head, ``dtype|shape`` as text, its bytes."""
_SIMPLE = frozenset("biufc")
_heads: dict[tuple[Any, tuple[int, ...]], bytes] = {}
_shapes: dict[bytes, tuple[Any, tuple[int, ...]]] = {}
_REMEMBERED = 256


def _pack_array(value: Any) -> bytes | None:
    """Return a small array of plain numbers in a form that costs a tenth of a pickle; None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.nbytes >= IN_BAND:
        return None
    key = (value.dtype, value.shape)
    head = _heads.get(key)
    if head is None:
        if value.dtype.kind not in _SIMPLE or len(value.shape) > _SMALL:
            return None
        text = f"{value.dtype.str}|{','.join(map(str, value.shape))}".encode("ascii")
        head = _ARRAY + bytes([len(text)]) + text
        if len(_heads) < _REMEMBERED:
            _heads[key] = head
    return head + bytes(value.tobytes())


def _unpack_array(body: bytes) -> Any:
    import numpy as np

    start = 2 + body[1]
    head = body[2:start]
    known = _shapes.get(head)
    if known is None:
        kind, _, lengths = head.decode("ascii").rpartition("|")
        known = np.dtype(kind), tuple(map(int, lengths.split(","))) if lengths else ()
        if len(_shapes) < _REMEMBERED:
            _shapes[head] = known
    # Memory of its own: whoever gets an array may write into it.
    return np.ndarray(known[1], known[0], bytearray(body[start:]))


def _is_plain(value: object) -> bool:
    """Return whether plain pickle is right for it: no classes of the script, no tensors."""
    if type(value) in _ATOMS:
        return True
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return not value.dtype.hasobject
    if isinstance(value, tuple | list) and type(value) in {tuple, list}:
        return len(value) <= _SMALL and all(map(_is_plain, value))
    return False


class _Pickler(ScriptPickler):
    """Pickles by value what plain pickle cannot, and tensors as arrays, so that their memory is not copied."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how a tensor on the CPU is made again; everything else as cloudpickle does it."""
        torch = sys.modules.get("torch")
        if torch is not None and type(obj) is torch.Tensor and _is_dense(torch, obj):
            return _tensor, (obj.detach().numpy(), obj.requires_grad)
        return super().reducer_override(obj)


def _is_dense(torch: Any, tensor: Any) -> bool:
    return bool(
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.dtype not in {torch.bfloat16, torch.complex32}
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _tensor(array: Any, wants_gradient: bool) -> Any:
    torch: Any = importlib.import_module("torch")
    tensor = torch.from_numpy(array)
    return tensor.requires_grad_() if wants_gradient else tensor


# --- sockets ----------------------------------------------------------------------------------------------------------

DOMAIN = "pilot-hitl service"


def _password(keys: Keyring, endpoint: str) -> str:
    return hashlib.blake2b(endpoint.encode(), key=keys.peer_secret.encode()[:64], digest_size=24).hexdigest()


def serving_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """Return an unbound ROUTER that takes only peers with the endpoint's password (see :class:`Porter`).

    Not CURVE as elsewhere: the socket lies in a folder that only its user can enter, and enciphering makes an exchange
    of 1 MB five times as long.
    """
    socket = context.socket(zmq.ROUTER)
    _common(socket)
    socket.setsockopt(zmq.PLAIN_SERVER, 1)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, DOMAIN)
    return socket


def calling_socket(
    context: zmq.Context[zmq.Socket[bytes]], keys: Keyring, endpoint: str, *, waiting: int = 0
) -> zmq.Socket[bytes]:
    """Return a DEALER that is connected to a replica of this host; ``waiting`` messages may wait in it, 0 for any."""
    socket = context.socket(zmq.DEALER)
    _common(socket)
    socket.setsockopt(zmq.SNDHWM, waiting)
    socket.setsockopt_string(zmq.PLAIN_USERNAME, "owner")
    socket.setsockopt_string(zmq.PLAIN_PASSWORD, _password(keys, endpoint))
    socket.connect(endpoint)
    return socket


def _common(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME + 1)


def serving_tcp_socket(context: zmq.Context[zmq.Socket[bytes]], keys: Keyring) -> zmq.Socket[bytes]:
    """Return an unbound ROUTER for callers on other hosts: it takes only peers with the home's key, enciphered."""
    socket = router(context, keys)
    # A caller that is gone wants no answer.
    socket.setsockopt(zmq.ROUTER_MANDATORY, 0)
    keep_alive(socket)
    return socket


def bind_tcp(socket: zmq.Socket[bytes], address: str) -> str:
    """Bind a port that is free at one address of this host; return the endpoint.

    Raises:
        ValueError: it is no address of one interface.
        zmq.ZMQError: it is not an address of this host.
    """
    parsed = ipaddress.ip_address(address)
    if parsed.is_unspecified or parsed.is_multicast:
        raise ValueError(f"{address} is not the address of one interface")
    if parsed.version == 6:
        socket.setsockopt(zmq.IPV6, 1)
    socket.bind(f"tcp://[{address}]:*" if parsed.version == 6 else f"tcp://{address}:*")
    return socket.get_string(zmq.LAST_ENDPOINT)


def calling_tcp_socket(
    context: zmq.Context[zmq.Socket[bytes]], keys: Keyring, endpoint: str, *, waiting: int = 0
) -> zmq.Socket[bytes]:
    """Return a DEALER that is to be connected to a replica on another host; ``waiting`` as above."""
    socket = dealer(context, keys, b"c" + secrets.token_bytes(8))
    socket.setsockopt(zmq.SNDHWM, waiting)
    keep_alive(socket)
    if "[" in endpoint:
        socket.setsockopt(zmq.IPV6, 1)
    return socket


class Porter:
    """Answers ZeroMQ's authentication requests at a replica: only who knows the home's keys may come in.

    Callers of this host say a password (PLAIN), those of others prove that they have the home's key (CURVE).

    Poll ``socket`` for reading and call :meth:`answer` when it is ready.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: Keyring, endpoint: str) -> None:
        """Bind the in-process endpoint that libzmq asks; must come before the first peer."""
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ZAP_ENDPOINT)
        self._password = _password(keys, endpoint).encode()
        self._allowed = zmq.utils.z85.decode(keys.peer_public)
        self.refused = 0

    def answer(self) -> None:
        """Answer the requests that wait."""
        while self.socket.poll(0):
            version, request, _domain, _address, _identity, mechanism, *credentials = self.socket.recv_multipart()
            if mechanism == b"CURVE":
                good = credentials[:1] == [self._allowed]
            else:
                good = mechanism == b"PLAIN" and len(credentials) == 2 and credentials[1] == self._password
            self.refused += not good
            status = (b"200", b"OK") if good else (b"400", b"unknown password or key")
            self.socket.send_multipart([version, request, *status, b"owner" if good else b"", b""])
