"""One rank of a warm MPI group: a function worker that has a communicator.

Started by an MPI launcher, it connects to the daemon of its own node, brings up MPI, and waits for calls on that socket
and not in MPI, so that an idle rank uses no CPU. When the daemon is gone, so is the rank.
"""

from __future__ import annotations

import contextlib
import inspect
import mmap
import os
import socket
import struct
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pilot_hitl.wire import current
from pilot_hitl.wire.current import ATTEMPT_VARIABLE, RANK_VARIABLE, TASK_VARIABLE
from pilot_hitl.wire.modes import own_folder
from pilot_hitl.wire.places import MARK_VARIABLE
from pilot_hitl_agent.node import frames, packets
from pilot_hitl_agent.node.call_output import flush_output
from pilot_hitl_agent.node.frames import Call, Code, Done
from pilot_hitl_agent.node.process_state import ProcessState
from pilot_hitl_agent.node.rank_output import RankOutput
from pilot_hitl_agent.node.rankframes import GROUP_VARIABLE, Hello, ToRank, Unable, Up, Welcome, door, shared_memory
from pilot_hitl_agent.node.worker import Settings, Worker, settle_in

if TYPE_CHECKING:
    from mpi4py import MPI

COMM = "comm"
"""A parameter of this name is given the communicator."""
EXTRA = "pip install 'pilot-hitl[mpi]'"
NO_PARAMETER, BY_NAME = -1, -2
_SEATS = 1000
_RANKS = (RANK_VARIABLE, "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
_CREDENTIALS = struct.Struct("3i")
_decoder = msgspec.msgpack.Decoder(list[ToRank])
_encoder = msgspec.msgpack.Encoder()
_welcome = msgspec.msgpack.Decoder(Welcome)


class UnableError(Exception):
    """This process cannot become a rank."""


class Rank(Worker):
    """Runs its part of each call."""

    def __init__(
        self, link: socket.socket, page: mmap.mmap, settings: Settings, world: MPI.Intracomm, here: int
    ) -> None:
        """Make the communicator of the calls; collective over ``world``. ``here``: ranks on this node."""
        state = ProcessState()
        state.keep_imports()
        super().__init__(link, page, settings, state=state)
        self._world = world
        self._alone = here == world.size
        self._seats: dict[int, tuple[Callable[..., Any], int]] = {}
        self._anew()

    def write_to(self, out: str, err: str) -> None:
        """Let calls write to these files; until now this process wrote to the launcher.

        Raises:
            OSError: they cannot be written.
        """
        self._output = RankOutput(self._page, out, err)

    def work(self) -> None:
        """Work until the other side is gone."""
        buffer = mmap.mmap(-1, frames.ROOM)
        frames.PID.pack_into(self._page, frames.PID_AT, os.getpid())
        frames.send(self._link, _encoder.encode([Up()]))
        while packet := frames.receive(self._link, buffer):
            for item in _decoder.decode(packet):
                if isinstance(item, Code):
                    self.learn(item)
                elif isinstance(item, Call):
                    self._meet(item)
                    if self._output is not None:
                        self._output.begin()
                    done = self.run(item)
                    frames.send(self._link, _encoder.encode([done]))
                else:
                    self._anew()

    def invoke(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call code of the user with the communicator where it asks for it."""
        known = self._seats.get(id(target))
        if known is None:
            if len(self._seats) > _SEATS:
                self._seats.clear()
            known = self._seats[id(target)] = (target, seat_of(target))
        seat = known[1]
        if seat == NO_PARAMETER or kwargs.get(COMM) is not None:
            return target(*args, **kwargs)
        kwargs.pop(COMM, None)
        if 0 <= seat <= len(args):
            return target(*args[:seat], self._comm, *args[seat:], **kwargs)
        return target(*args, **kwargs, comm=self._comm)

    def pack(self, value: object) -> bytes:
        """Return the result of rank 0; what the others return is nobody's."""
        return super().pack(value) if self._world.rank == 0 else b""

    def _anew(self) -> None:
        self._comm = self._world.Dup()
        current.comm = self._comm

    def _meet(self, call: Call) -> None:
        """On several nodes nobody begins before all have been given the same call, and have noted that in their pages.

        Some may have died meanwhile. So where the page of a dead rank does not say so, it is known that nobody anywhere
        has begun: no node serves the call again while another one has come to an end with it.
        """
        if self._alone:
            return
        mine = array("q", (call.task, -call.task, call.run, -call.run))
        all_of_them = array("q", mine)
        self._world.Allreduce(mine, all_of_them, op=_max())
        if mine != all_of_them:
            raise UnableError(f"rank {self._world.rank} was given call {call.task}, others another one")
        frames.RUNNING.pack_into(self._page, frames.RUNNING_AT, call.task, time.time())
        self._world.Barrier()


def _max() -> MPI.Op:
    from mpi4py import MPI

    return MPI.MAX


def seat_of(target: Callable[..., Any]) -> int:
    """Return where a function wants the communicator: a position, :data:`BY_NAME` or :data:`NO_PARAMETER`."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return NO_PARAMETER
    found = parameters.get(COMM)
    if found is None or found.kind in (found.VAR_POSITIONAL, found.VAR_KEYWORD):
        return NO_PARAMETER
    if found.kind is found.KEYWORD_ONLY:
        return BY_NAME
    return list(parameters).index(COMM)


def connect(address: bytes) -> socket.socket:
    """Return a connection to the daemon of this node.

    Raises:
        OSError: nobody of this user listens there.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets.enlarge(link)
    link.connect(address)
    _, uid, _ = _CREDENTIALS.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.getuid():
        link.close()
        raise PermissionError(f"the process that listens for ranks on this node is of user {uid}")
    return link


def rank_from(variables: Mapping[str, str]) -> int:
    """Return the rank that the launcher gave this process.

    Raises:
        UnableError: it gave none.
    """
    for name in _RANKS:
        if (text := variables.get(name, "")).isdigit():
            return int(text)
    raise UnableError(f"the launcher says no rank: none of {', '.join(_RANKS)} is set")


def world_of(rank: int, ranks: int) -> MPI.Intracomm:
    """Bring up MPI; collective over the group.

    Raises:
        UnableError: it cannot be brought up, or its ranks have not found each other.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != "mpi4py":
            raise UnableError(f"mpi4py cannot be loaded by {sys.executable}: {error}") from error
        raise UnableError(
            f"functions with ranks > 1 need mpi4py, which {sys.executable} does not have or cannot load ({error}): "
            f"{EXTRA}"
        ) from error
    except RuntimeError as error:
        raise UnableError(f"mpi4py finds no MPI library: {error}; {EXTRA} and an MPI library of the site") from error
    world = MPI.COMM_WORLD
    if world.size != ranks:
        library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip()
        raise UnableError(
            f"{ranks} ranks came up as worlds of {world.size}: the launcher and the library of mpi4py ({library}) do "
            "not belong together"
        )
    if world.rank != rank:
        raise UnableError(f"the launcher calls rank {rank} what MPI calls rank {world.rank}")
    return world


def serve(variables: Mapping[str, str], started: list[str]) -> None:
    """Be a rank until the daemon is gone.

    Raises:
        OSError: there is no daemon.
        UnableError: this is no rank of a group.
    """
    token, key, text = variables[GROUP_VARIABLE].split()
    rank, ranks = rank_from(variables), int(text)
    here = int(variables.get("LOCAL_WORLD_SIZE", text))
    link = connect(door(variables[MARK_VARIABLE]))
    page_fd = os.memfd_create("pilot-hitl-rank", os.MFD_CLOEXEC)
    os.ftruncate(page_fd, frames.PAGE_SIZE)
    page = mmap.mmap(page_fd, frames.PAGE_SIZE)
    socket.send_fds(link, [_encoder.encode(Hello(token, key, rank, ranks, here))], [page_fd])
    os.close(page_fd)
    packet = frames.receive(link, bytearray(frames.ROOM))
    if not packet:
        # The group was given up while this process was on its way.
        return
    welcome = _welcome.decode(packet)
    _keep_memory(shared_memory(variables[MARK_VARIABLE], token))
    settings = Settings(welcome.host, welcome.blobs, welcome.work, welcome.path, welcome.pythonpath)
    settle_in(settings, started)
    for name in (ATTEMPT_VARIABLE, TASK_VARIABLE):
        # They name the group, and calls ask for the task that they belong to.
        os.environ.pop(name, None)
    try:
        made = Rank(link, page, settings, world_of(rank, ranks), here)
    except UnableError as error:
        frames.send(link, _encoder.encode([Unable(str(error), str(error.__cause__ or ""))]))
        # Nobody may be waited for in MPI's own end: the others may not come.
        frames.receive(link, bytearray(64))
        return
    made.write_to(welcome.out, welcome.err)
    made.work()


def _keep_memory(folder: Path) -> None:
    """Let Open MPI put what ranks of a node share where the daemon removes it."""
    with contextlib.suppress(OSError):
        own_folder(folder)
        for name in ("vader", "sm"):  # up to version 4, and from 5 on
            os.environ.setdefault(f"OMPI_MCA_btl_{name}_backing_directory", str(folder))


def main(started: list[str]) -> None:
    """Serve, and end without a word to MPI: it would wait for the others. The import path began as ``started``."""
    code = 1
    try:
        serve(os.environ, started)
        code = 0
    except (OSError, UnableError) as error:
        sys.stderr.write(f"MPI rank of pilot-hitl: {error}\n")
    finally:
        flush_output()
        os._exit(code)


def command(path: list[str], flags: list[str]) -> list[str]:
    """Return the command that runs a rank.

    ``path`` is where our packages and libraries lie, ``flags`` are those of the script's interpreter.
    """
    code = (
        f"import sys; started = sys.path[:]; sys.path[:] = {path!r}; "
        "from pilot_hitl_agent.node.mpiworker import main; main(started)"
    )
    return [sys.executable, *flags, "-c", code]


__all__ = ["Done", "Rank", "command", "main", "seat_of", "serve"]
