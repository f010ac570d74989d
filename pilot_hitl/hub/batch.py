"""Pilots that are jobs of Slurm: submitted as arrays where they are equal, watched by one query for all, ended.

Nothing is concluded from silence: while Slurm does not answer, every pilot keeps its state and its tasks. The rules
stand in ``docs/specs/batch.md``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pilot_hitl.errors import UnknownPlatform
from pilot_hitl.hub import journal, renewal
from pilot_hitl.hub.cluster import ADDRESS_VARIABLE, Cluster
from pilot_hitl.hub.commands import Commands, Finished
from pilot_hitl.hub.live import LiveSession, PilotRecord
from pilot_hitl.hub.vigil import Vigil
from pilot_hitl.launch import local, platforms, slurm, slurmwords
from pilot_hitl.launch.platforms import Platform
from pilot_hitl.launch.slurmwords import JobView
from pilot_hitl.launch.submission import Stage, Submission
from pilot_hitl.model.states import PilotState
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.clock import on_steady, steady
from pilot_hitl.wire.pilotconfig import PilotConfig

if TYPE_CHECKING:
    from pilot_hitl.hub.pilots import PilotKeeper
    from pilot_hitl.hub.server import Hub

_log = logging.getLogger(__name__)
FIRST_LOOK, LAST_LOOK, GROWTH = 1.0, 30.0, 1.5
"""Seconds until the first look at the queue, and between the last ones; each wait is so many times the one before."""
SOON = 0.1
"""Seconds after a cancel: a job that only waited is gone by then."""
HOW_IT_ENDED = 120.0
"""Seconds for which sacct is asked again how a job ended that the queue has no more."""
NOBODY = "no agent of the pilot lives any more"
HUB_TIMEOUT = 3600.0
"""Seconds that a pilot on a batch system goes on without a hub: somebody may have to log in first."""
Key = tuple[str, int]


class Batch:
    """What there is to know of a pilot as a job."""

    __slots__ = (
        "asked",
        "canceling",
        "cluster",
        "given_up",
        "missing",
        "platform",
        "renew_at",
        "session",
        "view",
        "vigil",
        "way",
    )

    def __init__(
        self, session: LiveSession, pilot: PilotRecord, platform: Platform, cluster: Cluster, vigil: Vigil
    ) -> None:
        self.session = session
        self.platform = platform
        self.cluster = cluster
        self.way = Submission(steady(), _try_in(session, pilot) or 1)
        self.missing: float | None = None
        """Since when its job is in the queue no more, and nobody knows how it ended."""
        self.view: JobView | None = None
        self.canceling = False
        self.asked = steady()
        self.renew_at: float | None = None
        self.vigil = vigil
        self.given_up = ""
        """Why its job is canceled although nobody asked for that."""


class BatchPilots:
    """Submits, watches and ends pilots on Slurm; see :class:`~pilot_hitl.hub.pilots.Launcher`."""

    patience = 30.0

    def __init__(self, hub: Hub, keeper: PilotKeeper) -> None:
        """Start without pilots; ends are told to the keeper."""
        self._hub = hub
        self._keeper = keeper
        self._commands = Commands(hub.watch)
        self._clusters: dict[str, Cluster] = {}
        self._batches: dict[Key, tuple[PilotRecord, Batch]] = {}
        self._asked: list[tuple[PilotRecord, Batch]] = []
        self._cancel: set[Key] = set()
        self._looking: set[Cluster] = set()
        self._unanswered: set[Cluster] = set()
        self._look_at: dict[Cluster, float] = {}
        self._wait = FIRST_LOOK

    # --- what the keeper wants ----------------------------------------------------------------------------------

    def start(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Take a pilot that was asked for; those of one turn that are equal become one array."""
        batch = self._take(session, pilot)
        if batch is None:
            return
        try:
            self._write_config(session, pilot, batch, "")  # by which another hub can go on
        except OSError as error:
            self._fail([(pilot, batch)], f"its folder cannot be written: {error}")
            return
        session.save_pilot(pilot)

    def _take(self, session: LiveSession, pilot: PilotRecord) -> Batch | None:
        """Prepare a pilot's submission; None, and the pilot is FAILED, when its platform is of no use."""
        try:
            platform = platforms.find(pilot.description.resource, self._hub.home)
        except UnknownPlatform as error:
            self._keeper.ended(session, pilot, PilotState.FAILED, str(error))
            return None
        if why := slurm.refusal(pilot.description, platform):
            self._keeper.ended(session, pilot, PilotState.FAILED, why)
            return None
        vigil = Vigil(session.places.pilot(pilot.number), pilot.description.lease, steady())
        batch = Batch(session, pilot, platform, self._cluster(pilot), vigil)
        self._batches[session.name, pilot.number] = (pilot, batch)
        self._asked.append((pilot, batch))
        return batch

    def _cluster(self, pilot: PilotRecord) -> Cluster:
        name = pilot.environment.get("SLURM_CONF", "")
        if name not in self._clusters:
            environment = slurm.environment(pilot.environment, pilot.description)
            wanted = pilot.environment.get(ADDRESS_VARIABLE) or os.environ.get(ADDRESS_VARIABLE, "")
            self._clusters[name] = Cluster(self._commands, environment, self._hub.host, wanted)
        return self._clusters[name]

    def arrived(self, session: LiveSession, pilot: PilotRecord, hello: m.AgentHello) -> None:
        """Its agent reported, and knows its job."""
        entry = self._batches.get((session.name, pilot.number))
        if entry is None:
            return
        pilot.message = _succession(session, pilot).removesuffix("; ")
        if hello.job and not pilot.job:
            # For a task of an array the agent knows the plain number; the script wrote the name that Slurm lists.
            self._queued(pilot, entry[1], _job_in(session.places.pilot(pilot.number)) or hello.job)
        self._look_soon(entry[1].cluster)

    def left(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Its agent went: look whether the job ends as well."""
        entry = self._batches.get((session.name, pilot.number))
        if entry is not None:
            self._look_soon(entry[1].cluster)

    def end(self, session: LiveSession, pilot: PilotRecord, *, at_once: bool) -> bool:
        """Cancel a pilot's job; False when there is none and will be none. ``at_once``: again, if need be."""
        key = (session.name, pilot.number)
        entry = self._batches.get(key)
        if entry is None or entry[1].way.stage is Stage.ASKED:
            return False
        self._cancel.add(key)
        entry[1].canceling = entry[1].canceling and not at_once
        return True

    def recall(self, session: LiveSession, pilot: PilotRecord) -> bool:
        """Know a pilot again that an earlier hub submitted; its agent finds this hub by its address."""
        folder = session.places.pilot(pilot.number)
        try:
            config = msgspec.json.decode((folder / "config.json").read_bytes(), type=PilotConfig)
        except (OSError, msgspec.MsgspecError):
            why = f"the hub that was to submit it ended before it could; submit it again (looked in {folder})"
            self._keeper.ended(session, pilot, PilotState.FAILED, why)
            return False
        pilot.environment, pilot.cwd, pilot.sys_path = config.environment, config.cwd, config.sys_path
        pilot.flags, pilot.umask = config.flags, config.umask
        batch = self._take(session, pilot)
        if batch is None:
            return False
        pilot.job = pilot.job or _job_in(folder)
        if not pilot.job and not _try_in(session, pilot):
            return False  # nobody tried to submit it
        self._asked.remove((pilot, batch))
        batch.asked = pilot.began
        if pilot.job:
            batch.way.known(0.0)
        else:
            batch.way.lost()
        journal.take(session, pilot.number)
        self._hub.door.open_again()
        batch.cluster.prepare(partial(self._reachable, batch.cluster))
        self._look_soon(batch.cluster)
        if not pilot.keep:
            self._keeper.await_owner(session, pilot)
        return True

    def owner_came(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Nothing to do: a job goes on by itself."""

    def forget(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Cancel the job of a pilot whose session is forgotten."""
        key = (session.name, pilot.number)
        self._cancel.discard(key)
        entry = self._batches.pop(key, None)
        if entry is not None and pilot.job:
            entry[1].cluster.cancel([pilot.job], _ignore)

    def let_go(self, session: LiveSession, pilot: PilotRecord) -> None:
        """Forget a pilot that ended, and submit its successor when it ended before that was due."""
        key = (session.name, pilot.number)
        entry = self._batches.pop(key, None)
        self._cancel.discard(key)
        if entry is None:
            return
        if entry in self._asked:
            self._asked.remove(entry)
        view = entry[1].view
        if view is not None and renewal.at_end(pilot, view.state) and self._is_wanted(session):
            self._renew(session, pilot, f"ended ({view.state})")

    def close(self) -> None:
        """The hub ends: cancel what is to be canceled without waiting for it."""
        jobs: dict[Cluster, list[str]] = {}
        for key in self._cancel:
            pilot, batch = self._batches[key]
            if pilot.job:
                jobs.setdefault(batch.cluster, []).append(pilot.job)
        for cluster, ids in jobs.items():
            cluster.cancel_and_forget(ids)
        self._commands.close()

    # --- submission ---------------------------------------------------------------------------------------------

    def _submit_asked(self) -> None:
        """Submit what this turn asked for."""
        now = steady()
        asked = [entry for entry in self._asked if entry[1].way.at <= now]
        self._asked = [entry for entry in self._asked if entry[1].way.at > now]
        groups: list[list[tuple[PilotRecord, Batch]]] = []
        for entry in asked:
            for group in groups:
                if _alike(group[0], entry):
                    group.append(entry)
                    break
            else:
                groups.append([entry])
        for group in groups:
            group[0][1].cluster.prepare(partial(self._prepared, group))

    def _prepared(self, group: list[tuple[PilotRecord, Batch]], why: str, silent: bool) -> None:
        group = [(pilot, batch) for pilot, batch in group if not pilot.state.final]
        if not group:
            return
        endpoint = ""
        if not why:
            try:
                endpoint = self._hub.door.open(group[0][1].cluster.address)
            except OSError as error:
                why = str(error)
        if why and silent:
            self._delay(group, why)
            return
        if why:
            self._fail(group, why)
            return
        most = group[0][1].cluster.most_in_array
        if any(pilot.number >= most for pilot, _ in group):
            for entry in group:
                self._send([entry], endpoint)
        else:
            self._send(group, endpoint)

    def _send(self, group: list[tuple[PilotRecord, Batch]], endpoint: str) -> None:
        first, batch = group[0]
        session = batch.session
        job = slurm.Job(
            description=first.description,
            platform=batch.platform,
            session=session.name,
            mark=session.places.mark,
            pilots=tuple(pilot.number for pilot, _ in group),
            folder=str(session.places.folder / "pilots"),
            python=sys.executable,
            spawner=local.spawner_file(),
            number=batch.way.number,
        )
        try:
            text = slurm.script(job)
            for pilot, each in group:
                self._write_config(session, pilot, each, endpoint)
                folder = session.places.pilot(pilot.number)
                (folder / "batch.sh").write_text(text, encoding="utf-8")
                _write_try(each, pilot)
        except OSError as error:
            self._fail(group, f"its folder cannot be written: {error}")
            return
        for _, each in group:
            each.way.sent()
        environment = slurm.environment(first.environment, first.description)
        batch.cluster.submit(job, environment, partial(self._sent, group))

    def _write_config(self, session: LiveSession, pilot: PilotRecord, batch: Batch, endpoint: str) -> None:
        """Write what the pilot's processes read."""
        platform = batch.platform
        folder = session.places.pilot(pilot.number)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        cores, gpus, memory = slurm.node_size(pilot.description, platform)
        config = PilotConfig(
            home=str(self._hub.home),
            session=session.name,
            pilot=pilot.number,
            folder=str(folder),
            session_folder=str(session.places.folder),
            endpoint=endpoint,
            keys=str(self._hub.home / "hub" / "keys.json"),
            nodes=[],
            environment=pilot.environment,
            cwd=pilot.cwd,
            sys_path=pilot.sys_path,
            flags=pilot.flags,
            umask=pilot.umask,
            runtime=pilot.description.runtime,
            noop=pilot.description.noop,
            hub_timeout=HUB_TIMEOUT,
            mark=local.pilot_mark(session.places, pilot.number),
            system=platform.system,
            count=max(1, slurm.nodes_asked(pilot.description, platform)),
            cores_per_node=cores,
            gpus_per_node=gpus,
            memory_per_node=memory,
            lease=pilot.description.lease,
            launchers=platform.launchers,
        )
        (folder / "config.json").write_bytes(msgspec.json.encode(config))

    def _sent(self, group: list[tuple[PilotRecord, Batch]], finished: Finished) -> None:
        """Take sbatch's word."""
        first = group[0][0]
        if finished.silent:
            why = group[0][1].cluster.complaint("sbatch", finished)
            self._lose(group, f"it may be submitted or not: {why}; the queue will tell")
            return
        if finished.code:
            self._fail(group, slurmwords.refusal(finished.said, first.description, self._hub.host))
            return
        try:
            number = slurmwords.parse_id(finished.out)
        except ValueError as error:
            why = f"{error}; let nothing else write to sbatch's output"
            self._lose(group, f"the queue will tell whether it is submitted: {why}", why)
            return
        self._name(group, number)

    def _name(self, group: list[tuple[PilotRecord, Batch]], job: str) -> None:
        for pilot, batch in group:
            self._queued(pilot, batch, f"{job}_{pilot.number}" if len(group) > 1 else job)

    def _queued(self, pilot: PilotRecord, batch: Batch, job: str) -> None:
        if pilot.state.final or pilot.job not in ("", job):
            # It was given up meanwhile, or another job of it has been found.
            batch.cluster.cancel([job], _ignore)
            return
        pilot.job = job
        batch.way.known(steady())
        if pilot.state is PilotState.NEW:
            pilot.state = PilotState.PENDING
        if not pilot.stopping and pilot.state is PilotState.PENDING:
            pilot.message = f"{_succession(batch.session, pilot)}job {job} is PENDING"
        batch.session.save_pilot(pilot)
        self._look_soon(batch.cluster)

    def _lose(self, group: list[tuple[PilotRecord, Batch]], words: str, unread: str = "") -> None:
        """Nobody knows whether there is a job: look until Slurm says so."""
        for pilot, batch in group:
            batch.way.lost(unread)
            self._say(pilot, batch, words)
        self._look_soon(group[0][1].cluster)

    def _delay(self, group: list[tuple[PilotRecord, Batch]], why: str) -> None:
        """Submit it later: Slurm does not answer, and was not asked to take it."""
        for pilot, batch in group:
            batch.way.delayed(steady())
            self._asked.append((pilot, batch))
            self._say(pilot, batch, f"it is not submitted yet, and is tried again: {why}")

    def _fail(self, group: Iterable[tuple[PilotRecord, Batch]], why: str) -> None:
        for pilot, batch in group:
            if not pilot.state.final:
                state = PilotState.CANCELED if pilot.canceled else PilotState.FAILED
                self._keeper.ended(batch.session, pilot, state, why)

    # --- watching -----------------------------------------------------------------------------------------------

    def _look_soon(self, cluster: Cluster) -> None:
        self._wait = FIRST_LOOK
        self._look_at[cluster] = min(steady() + FIRST_LOOK, self._look_at.get(cluster, float("inf")))

    def _of(self, cluster: Cluster) -> list[tuple[PilotRecord, Batch]]:
        return [entry for entry in self._batches.values() if entry[1].cluster is cluster]

    def _wants_look(self, pilot: PilotRecord, batch: Batch) -> bool:
        """Whether Slurm knows something that is not known here."""
        if batch.way.stage is Stage.ASKED or pilot.state.final:
            return False
        if pilot.stopping or not self._connected(pilot, batch) or batch.view is None or not batch.view.lives:
            return True
        return batch.vigil.silent and pilot.state is PilotState.ACTIVE

    def _connected(self, pilot: PilotRecord, batch: Batch) -> bool:
        agent = batch.session.agents.get(pilot.number)
        return agent is not None and agent.identity in self._hub.peers

    def _look(self, cluster: Cluster) -> None:
        """Ask once for everything that is not known of this cluster's jobs."""
        self._look_at.pop(cluster, None)
        if cluster in self._looking or not any(self._wants_look(*entry) for entry in self._of(cluster)):
            return
        self._looking.add(cluster)
        cluster.queue(partial(self._looked, cluster, steady()))

    def _looked(self, cluster: Cluster, began: float, views: dict[str, JobView] | None) -> None:
        """Take in the queue's answer to a question of ``began``."""
        self._looking.discard(cluster)
        if views is None:
            self._unanswered.add(cluster)
            _log.warning("Slurm does not answer, so nothing is concluded: %s", cluster.silent)
        else:
            if cluster in self._unanswered:
                self._answers_again(cluster)
            self._end_strays(cluster, views)
            for key in self._cancel:
                self._batches[key][1].canceling = False  # whatever kept it from being canceled, Slurm answers again
            if not self._hub.door.is_open:
                cluster.prepare(partial(self._reachable, cluster))  # it could not be found out before
            missing = [entry for entry in self._of(cluster) if not self._seen(*entry, views, began)]
            if missing:
                self._look_up(cluster, missing)
        moments = [steady() + self._wait, self._look_at.get(cluster, float("inf"))]
        if views is not None:
            # Later, whoever has no job would wait for nothing.
            moments += [batch.way.settles for _, batch in self._of(cluster) if batch.way.settles is not None]
        self._look_at[cluster] = min(moments)
        self._wait = min(LAST_LOOK, self._wait * GROWTH)

    def _answers_again(self, cluster: Cluster) -> None:
        """Let nothing wait on that only waited for an answer of Slurm."""
        self._unanswered.discard(cluster)
        self._wait = FIRST_LOOK
        for _, batch in self._of(cluster):
            batch.way.answered(steady())

    def _end_strays(self, cluster: Cluster, views: dict[str, JobView]) -> None:
        """Cancel jobs of tries that were given up: they turned up late, and another job stands for their pilot."""
        strays = []
        for pilot, batch in self._of(cluster):
            for name, view in views.items():
                owner = slurm.owner(name, view.comment, batch.session.places.mark)
                if owner is None or owner[0] != pilot.number or not (view.waits or view.lives):
                    continue
                if owner[1] < batch.way.number and name != pilot.job:
                    strays.append(name)
        if strays:
            _log.warning("jobs %s are canceled: others were submitted in their place", ", ".join(strays))
            cluster.cancel(strays, _ignore)

    def _seen(self, pilot: PilotRecord, batch: Batch, views: dict[str, JobView], began: float) -> bool:
        """Take in what the queue says of a pilot; False when its job is not in there."""
        if batch.way.stage is Stage.ASKED or pilot.state.final:
            return True
        if not pilot.job:
            return self._find(pilot, batch, views, began)
        view = views.get(pilot.job)
        if view is None or not slurm.is_ours(view.comment, batch.session.places.mark):
            # One that was submitted while squeue looked is in the next answer. A controller that was restarted may have
            # forgotten a job whose agent is here and lives.
            return not batch.way.missing(began) or self._connected(pilot, batch)
        before, batch.view = batch.view, view
        if view.waits:
            self._waits(pilot, batch, view)
        elif view.lives:
            self._lives(pilot, batch, view, started=before is None or not before.lives)
        else:
            self._ended(pilot, batch, view.state)
        return True

    def _find(self, pilot: PilotRecord, batch: Batch, views: dict[str, JobView], began: float) -> bool:
        """Find the job that may have been submitted without that anybody heard its id; else submit it once more."""
        if batch.way.stage is not Stage.LOST:
            return True
        wanted, mark = (pilot.number, batch.way.number), batch.session.places.mark
        found = next((name for name, view in views.items() if slurm.owner(name, view.comment, mark) == wanted), "")
        if found := found or _job_in(batch.session.places.pilot(pilot.number)):
            self._queued(pilot, batch, found)
            return self._seen(pilot, batch, views, began)
        if not batch.way.absent(began):
            return True
        if pilot.stopping:
            self._keeper.ended(batch.session, pilot, PilotState.CANCELED, pilot.message)
            return True
        unread = batch.way.unread
        batch.way.again(steady())
        if unread:
            with contextlib.suppress(OSError):
                _write_try(batch, pilot)
            self._keeper.ended(batch.session, pilot, PilotState.FAILED, f"Slurm has no job of it: {unread}")
            return True
        self._asked.append((pilot, batch))
        self._say(pilot, batch, "Slurm has no job of it; it is submitted once more")
        return True

    def _waits(self, pilot: PilotRecord, batch: Batch, view: JobView) -> None:
        session = batch.session
        if hopeless := slurmwords.hopeless(view, pilot.description):
            why = f"job {view.id} is canceled because it can never run ({view.reason}): {hopeless}"
            batch.cluster.cancel([view.id], _ignore)
            self._keeper.ended(session, pilot, PilotState.FAILED, why)
            return
        if pilot.state is PilotState.ACTIVE:
            # Requeued: Slurm has ended everything of its earlier run.
            self._keeper.agent_gone(session, pilot.number)
            pilot.state = PilotState.PENDING
            batch.renew_at = None
        batch.given_up = ""
        self._say(pilot, batch, slurmwords.waiting_words(view))

    def _lives(self, pilot: PilotRecord, batch: Batch, view: JobView, *, started: bool) -> None:
        if started:
            self._wait = FIRST_LOOK
        if pilot.description.renew and not pilot.successor and view.ends and not pilot.stopping:
            waited = max(0.0, view.started - batch.asked)
            batch.renew_at = on_steady(renewal.due(view.started, view.ends, waited))
        if pilot.number not in batch.session.agents and not (pilot.state is PilotState.ACTIVE and pilot.message):
            # An agent that went has said why, and that is to be kept until the job has ended.
            self._say(pilot, batch, slurmwords.waiting_words(view))
        if batch.vigil.over and not batch.given_up and not pilot.stopping:
            batch.given_up = NOBODY
            _log.warning("job %s of session %s is canceled: %s", pilot.job, batch.session.name, NOBODY)
            self.end(batch.session, pilot, at_once=False)

    def _say(self, pilot: PilotRecord, batch: Batch, words: str) -> None:
        words = f"{_succession(batch.session, pilot)}{words}"
        if not pilot.stopping and pilot.message != words:
            pilot.message = words
            batch.session.save_pilot(pilot)

    def _ended(self, pilot: PilotRecord, batch: Batch, state: str, detail: str = "") -> None:
        """The job ended: nothing of it runs on any node that Slurm reaches."""
        reported = pilot.state is PilotState.ACTIVE
        outcome, words = slurmwords.verdict(pilot.job, state, reported=reported, stopped=pilot.stopping)
        if pilot.stopping:
            outcome = PilotState.CANCELED if pilot.canceled else PilotState.DONE
            words = f"{pilot.message} (job {pilot.job})"
        elif batch.given_up:
            outcome, words = PilotState.FAILED, f"job {pilot.job} was canceled: {batch.given_up}"
        elif outcome is PilotState.FAILED:
            logs = batch.session.places.pilot(pilot.number) / "logs"
            words += f"{detail}; see {logs}{_last_words(logs)}"
        elif pilot.message and reported:
            words = f"{words}; {pilot.message}"
        self._keeper.ended(batch.session, pilot, outcome, words)

    def _look_up(self, cluster: Cluster, missing: list[tuple[PilotRecord, Batch]]) -> None:
        """Learn the ends of jobs that have left the queue."""
        jobs = [pilot.job for pilot, _ in missing]

        def found(ends: dict[str, tuple[str, str]] | None) -> None:
            now = steady()
            for pilot, batch in missing:
                batch.missing = batch.missing or now
                if ends is None and now - batch.missing < HOW_IT_ENDED:
                    continue
                state, code = (ends or {}).get(pilot.job, ("", ""))
                if not pilot.state.final and (not state or state not in slurmwords.WAITING | slurmwords.LIVING):
                    self._ended(pilot, batch, state, f" (exit code {code})" if code else "")

        if cluster.accounts:
            cluster.accounting(jobs, found)
        else:
            found({})

    def _reachable(self, cluster: Cluster, why: str, _silent: bool) -> None:
        """Listen for the agents of recalled pilots."""
        if why:
            _log.warning("agents cannot reach this hub yet: %s", why)
            return
        try:
            self._hub.door.open(cluster.address)
        except OSError as error:
            _log.warning("agents cannot reach this hub: %s", error)

    def _keep_vigil(self, now: float) -> None:
        """Look whether agents that are not heard still live, and if so whether their jobs do."""
        for pilot, batch in self._batches.values():
            if _is_watched(pilot) and batch.vigil.at <= now:
                agent = batch.session.agents.get(pilot.number)
                batch.vigil.look(agent.heard if agent is not None else 0.0, now)
                if batch.vigil.silent:
                    self._look_soon(batch.cluster)

    # --- ending and renewing ------------------------------------------------------------------------------------

    def _cancel_jobs(self) -> None:
        """Cancel what is to end and has a job; the others follow once they have one."""
        jobs: dict[Cluster, list[Key]] = {}
        for key in list(self._cancel):
            pilot, batch = self._batches[key]
            if pilot.job and not batch.canceling:
                batch.canceling = True
                jobs.setdefault(batch.cluster, []).append(key)
        for cluster, keys in jobs.items():
            ids = [self._batches[key][0].job for key in keys]
            cluster.cancel(ids, partial(self._canceled, keys))

    def _canceled(self, keys: list[Key], finished: Finished) -> None:
        for key in keys:
            entry = self._batches.get(key)
            if entry is None:
                continue
            if finished.silent:
                self._look_soon(entry[1].cluster)  # once Slurm answers, it is tried again
                continue
            entry[1].canceling = False
            self._cancel.discard(key)
            self._wait = FIRST_LOOK
            self._look_at[entry[1].cluster] = steady() + SOON

    def _is_wanted(self, session: LiveSession) -> bool:
        return session.name in self._hub.sessions and bool(session.owners or session.core.live)

    def _renew_due(self, now: float) -> None:
        for pilot, batch in list(self._batches.values()):
            if batch.renew_at is None or batch.renew_at > now:
                continue
            batch.renew_at = None
            if not pilot.stopping and not pilot.successor and self._is_wanted(batch.session):
                self._renew(batch.session, pilot, "its wall time ends soon")

    def _renew(self, session: LiveSession, pilot: PilotRecord, why: str) -> None:
        if pilot.successor or pilot.stopping:
            return
        successor = session.new_successor(pilot)
        successor.message = f"{_succession(session, successor)}{why}"
        _log.info("pilot %d of session %s succeeds pilot %d", successor.number, session.name, pilot.number)
        if not pilot.state.final:
            pilot.message = f"pilot {successor.number} succeeds it"
            session.save_pilot(pilot)
        self.start(session, successor)

    # --- time ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when :meth:`timers` is due."""
        ready = (entry for key, entry in self._batches.items() if key in self._cancel)
        if any(pilot.job and not batch.canceling for pilot, batch in ready):
            return 0.0
        moments = [self._commands.next_deadline(), *self._look_at.values()]
        moments += [batch.way.at for _, batch in self._asked]
        moments += [batch.renew_at for _, batch in self._batches.values()]
        moments += [batch.vigil.at for pilot, batch in self._batches.values() if _is_watched(pilot)]
        return min((moment for moment in moments if moment is not None), default=None)

    def timers(self, now: float) -> None:
        """Submit what was asked for, look at the queue, cancel, renew."""
        self._commands.timers(now)
        if self._asked:
            self._submit_asked()
        if self._cancel:
            self._cancel_jobs()
        self._keep_vigil(now)
        for cluster, moment in list(self._look_at.items()):
            if moment <= now:
                self._look(cluster)
        self._renew_due(now)


def _alike(one: tuple[PilotRecord, Batch], other: tuple[PilotRecord, Batch]) -> bool:
    """Whether two pilots may be tasks of one array: all that the script says of them is the same."""
    first, second = one[0], other[0]
    return (
        one[1].session is other[1].session
        and msgspec.structs.replace(first.description, name="", site="")
        == msgspec.structs.replace(second.description, name="", site="")
        and (first.environment, first.cwd, first.sys_path) == (second.environment, second.cwd, second.sys_path)
        and (first.flags, first.umask) == (second.flags, second.umask)
        and one[1].way.number == other[1].way.number
    )


def _succession(session: LiveSession, pilot: PilotRecord) -> str:
    """Return whose successor a pilot is, as the beginning of a sentence; empty when it is nobody's."""
    before = next((each.number for each in session.pilots.values() if each.successor == pilot.number), 0)
    return f"succeeds pilot {before or pilot.lineage}; " if pilot.lineage != pilot.number else ""


def _is_watched(pilot: PilotRecord) -> bool:
    """Whether an agent should be heard of it."""
    return pilot.state is PilotState.ACTIVE and not pilot.stopping


def _job_in(folder: Path) -> str:
    """Return the id that a job wrote into its pilot's folder when it started."""
    try:
        return (folder / slurm.JOB_FILE).read_text(encoding="ascii").split()[0]
    except (OSError, ValueError, IndexError):
        return ""


def _try_in(session: LiveSession, pilot: PilotRecord) -> int:
    """Return which try to submit a pilot was the last one, 0 when there was none."""
    try:
        return int((session.places.pilot(pilot.number) / slurm.TRY_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _write_try(batch: Batch, pilot: PilotRecord) -> None:
    """Say which try is the present one: a job of an earlier one that turns up late ends at once."""
    file = batch.session.places.pilot(pilot.number) / slurm.TRY_FILE
    file.write_text(f"{batch.way.number}\n", encoding="ascii")


def _last_words(logs: Path) -> str:
    for name in ("batch.log", "node-0.log"):
        if words := local.last_words(logs / name):
            return words
    return ""


def _ignore(_finished: Finished) -> None:
    pass
