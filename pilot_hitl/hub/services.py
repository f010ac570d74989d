"""The hub's services: replicas started as tasks of the highest tier, watched, started again, found by their clients."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pilot_hitl.errors import PilotHitlError, ServiceError, ServiceStopped, UnknownService
from pilot_hitl.hub import servicecore as sc
from pilot_hitl.hub.live import LiveSession
from pilot_hitl.hub.peers import Client, Peer
from pilot_hitl.model.failures import Cause
from pilot_hitl.model.ids import make_id, task_name
from pilot_hitl.model.services import ServiceState
from pilot_hitl.model.states import State, Truth
from pilot_hitl.model.templates import ExecutableBody, ExecutableResult, ExecutableTemplate
from pilot_hitl.study import events as ev
from pilot_hitl.study import instructions as do
from pilot_hitl.wire import messages as m
from pilot_hitl.wire import servicing as sv
from pilot_hitl.wire.clock import steady
from pilot_hitl.wire.codec import pack_bodies
from pilot_hitl.wire.places import SessionPlaces
from pilot_hitl.wire.replicas import KeptBroadcast, begun_path, read_begun
from pilot_hitl.wire.services import ReplicaConfig

if TYPE_CHECKING:
    from pilot_hitl.hub.server import Hub

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode
_result = msgspec.msgpack.Decoder(ExecutableResult)
_spec = msgspec.msgpack.Decoder(sv.StartService)
_kept = msgspec.msgpack.Decoder(tuple[int, tuple[KeptBroadcast, ...]])
HOPELESS = frozenset({Cause.UNFIT, Cause.NO_PROGRAM, Cause.PAYLOAD})
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL for a replica that must end."""


class ReplicaPeer(Peer):
    """A replica's connection."""

    def __init__(self, identity: bytes, service: Service, task: int) -> None:
        """Welcome it."""
        super().__init__(identity)
        self.service = service
        self.task = task


class Service:
    """What the hub knows of one service beside the core."""

    def __init__(self, session: LiveSession, spec: sv.StartService, incarnation: int) -> None:
        """Know it; ``spec`` has token 0."""
        self.session = session
        self.spec = spec
        self.name = spec.settings.name
        self.incarnation = incarnation
        self.core = sc.ServiceCore(spec.settings)
        self.clients: list[Client] = []
        self.peers: dict[int, ReplicaPeer] = {}
        self.watched: dict[int, int] = {}
        self.pids: dict[int, tuple[int, str]] = {}
        self.places: dict[int, tuple[str, str]] = {}
        """Host and TCP endpoint by task."""
        self.links: dict[int, int] = {}
        """Number of the connection to the agent, by pilot."""
        self.cuts: dict[int, int] = {}
        """By task: the number that stands instead, since the agent's connection to the replica broke once."""
        self.metrics: dict[int, dict[str, Any]] = {}
        self.kept: tuple[KeptBroadcast, ...] = ()
        """By revision."""
        self.recorded = (-1, "")

    def recall_kept(self) -> None:
        """Know again what an earlier hub kept."""
        known = self.session.store.meta(_kept_key(self.name))
        if known is not None:
            generation, kept = _kept.decode(known)
            self.kept = kept if generation == self.spec.generation else ()

    def update(self, token: int = 0) -> sv.ServiceUpdate:
        """Return what clients are told."""
        core, settings = self.core, self.spec.settings
        replicas = tuple(self._seen(replica) for replica in core.replicas.values())
        return sv.ServiceUpdate(
            token,
            self.name,
            core.state,
            core.message,
            core.detail,
            replicas,
            settings.max_batch,
            settings.max_queue,
            settings.idempotent,
            settings.speculation,
            self.spec.generation,
        )

    def _seen(self, replica: sc.Replica) -> sv.ReplicaView:
        host, tcp = self.places.get(replica.task, ("", ""))
        pilot = self.session.core.pilot_of(replica.task) if replica.task else 0
        return sv.ReplicaView(
            replica.number,
            replica.task,
            replica.state,
            replica.endpoint,
            replica.message,
            host,
            pilot,
            tcp,
            max(self.links[pilot], self.cuts.get(replica.task, 0)) if pilot in self.links else 0,
            replica.starts,
            replica.failures,
            replica.loss,
        )


