"""The spawners of one node, as the daemon sees them.

The root, further ones so that several processes can start at a time, and the fork servers of function workers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from pilot_hitl.wire.modes import made_ours
from pilot_hitl_agent.node import nursery, packets, proctree, spawner
from pilot_hitl_agent.node.link import Closed, Exit, Greeting, Link, News, Unspawned
from pilot_hitl_agent.node.memory import KernelKills
from pilot_hitl_agent.node.running import Running
from pilot_hitl_agent.node.settings import NodeSettings, launcher_environment

Watch = Callable[[int, bool], None]
"""``(descriptor, also for writing)``: poll it; the same descriptor again changes that."""
Unwatch = Callable[[int], None]


class Spawners:
    """Links to the root spawner, to its fellows and to the nursery; starts the latter two when first needed."""

    def __init__(
        self, root: socket.socket, settings: NodeSettings, base: dict[str, str], watch: Watch, unwatch: Unwatch
    ) -> None:
        """Use ``root``, which this object owns from now on."""
        self._settings = settings
        # An agent that was started again must not use the numbers of what the spawner still runs for the one before.
        self._tokens = count(time.time_ns())
        self._watch = watch
        self._unwatch = unwatch
        self._base = base
        self._environments: dict[tuple[int, int], int] = {}
        self._variables: list[dict[str, str]] = [base]
        self._cleaned: dict[int, int] = {}
        self._numbers: dict[tuple[tuple[str, str], ...], int] = {(): 0}
        self.root = self._adopt(root)
        self.by_fd: dict[int, Link] = {self.root.fileno(): self.root}
        self._lanes: list[Link | None] = [self.root] + [None] * (settings.spawner_count - 1)
        self._servers: dict[int, Link] = {}
        self._retired: set[Link] = set()
        self.kernel = KernelKills()
        self.running = Running(Path(settings.pilot_folder) / "running", kept=not settings.shared)
        self._tokens_of: dict[str, dict[int, int]] = {}
        self._apart: dict[int, Link] = {}
        self._over: set[int] = set()
        self._helpers: dict[int, tuple[Link, int]] = {}

    def environment(self, more: dict[str, str]) -> int:
        """Return the number of an environment: the base with ``more`` over it; equal ones share a number."""
        key = tuple(sorted(more.items()))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._variables)
            self._variables.append({**self._base, **more})
        return number

    def without_launchers(self, number: int) -> int:
        """Return the number of an environment without what a launcher left in it: another launcher may read that."""
        known = self._cleaned.get(number)
        if known is None:
            known = self._cleaned[number] = len(self._variables)
            self._variables.append(launcher_environment(self._variables[number]))
        return known

    def variables(self, number: int) -> dict[str, str]:
        """Return an environment."""
        return self._variables[number]

    def lane(self, cores: int) -> Link:
        """Return the spawner that starts executables on these cores."""
        index = ((cores & -cores).bit_length() - 1) % len(self._lanes) if cores else 0
        link = self._lanes[index]
        if link is None or link.closed:
            command = [sys.executable, "-I", "-S", spawner.PROGRAM, spawner.SERVE, "3"]
            link = self._lanes[index] = self._start(command, "spawner")
        return link

    def link_environment(self, link: Link, number: int) -> int:
        """Return the number under which a link knows an environment."""
        key = (id(link), number)
        known = self._environments.get(key)
        if known is None:
            known = self._environments[key] = link.environment(self._variables[number])
        return known

    def look(self, script: str, environment: int, name: str) -> tuple[int, str]:
        """Run a shell script in an environment, without what launchers left in it; its output goes to a file.

        Returns the token and the path of that file.
        """
        number = self.link_environment(self.root, self.without_launchers(environment))
        out = f"{self._logs()}/{name}.txt"
        return self.root.spawn(["/bin/sh", "-c", script], number, {}, "/", (), (out, os.devnull), "launchers"), out

    def nursery(self, number: int = 0, *, apart: bool = False) -> Link:
        """Return the link to the fork server of an environment, which is the one used last from now on.

        ``apart``: to a new one, for one task alone.
        """
        link = None if apart else self._servers.pop(number, None)
        if link is None or link.closed:
            ours = [entry for entry in sys.path if entry]
            facts = self._settings
            command = nursery.command(ours, facts.flags)
            if apart:
                link = self.apart(command, number)
            else:
                link = self._start(command, f"nursery{f'.{number}' if number else ''}", number)
            text = nursery.Settings(
                host=facts.inventory.name,
                blobs=facts.blobs,
                work=facts.work,
                path=facts.path,
                pythonpath=facts.environment.get("PYTHONPATH", ""),
            )
            link.request((nursery.SETTINGS, nursery.pack_settings(text)))
        if not apart:
            self._servers[number] = link
        return link

    def apart(self, command: list[str] | None = None, environment: int = 0) -> Link:
        """Start a spawner, or what ``command`` runs, for one task alone; its parent is a spawner of its own as well.

        So nothing else ends when that task ends its parent, or its parent's parent.
        """
        serve = [sys.executable, "-I", "-S", spawner.PROGRAM, spawner.SERVE, "3"]
        outer = self._start(serve, "spawner")
        inner = self._start(command or serve, "spawner", environment, outer)
        self._apart[id(inner)] = outer
        return inner

    def leave(self, link: Link) -> None:
        """End a spawner, and the one above it, if it was started for one task alone."""
        outer = self._apart.get(id(link))
        if outer is not None:
            self._over.add(id(outer))
            outer.quit()

    def was_left(self, link: Link) -> bool:
        """Return whether a spawner ended because its one task did; asked once for each end."""
        if id(link) not in self._over:
            return False
        self._over.discard(id(link))
        return True

    def below(self, link: Link) -> list[Link]:
        """Return, once, the spawners that a spawner which ended had started: they ended with it."""
        found = [
            (token, fd, inner) for token, (inner, fd) in self._helpers.items() if self._apart.get(id(inner)) is link
        ]
        for token, fd, inner in found:
            del self._helpers[token], self._apart[id(inner)]
            self._over.add(id(inner))
            if self.by_fd.get(fd) is inner:
                self._drop(fd, inner)
        return [inner for _, _, inner in found]

    def servers(self) -> list[tuple[int, Link]]:
        """Return the environments that have a fork server, the one used longest ago first."""
        return list(self._servers.items())

    def retire(self, number: int) -> None:
        """End the fork server of an environment; its workers end with it."""
        link = self._servers[number]
        self._retired.add(link)
        errors = Path(self.errors_of(link))
        del self._servers[number]
        self._drop(link.fileno(), link)
        with contextlib.suppress(OSError):
            if not errors.stat().st_size:
                errors.unlink()

    def was_retired(self, link: Link) -> bool:
        """Return whether a spawner was meant to end; asked once for each end."""
        if link not in self._retired:
            return False
        self._retired.discard(link)
        return True

    def errors_of(self, link: Link) -> str:
        """Return the path of the file into which a fork server writes its last words; empty when there is none."""
        number = next((number for number, each in self._servers.items() if each is link), -1)
        if number < 0:
            return ""
        return f"{self._settings.logs}/spawners.nursery{f'.{number}' if number else ''}.err"

    def helper_ended(self, news: Exit | Unspawned) -> Link | None:
        """Return the link of a spawner that ended with everything below it; None when the news is of something else."""
        found = self._helpers.pop(news.token, None)
        if found is None:
            return None
        link, fd = found
        self.leave(link)
        self._apart.pop(id(link), None)
        if self.by_fd.get(fd) is link:
            self._drop(fd, link)
        return link

    def receive(self, fd: int) -> tuple[Link, list[News]] | None:
        """Return what a spawner reports; None when the descriptor is not a spawner's."""
        link = self.by_fd.get(fd)
        if link is None:
            return None
        news = link.receive()
        if news and type(news[-1]) is Closed:
            self._drop(fd, link)
        return link, news

    def flush(self) -> list[tuple[Link, list[News]]]:
        """Send what gathered; returns what fails because it cannot be sent."""
        failed = []
        for fd, link in self.by_fd.items():
            if link.pending:
                self._watch(fd, not link.flush())
                if news := link.unsent():
                    failed.append((link, news))
        return failed

    def processes(self) -> list[dict[str, Any]]:
        """Return what runs: ``kind`` (spawner), ``pid``."""
        return [{"kind": "spawner", "pid": link.pid, "task": 0} for link in self.by_fd.values() if link.pid]

    def pids(self) -> list[tuple[Link, int]]:
        """Return the links and the process numbers of their spawners, as far as these have said who they are."""
        return [(link, link.pid) for link in self.by_fd.values() if link.pid]

    def roots(self, link: Link, token: int) -> list[int]:
        """Return the processes of a token right below its spawner: what was started, and what it let go."""
        below = set(proctree.children_of(link.pid)) if link.pid else set()
        known = self._tokens_of.setdefault(link.prefix, {})
        for pid in known.keys() - below:
            del known[pid]
        for pid in below - known.keys():
            prefix, _, number = (proctree.variable_of(pid, spawner.TOKEN_VARIABLE) or "").partition(":")
            # One that is about to become its program still shows what its spawner was started with.
            if prefix == link.prefix and number.isdigit():
                known[pid] = int(number)
        return [pid for pid, theirs in known.items() if theirs == token]

    def all_links(self) -> list[Link]:
        """Return all links that processes may hang on, the root's last."""
        return [*(link for link, _ in self._helpers.values()), self.root]

    def close(self) -> None:
        """Close all links; spawners other than the root end at that."""
        for fd, link in list(self.by_fd.items()):
            self._drop(fd, link)

    def _drop(self, fd: int, link: Link) -> None:
        del self.by_fd[fd]
        # Another link may get the same id, and its spawner knows none of these.
        self._environments = {key: known for key, known in self._environments.items() if key[0] != id(link)}
        self._tokens_of.pop(link.prefix, None)
        self._unwatch(fd)
        link.close()

    def _adopt(self, side: socket.socket) -> Link:
        link = Link(side, lambda: next(self._tokens))
        self._watch(link.fileno(), False)
        return link

    def _logs(self) -> Path:
        """Return the folder of logs, which is there now if it can be."""
        with contextlib.suppress(OSError):
            self._settings.logs.mkdir(parents=True, exist_ok=True)
        return self._settings.logs

    def _start(self, command: list[str], kind: str, environment: int = 0, parent: Link | None = None) -> Link:
        ours, theirs = packets.socketpair()
        parent = parent or self.root
        number = self.link_environment(parent, environment)
        # It can do without; the tasks that write there will tell.
        errors = f"{logs}/spawners.{kind}.err" if (logs := self._logs()).is_dir() else os.devnull
        with contextlib.suppress(OSError):
            made_ours(errors)
        side = socket.socket(fileno=ours.detach())
        token = parent.next_token()
        # It stays at the root itself; functions find themselves in the client's folder.
        more = {"PWD": self._settings.work}
        record: tuple[Any, ...] = (spawner.SPAWN, token, kind, command, number, more, "/", (), os.devnull, errors, 0)
        parent.request(record, (theirs.detach(),))
        link = self._adopt(side)
        self.by_fd[link.fileno()] = link
        self._helpers[token] = (link, link.fileno())
        return link


__all__ = ["Closed", "Exit", "Greeting", "Spawners", "Unspawned"]