class ServiceKeeper:
    """Keeps the services of all sessions as they are wanted."""

    def __init__(self, hub: Hub) -> None:
        """Start without services."""
        self._hub = hub
        self._services: dict[str, dict[str, Service]] = {}
        self._retired: dict[str, list[Service]] = {}
        """Those that were described anew, while they finish what waits."""
        self._numbers: dict[str, tuple[int, int]] = {}
        self._links: dict[str, dict[int, tuple[bytes, int]]] = {}
        self._linked = 0

    def of(self, session: LiveSession) -> dict[str, Service]:
        """Return the services of a session, by name."""
        return self._services.setdefault(session.name, {})

    def _all(self, session: LiveSession) -> list[Service]:
        """Return the services of a session, also those that were described anew and are not over yet."""
        retired = [service for service in self._retired.get(session.name, []) if not service.core.state.final]
        if retired or session.name in self._retired:
            self._retired[session.name] = retired
        return [*self.of(session).values(), *retired]

    def _with(self, session: LiveSession, task: int) -> Service | None:
        """Return the service that a replica's task is of."""
        return next((service for service in self._all(session) if service.core.find(task) is not None), None)

    # --- what clients want --------------------------------------------------------------------------------------------

    def start(self, client: Client, ask: sv.StartService) -> None:
        """Start a service, or let the client have the one that runs."""
        session = _session(client)
        try:
            ask.settings.verify()
        except ValueError as error:
            raise ServiceError(str(error)) from error
        services = self.of(session)
        known = services.get(ask.settings.name)
        before = known.spec.generation if known is not None else 0
        spec = msgspec.structs.replace(ask, token=0, generation=before)
        if known is not None and not known.core.state.final:
            if known.spec.meaning() == spec.meaning() and known.core.state is not ServiceState.DRAINING:
                self._wake(known)
                self._listen(known, client, ask.token)
                return
            if any(c is not client and c.role == "owner" and c in session.clients for c in known.clients):
                raise ServiceError(
                    f"service {known.name!r} runs with another description and others use it: stop it first "
                    f"('pilot-hitl service stop {known.name}'), or give this one another name"
                )
            self._replace(known)
        # Also above those that an earlier hub gave.
        spec = msgspec.structs.replace(spec, generation=max(before + 1, int(time.time() * 1000)))
        service = services[ask.settings.name] = Service(session, spec, client.incarnation)
        service.links = self._numbers_of_links(session)
        if known is not None:
            service.clients = [each for each in known.clients if each.role != "owner" and each in session.clients]
        self._listen(service, client, ask.token)
        self._obey(service, service.core.start())
        self._tell(service)

    def _replace(self, service: Service) -> None:
        """Let a service finish what waits at its replicas, while the one that is described anew starts."""
        self._retired.setdefault(service.session.name, []).append(service)
        reason = "it was described anew: send requests to the service that start_service() returned then"
        self._obey(service, service.core.stop(reason, steady(), drain=True))
        self._tell(service)

    def keep(self, client: Client, ask: sv.KeepBroadcast) -> None:
        """Keep a broadcast for the replicas that start from now on; those that are ready get it by request."""
        service = self._of_generation(client, ask.name, ask.generation)
        kept = [each for each in service.kept if each.key != ask.broadcast.key]
        revision = service.kept[-1].revision + 1 if service.kept else 1
        service.kept = (*kept, msgspec.structs.replace(ask.broadcast, revision=revision))
        service.session.store.put("meta", _kept_key(service.name), _encode((service.spec.generation, service.kept)))
        for replica in service.core.replicas.values():
            if (peer := service.peers.get(replica.task)) is not None and replica.endpoint:
                peer.tell(sv.ReplicaReplay(service.kept, known=True))
        client.tell(m.Reply(ask.token, json.dumps({"service": ask.name, "kept": revision})))

    def _of_generation(self, client: Client, name: str, generation: int) -> Service:
        """Return a service; raises UnknownService when there is none, ServiceStopped when it was described anew."""
        service = self.named(_session(client), name)
        if generation not in (0, service.spec.generation):
            raise ServiceStopped(f"service {name!r} was described anew: use what start_service() returned then")
        return service

    def stop(self, client: Client, ask: sv.StopService) -> None:
        """End a service."""
        service = self.named(_session(client), ask.name)
        if client.role != "tool":
            self._listen(service, client, 0)
        self._obey(service, service.core.stop(ask.reason or "it was stopped", steady(), drain=ask.drain))
        self._tell(service)
        client.tell(m.Reply(ask.token, json.dumps({"service": ask.name, "state": service.core.state.name})))

    def find(self, client: Client, ask: sv.FindService) -> None:
        """Tell a client of a service, now and whenever it changes."""
        self._listen(self._of_generation(client, ask.name, ask.generation), client, ask.token)

    def named(self, session: LiveSession, name: str) -> Service:
        """Return a service.

        Raises:
            UnknownService: there is none of this name.
        """
        service = self.of(session).get(name)
        if service is None:
            known = ", ".join(sorted(self.of(session))) or "none"
            raise UnknownService(f"session {session.name!r} has no service {name!r} (there are: {known})")
        return service

    @staticmethod
    def _listen(service: Service, client: Client, token: int) -> None:
        if client not in service.clients:
            service.clients.append(client)
        client.tell(service.update(token))

    def _wake(self, service: Service) -> None:
        """Want the replicas of a service that an earlier hub kept: those that exist, and the missing ones."""
        for incarnation in {replica.task >> 32 for replica in service.core.replicas.values() if replica.task}:
            service.session.feed(ev.Revive(incarnation))
        self._obey(service, service.core.complete())

    # --- what replicas say --------------------------------------------------------------------------------------------

    def hello(self, identity: bytes, hello: sv.ReplicaHello) -> Peer | None:
        """Welcome a replica, or send it home when nobody wants it any more."""
        session = self._open(hello.session)
        service = self._with(session, hello.task) if session is not None else None
        if service is None:
            stranger = Peer(identity)
            self._hub.send(stranger, [sv.ReplicaStop(drain=False)])
            if session is not None:
                self._hub.finish_if_done(session)
            return None
        before = service.peers.get(hello.task)
        if before is not None:
            self._hub.peers.pop(before.identity, None)
        peer = ReplicaPeer(identity, service, hello.task)
        service.peers[hello.task] = peer
        self._hub.peers[identity] = peer
        self._watch(service, hello)
        if service.places.get(hello.task) != (hello.host, hello.tcp):
            service.places[hello.task] = (hello.host, hello.tcp)
            service.core.changed = True  # whoever waits wants to know where it is being set up
        peer.tell(sv.ReplicaWelcome(os.getpid(), self._hub.started))
        if hello.endpoint:
            self._tell_decisions(service.session, [condition.number for condition in service.session.core.conditions])
        # Who does not know what was broadcast yet serves nobody.
        missing = bool(hello.endpoint and service.kept and hello.kept < service.kept[-1].revision)
        if missing:
            peer.tell(sv.ReplicaReplay(service.kept))
        self._obey(service, service.core.hello(hello.task, "" if missing else hello.endpoint, steady()))
        self._tell(service)
        return peer

    def _open(self, name: str) -> LiveSession | None:
        """Return the session of a replica, which may be the first to speak to a hub that was started again."""
        session = self._hub.sessions.get(name)
        if session is None and SessionPlaces(self._hub.home, name).database.exists():
            try:
                session = self._hub.open_session(name)
            except PilotHitlError as error:
                _log.warning("replica of session %s is sent home: %s", name, error)
        return session

    def _watch(self, service: Service, hello: sv.ReplicaHello) -> None:
        task, pid = hello.task, hello.pid
        if service.pids.get(task) == (pid, hello.host) or hello.host != self._hub.host:
            service.pids[task] = (pid, hello.host)
            return
        if (old := service.watched.pop(task, None)) is not None:
            self._hub.watch.remove(old)
        service.pids[task] = (pid, hello.host)
        descriptor = self._hub.watch.add(pid, lambda: self._process_ended(service, task, pid), hello.started)
        if descriptor >= 0:
            service.watched[task] = descriptor

    def _process_ended(self, service: Service, task: int, pid: int) -> None:
        if service.pids.get(task, (0, ""))[0] != pid:
            return
        service.watched.pop(task, None)
        service.pids.pop(task, None)
        if (peer := service.peers.pop(task, None)) is not None:
            self._hub.peers.pop(peer.identity, None)
        self._obey(service, service.core.gone(task, steady()), gone=True)
        service.places.pop(task, None)
        self._tell(service)

    def take(self, peer: ReplicaPeer, message: m.Message) -> None:
        """Act upon what a replica says."""
        service = peer.service
        if isinstance(message, sv.ReplicaBeat):
            with contextlib.suppress(ValueError):
                service.metrics[peer.task] = json.loads(message.metrics) | {"busy_s": round(message.busy, 3)}
            service.core.beat(peer.task, steady())
            self._hub.desk.replica_spoke(peer.identity)
        elif isinstance(message, sv.ReplicaUnhealthy):
            self._obey(service, service.core.unhealthy(peer.task, message.reason, begun=message.begun))
            self._tell(service)

    def bye(self, identity: bytes, bye: sv.ReplicaBye) -> None:
        """Take note of why a replica ends; the end of its task follows."""
        self._hub.peers.pop(identity, None)
        session = self._hub.sessions.get(bye.session)
        service = self._with(session, bye.task) if session is not None else None
        if service is None:
            return
        if bye.failed:
            service.core.failed(bye.task, bye.message, bye.detail, hopeless=bye.hopeless)
        self._obey(service, service.core.gone(bye.task, steady()))
        service.places.pop(bye.task, None)
        self._tell(service)

    # --- what the core wants ------------------------------------------------------------------------------------------

    def _obey(self, service: Service, orders: list[sc.Order], *, gone: bool = False) -> None:
        """Do what the core wants; ``gone``: the process that it is about has ended."""
        for order in orders:
            if isinstance(order, sc.Launch):
                self._launch(service, order.number)
            elif isinstance(order, sc.End):
                service.session.feed(ev.CancelTasks(((order.task, 1),), order.reason))
            elif isinstance(order, sc.Stop):
                if (peer := service.peers.get(order.task)) is not None:
                    peer.tell(sv.ReplicaStop(drain=True))
            elif isinstance(order, sc.Withdraw):
                self._look_inside(service, order.endpoint, gone=gone)
                self._clean_up(order.endpoint)

    def _look_inside(self, service: Service, endpoint: str, *, gone: bool) -> None:
        """Find out which requests a lost replica had begun.

        One that lives may begin others while we look, which does no harm where they may run again; and on another host
        what it wrote is only here once it ended.
        """
        loss = service.core.lost(endpoint)
        if loss is None or loss.begun is not None:
            return
        here = service.places.get(loss.task, ("", ""))[0] == self._hub.host
        if gone or (here and service.spec.settings.idempotent):
            pid = endpoint.rpartition("-")[2].partition(".")[0]
            begun = read_begun(begun_path(_folder(service), task_name(loss.task), int(pid))) if pid.isdigit() else None
            if begun is not None:
                service.core.learned(loss, begun)

    @staticmethod
    def _clean_up(endpoint: str) -> None:
        """Remove the socket of a process that may have had no time to do it, if it is on this host."""
        if endpoint.startswith("ipc://"):
            Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)

    def _launch(self, service: Service, number: int) -> None:
        session, spec = service.session, service.spec
        incarnation, task_number = self._numbers.get(session.name, (0, 0))
        if not incarnation:
            incarnation = self._hub.new_incarnation(session)
        self._numbers[session.name] = (incarnation, task_number + 2)
        task, template = make_id(incarnation, task_number + 1), make_id(incarnation, task_number + 2)
        path = self._write_config(service, number, task)
        settings = spec.settings
        session.template(
            m.PutTemplate(
                template,
                _encode(
                    ExecutableTemplate(
                        executable=sys.executable,
                        name=f"{settings.name}#{number}",
                        environment=settings.environment,
                        grace=GRACE,
                        on_preempt="finish",
                        mem_per_rank=settings.memory,
                    )
                ),
            )
        )
        service.core.launched(number, task)
        session.replica_tasks.add(task)
        session.store.put("replica", task, service.name, number)
        body = _encode(ExecutableBody(["-m", "pilot_hitl_services", str(path)]))
        session.submit(m.Submit(task, 1, template, settings.shape, pack_bodies([body]), pilot=spec.pilot, service=True))

    def _write_config(self, service: Service, number: int, task: int) -> Path:
        session, spec, settings = service.session, service.spec, service.spec.settings
        config = ReplicaConfig(
            home=str(self._hub.home),
            session=session.name,
            service=service.name,
            number=number,
            task=task,
            hub=self._hub.endpoint,
            handler=spec.handler,
            code=spec.code,
            kwargs=spec.kwargs,
            path=list(spec.path),
            asked=time.time(),
            max_batch=settings.max_batch,
            max_wait=settings.max_wait,
            max_queue=settings.max_queue,
            request_timeout=settings.request_timeout,
            idempotent=settings.idempotent,
            max_concurrency=settings.max_concurrency,
            kept=service.kept,
            modules=spec.modules,
        )
        path = _config_path(service, task)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(_encode(config))
        return path

    def _forget_replica(self, service: Service, task: int) -> None:
        if (descriptor := service.watched.pop(task, None)) is not None:
            self._hub.watch.remove(descriptor)
        if (peer := service.peers.pop(task, None)) is not None:
            self._hub.peers.pop(peer.identity, None)
        service.pids.pop(task, None)
        service.places.pop(task, None)
        service.cuts.pop(task, None)
        service.metrics.pop(task, None)
        with contextlib.suppress(OSError):
            for path in _folder(service).glob(f"{task_name(task)}.*"):
                path.unlink(missing_ok=True)

    def _tell(self, service: Service) -> None:
        core = service.core
        if not core.changed:
            return
        core.changed = False
        if service.recorded != (int(core.state), core.message):
            service.recorded = (int(core.state), core.message)
            spec = _encode(service.spec)
            row = (service.name, spec, int(core.state), core.message, time.time(), service.incarnation)
            service.session.store.put("service", *row)
        service.clients = [client for client in service.clients if client in service.session.clients]
        update = service.update()
        for client in service.clients:
            client.tell(update)

    # --- time and ends ------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when :meth:`timers` is due."""
        moments = [s.core.next_deadline() for services in self._services.values() for s in services.values()]
        moments += [service.core.next_deadline() for services in self._retired.values() for service in services]
        return min((moment for moment in moments if moment is not None), default=None)

    def timers(self, now: float) -> None:
        """Act upon ends of replicas' tasks, and do what is due."""
        for name in self._services:
            session = self._hub.sessions.get(name)
            if session is None:
                continue
            services = self._all(session)
            self._look_at_links(session, services)
            resolved, session.resolved = session.resolved, []
            if resolved:
                self._tell_decisions(session, resolved)
            ends, session.replica_ends = session.replica_ends, []
            for record in ends:
                self._task_ended(session, record, now)
            for service in services:
                due = service.core.next_deadline()
                if due is not None and due <= now:
                    self._obey(service, service.core.tick(now, self._unbound(service)))
                    self._tell(service)

    def _look_at_links(self, session: LiveSession, services: list[Service]) -> None:
        """Let clients know through which connection to an agent their requests are relayed."""
        known = self._links.setdefault(session.name, {})
        present = {pilot: agent.identity for pilot, agent in session.agents.items()}
        if {pilot: identity for pilot, (identity, _number) in known.items()} == present:
            return
        for pilot in [pilot for pilot in known if pilot not in present]:
            del known[pilot]
        for pilot, identity in present.items():
            if known.get(pilot, (b"", 0))[0] != identity:
                self._linked += 1
                known[pilot] = (identity, self._linked)
        for service in services:
            service.links = self._numbers_of_links(session)
            service.core.changed = True
            self._tell(service)

    def with_replica(self, session_name: str, task: int) -> Service | None:
        """Return the service that a replica's task is of, None when there is none any more."""
        session = self._hub.sessions.get(session_name)
        return self._with(session, task) if session is not None else None

    def cut_off(self, session_name: str, task: int) -> None:
        """The agent lost its connection to a replica: let callers know that what it relayed there is lost."""
        service = self.with_replica(session_name, task)
        if service is not None:
            self._linked += 1
            service.cuts[task] = self._linked
            service.core.changed = True
            self._tell(service)

    def _numbers_of_links(self, session: LiveSession) -> dict[int, int]:
        return {pilot: number for pilot, (_identity, number) in self._links.get(session.name, {}).items()}

    def _tell_decisions(self, session: LiveSession, numbers: list[int]) -> None:
        """Let replicas know what requests that were deferred wait for."""
        decided = [session.core.conditions.numbered(number) for number in numbers]
        messages = [
            sv.ReplicaDecide(condition.number, condition.truth is Truth.TRUE)
            for condition in decided
            if condition.truth is not Truth.UNDECIDED
        ]
        for service in self._all(session):
            if service.spec.settings.speculation == "defer":
                for peer in service.peers.values():
                    peer.tell(*messages)

    @staticmethod
    def _unbound(service: Service) -> frozenset[int]:
        tasks = [replica.task for replica in service.core.replicas.values() if replica.task]
        return frozenset(task for task in tasks if not service.session.core.pilot_of(task))

    def _task_ended(self, session: LiveSession, record: do.Record, now: float) -> None:
        session.replica_tasks.discard(record.task)
        failure = record.failure
        hopeless = failure is not None and failure.cause in HOPELESS
        message = f"its process ended{'' if failure is None else f': {failure.message}'}"
        if record.state is State.DONE:
            message = "its process ended by itself"
        service = self._with(session, record.task)
        if service is not None:
            service.core.failed(record.task, message, _last_words(record))
            _log.info("replica %s of service %s: %s", task_name(record.task), service.name, message)
            self._obey(service, service.core.ended(record.task, message, now, hopeless=hopeless), gone=True)
            self._forget_replica(service, record.task)
            self._tell(service)

    def owner_came(self, session: LiveSession, client: Client) -> None:
        """Want the replicas of a script that is back after a lost hub."""
        for service in self.of(session).values():
            if service.incarnation == client.incarnation and not service.core.state.final:
                self._wake(service)

    def owner_left(self, session: LiveSession, client: Client) -> None:
        """End services whose last owner left, unless it wants to leave them running."""
        if client.role != "owner" or any(other is not client and not other.leaving for other in session.owners):
            return
        if client.on_exit == "detach" or (client.on_exit == "drain" and session.work):
            return
        for service in self._all(session):
            self._obey(service, service.core.stop("its session was closed", steady(), drain=False))
            self._tell(service)

    def recall_all(self, session: LiveSession) -> None:
        """Know the services that an earlier hub kept; their replicas say hello again, if they still run."""
        services = self.of(session)
        now = steady()
        tasks: dict[str, dict[int, int]] = {}
        for task, name, number in session.store.rows("SELECT task, service, number FROM replica ORDER BY task"):
            state = session.core.state_of(task)
            if state is not None and not state.final:
                tasks.setdefault(name, {})[number] = task
                session.replica_tasks.add(task)
        query = "SELECT name, spec, incarnation FROM service WHERE state<?"
        for name, spec, incarnation in list(session.store.rows(query, (int(ServiceState.STOPPED),))):
            service = services[name] = Service(session, _spec.decode(spec), incarnation)
            service.links = self._numbers_of_links(session)
            service.recall_kept()
            service.core.restore(tasks.get(name, {}), now)

    def forget(self, session: LiveSession) -> None:
        """The session is closed."""
        for service in [*self._services.pop(session.name, {}).values(), *self._retired.pop(session.name, [])]:
            for task in list(service.watched):
                self._forget_replica(service, task)
            for replica in service.core.replicas.values():
                if replica.endpoint and not session.active_pilots:
                    self._clean_up(replica.endpoint)
        self._numbers.pop(session.name, None)
        self._links.pop(session.name, None)

    def close(self) -> None:
        """The hub ends: what it leaves behind are the sockets of replicas that live on."""
        for session in list(self._hub.sessions.values()):
            self.forget(session)

    # --- to look at ---------------------------------------------------------------------------------------------------

    def ask_for_metrics(self, service: Service) -> list[bytes]:
        """Ask the replicas for a beat now; return the identities of those that will answer."""
        asked = []
        for replica in service.core.replicas.values():
            peer = service.peers.get(replica.task)
            if peer is not None and replica.endpoint:
                peer.tell(sv.ReplicaReport())
                asked.append(peer.identity)
        return asked

    def view(self, service: Service) -> dict[str, Any]:
        """Return a service as JSON-able data."""
        core, settings = service.core, service.spec.settings
        return {
            "session": service.session.name,
            "service": service.name,
            "state": core.state.name,
            "message": core.message,
            "detail": core.detail,
            "handler": service.spec.handler,
            "max_batch": settings.max_batch,
            "max_wait": settings.max_wait,
            "max_queue": settings.max_queue,
            "cores": settings.cores,
            "gpus": settings.gpus,
            "idempotent": settings.idempotent,
            "speculative": settings.speculation,
            "max_concurrency": settings.max_concurrency,
            "kept": [kept.key for kept in service.kept],
            "ready": sum(1 for replica in core.replicas.values() if replica.endpoint),
            "replicas": [self._replica_view(service, replica) for replica in core.replicas.values()],
        }

    @staticmethod
    def _replica_view(service: Service, replica: sc.Replica) -> dict[str, Any]:
        pid, host = service.pids.get(replica.task, (0, ""))
        return {
            "replica": replica.number,
            "state": replica.state.name,
            "task": task_name(replica.task) if replica.task else "",
            "pid": pid,
            "host": host,
            "endpoint": replica.endpoint,
            "tcp": service.places.get(replica.task, ("", ""))[1] if replica.endpoint else "",
            "starts": replica.starts,
            "failures": replica.failures,
            "message": replica.message,
            "last_failure": replica.loss.message if replica.loss is not None else "",
            "metrics": service.metrics.get(replica.task, {}),
        }


def _last_words(record: do.Record) -> str:
    """Return what a replica's process wrote on standard error before it ended."""
    payload = record.report.payload if isinstance(record.report, m.Report) else b""
    try:
        words = _result.decode(payload).stderr if payload else b""
    except msgspec.MsgspecError:
        words = b""
    return words.decode("utf-8", "replace")[-4000:]


def _folder(service: Service) -> Path:
    return service.session.places.folder / "services" / service.name


def _config_path(service: Service, task: int) -> Path:
    return _folder(service) / f"{task_name(task)}.msgpack"


def _kept_key(name: str) -> str:
    return f"kept broadcasts of {name}"


def _session(client: Client) -> LiveSession:
    assert client.session is not None  # only clients with a session have handlers
    return client.session
