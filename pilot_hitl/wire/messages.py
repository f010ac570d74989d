"""Every message between processes, as typed structs.

One frame on the wire is a version byte followed by a MessagePack array of messages (:mod:`pilot_hitl.wire.codec`), so
whatever gathered while a peer was busy travels as one frame. Directions are the headings below. What each exchange
promises stands in ``docs/specs/``.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pilot_hitl.model.conditions import Term
from pilot_hitl.model.descriptions import PilotDescription
from pilot_hitl.model.failures import Failure
from pilot_hitl.model.resources import NodeInventory, Resources, Shape
from pilot_hitl.model.states import CheckpointState, PilotState, State, Truth

# What a peer may say is bounded where it is decoded: a number that no file can hold, or a bulk that no memory can, is a
# malformed frame.
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Signed = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e10)]
Likelihood = Annotated[float, msgspec.Meta(ge=-1, le=1)]
"""-1 for not said."""
Run = tuple[Number, Number]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Root of all messages."""


# --- client -> hub ----------------------------------------------------------------------------------------------------


class Hello(Message, tag=1, frozen=True):
    """Open (or reopen after a lost hub) a session.

    Attributes:
        session: its name.
        namespace: of keys; two scripts with different namespaces share a session.
        role: ``owner`` submits, ``observer`` only asks, ``tool`` is a short command of the CLI without a session,
            ``task`` is a session opened from inside a running task.
        incarnation: 0 for a new one; the one given before when reconnecting.
        fresh: forget what the session held.
        pid, started, host: of the client, so the hub notices when it is gone (start time in clock ticks since boot).
        on_exit: what happens to local pilots when the client goes: ``stop``, ``drain``, ``detach``.
        waiting: when reconnecting, ``(first, count)`` runs of task ids whose outcome is still wanted.
        policy: name of what idle cores are lent to while people think; empty leaves that of an open session.
        watching: when reconnecting, the runs of :class:`Watch` that still stand.
        resent: when reconnecting, how many frames come first that an earlier hub was sent as well.
    """

    session: str
    namespace: str = ""
    role: str = "owner"
    incarnation: Number = 0
    fresh: bool = False
    pid: Number = 0
    started: Number = 0
    host: str = ""
    on_exit: str = "stop"
    waiting: list[Run] = []
    policy: str = ""
    watching: list[Run] = []
    resent: Number = 0


class PutTemplate(Message, tag=2, frozen=True):
    """Make a template known; ``blob`` is an encoded :class:`~pilot_hitl.model.templates.Template`."""

    template: Number
    blob: bytes


class PutCondition(Message, tag=3, frozen=True):
    """Make a condition known: all ``terms`` must hold. ``probability`` of the whole, -1 when not said."""

    condition: Number
    terms: list[Term]
    probability: Likelihood = -1.0


class Submit(Message, tag=4, frozen=True):
    """A *bulk*: tasks ``first … first+count-1`` that differ only in their bodies.

    Attributes:
        first, count: the ids.
        template: what they share.
        shape: what each asks for.
        bodies: MessagePack array of ``count`` binaries; opaque to the hub.
        keys: ``count`` resume keys of 16 bytes, one after the other; empty when they are not resumable.
        priority, backfill, pilot, retries, effects_outside: as in the description (``pilot`` is a number, 0 = any).
        deps: tasks that must succeed first; their values travel with the dispatch in this order.
        condition: 0 or a condition made known before.
        service: replicas of a service, of the highest tier.
        parent: the task inside which this is submitted, 0 for a script; its condition is inherited.
        site: of the pilots that may run it, empty for any.
        notes: MessagePack array of ``count`` binaries, each empty or a :class:`~pilot_hitl.model.files.Note`; empty
            when there is none.
        keeps_failures: a recorded failure is taken over as a recorded success is.
    """

    first: Number
    count: Count
    template: Number
    shape: Shape
    bodies: bytes
    keys: bytes = b""
    priority: Signed = 0
    backfill: bool = False
    pilot: Number = 0
    retries: Number = 0
    effects_outside: bool = False
    deps: list[Number] = []
    condition: Number = 0
    service: bool = False
    parent: Number = 0
    site: str = ""
    notes: bytes = b""
    keeps_failures: bool = False


class Cancel(Message, tag=5, frozen=True):
    """Cancel tasks given as ``(first, count)`` runs."""

    runs: list[Run]
    reason: str = ""


class SubmitPilot(Message, tag=6, frozen=True):
    """Ask for a pilot; answered by :class:`PilotUpdate` with the same token.

    ``environment``, ``cwd``, ``sys_path``, ``umask``, the interpreter's ``flags``: the client's; tasks start from them.
    """

    token: Number
    description: PilotDescription
    environment: dict[str, str] = {}
    cwd: str = ""
    sys_path: list[str] = []
    flags: list[str] = []
    umask: int = 0o022


class CancelPilot(Message, tag=7, frozen=True):
    """End a pilot; its unfinished tasks are bound again elsewhere."""

    pilot: Number
    reason: str = ""


class Ask(Message, tag=8, frozen=True):
    """Ask people.

    Attributes:
        handle: the client's id (layout of a task id) by which its conditions name this checkpoint.
        key: 16 bytes; the same key on a re-run finds the same request.
        name, iteration: what people see.
        question: Markdown.
        form: canonical JSON Schema that an answer must satisfy.
        choices: canonical JSON of the choices, empty when the form is not a choice.
        show: JSON list of what to show: objects with ``kind`` (text, markdown, table, image, file, task) and fields.
        fingerprint: of question, form and show.
        on_change: ``ask``, ``keep`` or ``error`` when the fingerprint differs from the earlier request's.
        assignees: who may answer; empty for anybody who may write to the session.
        deadline: seconds after it opens; 0 for none.
        default: canonical JSON applied at the deadline; empty for none.
        deps: tasks whose values it shows; it opens when they are there.
        condition: 0, or the branch inside which it is asked.
        reserve: slots that the continuation will want.
        linger: seconds that the reservation outlives the answer.
        parent: the task inside which it is asked, 0 for a script: it is withdrawn when that task ends and waits for the
            condition of that task.
        predict: canonical JSON of the answers that the asker expects: ``[[answer, probability], …]``; empty for none.
        show_prediction: whether those who answer see it.
    """

    handle: Number
    key: bytes
    name: str
    iteration: Signed
    question: str
    form: str
    choices: list[str] = []
    show: str = "[]"
    fingerprint: bytes = b""
    on_change: str = "ask"
    assignees: list[str] = []
    deadline: Seconds = 0.0
    default: str = ""
    deps: list[Number] = []
    condition: Number = 0
    reserve: Resources | None = None
    linger: Seconds = 5.0
    parent: Number = 0
    predict: str = ""
    show_prediction: bool = False


class Answer(Message, tag=9, frozen=True):
    """Answer a request. ``value`` is JSON text, or plain text that is one of the choices.

    ``generation``: of the question that its author saw; an answer to another one does not count.
    """

    token: Number
    checkpoint: Number
    generation: Number
    value: str
    comment: str = ""
    channel: str = "python"
    by: str = ""


class Withdraw(Message, tag=10, frozen=True):
    """Take a request back, or only end its reservation."""

    handle: Number
    reservation_only: bool = False


class Flush(Message, tag=11, frozen=True):
    """Ask for :class:`Flushed` once everything sent before is on disk."""

    token: Number


class Fetch(Message, tag=12, frozen=True):
    """Ask again for the outcomes of finished tasks, as :class:`Outcomes`."""

    runs: list[Run]


class Query(Message, tag=13, frozen=True):
    """Ask for something to look at; answered by :class:`Reply`. ``arguments`` is a JSON object."""

    token: Number
    what: str
    arguments: str = "{}"


class Bye(Message, tag=14, frozen=True):
    """Leave. ``on_exit`` overrides what was said at the beginning; answered by :class:`Closed`."""

    on_exit: str
    reason: str = ""


class Watch(Message, tag=15, frozen=True):
    """Ask to be told, by :class:`HeldOutcomes`, when these tasks ended while their condition is undecided.

    What is held already is told at once. Their final outcomes come as all others do.
    """

    runs: list[Run]


class Extend(Message, tag=16, frozen=True):
    """Move a request's deadline to ``seconds`` from now, 0 for none; answered by :class:`Reply`.

    ``generation``: of the question that is meant, 0 for the present one.
    """

    token: Number
    checkpoint: Number
    seconds: Seconds
    by: str = ""
    generation: Number = 0


class Lend(Message, tag=17, frozen=True):
    """Lend the cores of a running attempt, because it waits, or want them back.

    Answered by :class:`Reply` once it is so: cores that are wanted back may have to be cleared first. An attempt that
    does not run (any more) lends nothing, and is answered at once.
    """

    token: Number
    task: Number
    epoch: Number
    run: Number
    on: bool


# --- hub -> client ----------------------------------------------------------------------------------------------------


class Welcome(Message, tag=30, frozen=True):
    """The session is open.

    Attributes:
        incarnation: names this client's tasks.
        folder: the session's folder.
        hub_pid, hub_started: so that the client notices when the hub is gone.
        epoch: of the owner.
        resumed: how many tasks and answers of earlier incarnations are there.
    """

    incarnation: int
    folder: str
    hub_pid: int
    hub_started: int
    epoch: int
    resumed: int = 0


class Refused(Message, tag=31, frozen=True):
    """Something cannot be had. ``code`` is the name of the error class to raise; ``token`` 0 ends the connection."""

    code: str
    message: str
    token: int = 0


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The end of one task. ``payload`` is opaque to the hub: a packed value or an ``ExecutableResult``.

    ``host``, ``began`` and ``ended`` (seconds since 1970) speak of the deciding attempt; ``reused`` says that it
    comes from an earlier incarnation.
    """

    task: int
    state: State
    epoch: int = 0
    run: int = 0
    payload: bytes = b""
    failure: Failure | None = None
    host: str = ""
    began: float = 0.0
    ended: float = 0.0
    reused: bool = False


class Outcomes(Message, tag=32, frozen=True):
    """Ends of tasks, on disk before they are told."""

    outcomes: list[Outcome]


class Flushed(Message, tag=33, frozen=True):
    """Everything before the :class:`Flush` with this token is on disk."""

    token: int


class Acknowledged(Message, tag=34, frozen=True):
    """Everything up to this many frames of this client is on disk, so it need not be kept for a resend."""

    frames: int


class PilotUpdate(Message, tag=35, frozen=True):
    """State of a pilot."""

    token: int
    pilot: int
    state: PilotState
    message: str = ""
    nodes: list[NodeInventory] = []


class CheckpointUpdate(Message, tag=36, frozen=True):
    """State of a request.

    Attributes:
        handle: the asking client's id, 0 when the receiver did not ask.
        checkpoint: its number in the session.
        answer: canonical JSON, empty while open.
        record: JSON object with ``by, channel, comment, answered_at, opened_at``; of one that is asked again also
            ``changed``, what about it did, and ``earlier``, what became of the generations before.
        generation: of the question, which an answer has to name.
        again: why people are asked again, in words; only when this very asking made it so.
    """

    handle: int
    checkpoint: int
    state: CheckpointState
    answer: str = ""
    record: str = "{}"
    generation: Number = 1
    again: str = ""


class ConditionUpdate(Message, tag=37, frozen=True):
    """A condition of this client's was decided."""

    condition: int
    truth: Truth


class Reply(Message, tag=38, frozen=True):
    """What a :class:`Query` asked for: JSON text."""

    token: int
    body: str


class Closed(Message, tag=39, frozen=True):
    """The hub let the client go."""

    message: str = ""


class Reconnect(Message, tag=40, frozen=True):
    """The hub does not know this peer (it was restarted): say hello again."""


class Unwritten(Message, tag=107, frozen=True):
    """Nothing of the session can be written, so results wait; with an empty ``reason``, it can again."""

    reason: str


class HeldOutcomes(Message, tag=41, frozen=True):
    """Values of watched tasks that count only once their condition is true; on disk before they are told."""

    outcomes: list[Outcome]


# --- agent -> hub -----------------------------------------------------------------------------------------------------


class AgentHello(Message, tag=50, frozen=True):
    """An agent reports for duty, or again after a lost hub.

    Attributes:
        session, pilot: which.
        epoch: highest owner epoch it has seen; a hub with a lower one is refused.
        pid, started, host: of the agent.
        nodes: what it has.
        known: ``(task, epoch, run)`` of attempts that it holds, in any state.
        window: how many unfinished tasks of one (tier, shape) it wants to hold.
        binding: number of this agent's life, from its first :class:`AgentWelcome`; 0 before that.
        term: of its office in a pilot of many nodes; one that is lower than another agent's of the pilot is refused.
        job: of the batch system; empty for a local pilot.
        expected: how many nodes the pilot is to have; 0 for those that it has.
        ran: tasks that ran when the agent before it, and all below it, died; in the first one of its life only.
        acted: ``(task, epoch, run)`` of what acts outside and has begun, its end not acknowledged; None: not known.
    """

    session: str
    pilot: Number
    epoch: Number
    pid: Number
    started: Number
    host: str
    nodes: list[NodeInventory]
    binding: Number = 0
    known: list[tuple[Number, Number, Number]] = []
    window: Number = 4096
    term: Number = 0
    job: str = ""
    expected: Number = 0
    ran: list[Number] = []
    acted: list[tuple[Number, Number, Number]] | None = None


class AgentNodes(Message, tag=87, frozen=True):
    """A node was lost or came back: what the agent has now."""

    nodes: list[NodeInventory]


class AgentAlive(Message, tag=88, frozen=True):
    """The agent of a batch job lives, and has nothing to say; the hub cannot see its process."""


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What became of one attempt.

    ``state`` is RUNNING, DONE, FAILED, CANCELED, or QUEUED for an attempt that is given back (``failure`` says why).
    ``core_set`` holds the CPU numbers it ran on, ``node`` their node. ``unpublished``: it ran speculatively, and what
    it left in this folder is still to be put in place, by :class:`Publish`, once it counts; empty when that is nothing.
    Of one that did not succeed: it ran in this folder and not where a needed attempt would have.
    """

    task: Number
    epoch: Number
    run: Number
    state: State
    payload: bytes = b""
    failure: Failure | None = None
    node: Number = 0
    core_set: list[Number] = []
    began: float = 0.0
    ended: float = 0.0
    unpublished: str = ""


class Reports(Message, tag=51, frozen=True):
    """Reports, numbered so that the hub can acknowledge them once they are on disk."""

    sequence: Number
    reports: list[Report]


class AgentReply(Message, tag=52, frozen=True):
    """Answer to :class:`AgentQuery`: JSON text."""

    token: Number
    body: str


class AgentBye(Message, tag=53, frozen=True):
    """The agent ends: walltime, stop, or a fault. Everything not reported as finished is unfinished."""

    reason: str


class AgentLog(Message, tag=54, frozen=True):
    """Events worth keeping: a missed preemption bound, a dead worker, a lost node. Each is a JSON object."""

    events: list[str]


class Published(Message, tag=55, frozen=True):
    """A :class:`Publish` was done, or could not be, and why.

    Of an executable it says where things are now: ``outputs`` as in ``ExecutableResult``, ``sandbox`` the folder that
    was asked for, empty when none was.
    """

    task: Number
    ok: bool
    message: str = ""
    outputs: list[str] = []
    sandbox: str = ""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of time of some cores of one node, measured (``docs/specs/ledger.md``).

    For each of its cores ``busy + overhead + idle + reserved = ended - began``, unless there was a fault. A stretch
    with a ``task`` belongs to that attempt alone, whose busy seconds are the last ones before ``ended``.

    Attributes:
        cores: CPU numbers.
        account, condition: what the busy seconds are booked on (:class:`~pilot_hitl.model.ledger.Account`).
        attempts: how many attempts ended in it.
        task, epoch, run: the attempt, when it has the stretch for itself; else 0.
        failed: that attempt ended badly; whether something used that is for the hub to say.
    """

    node: Number
    cores: list[Number]
    began: float
    ended: float
    busy: float
    overhead: float
    idle: float
    reserved: float
    account: Number
    condition: Number = 0
    attempts: Number = 0
    task: Number = 0
    epoch: Number = 0
    run: Number = 0
    failed: bool = False


class OpenSpan(msgspec.Struct, frozen=True, array_like=True):
    """What some cores do that is in no :class:`Span` yet.

    Attributes:
        since, until: ``until`` is 0 for what goes on.
        what: ``idle``, ``reserved``, ``overhead`` or ``busy``.
        account, condition, task: of what makes them busy, as far as is known now.
    """

    node: Number
    cores: list[Number]
    since: float
    until: float
    what: str
    account: Number
    condition: Number = 0
    task: Number = 0


class Spans(Message, tag=57, frozen=True):
    """The ledger of one life of an agent, continued; acknowledged like :class:`Reports`, and numbered with them.

    Attributes:
        binding: of this life.
        job: when the pilot's first process began, ``began`` when this agent's did; seconds since 1970, by the kernel.
        at: up to when everything is told, in ``spans`` or in ``open``.
        final: nothing follows.
        cores: of all nodes together.
        spans: what ended since the message before.
        open: all that goes on at ``at``; replaces what was told before.
        faults, fault_s: contradictions between timestamps in this life so far, and their seconds.
    """

    sequence: Number
    binding: Number
    job: float
    began: float
    at: float
    final: bool
    cores: Number
    spans: list[Span]
    open: list[OpenSpan]
    faults: Number = 0
    fault_s: float = 0.0


# --- hub -> agent -----------------------------------------------------------------------------------------------------


class AgentWelcome(Message, tag=70, frozen=True):
    """The hub took the agent in.

    ``epoch`` is the owner's; ``binding`` numbers this agent's life and is the first half of its attempts' numbers;
    ``hub_pid`` and ``hub_started`` as in :class:`Welcome`.
    """

    epoch: int
    binding: int
    hub_pid: int
    hub_started: int


class Dispatch(Message, tag=71, frozen=True):
    """Tasks ``first … first+count-1`` are bound to this agent. Fields as in :class:`Submit`.

    Attributes:
        epoch, run: number of the attempt, the same for all of them.
        inputs: packed values of the dependencies, shared by all of them, as ``(task, value)``.
        service: replicas of a service.
        kind: number of what people call this work; scores go by it.
        parent: the task inside which they were submitted, 0 for a script.
        kept: the checkpoint whose reserved slots they may use, 0 for none.
    """

    first: int
    count: int
    template: int
    shape: Shape
    epoch: int
    run: int
    bodies: bytes
    priority: int = 0
    backfill: bool = False
    condition: int = 0
    inputs: list[tuple[int, bytes]] = []
    service: bool = False
    kind: int = 0
    parent: int = 0
    kept: int = 0


class AgentTemplate(Message, tag=72, frozen=True):
    """As :class:`PutTemplate`; sent before the first task that uses it."""

    template: int
    blob: bytes


class RunApart(Message, tag=105, frozen=True):
    """Tasks that follow shall run below processes that run nothing else: one of them may kill what runs it."""

    tasks: list[Number]


class AgentCondition(Message, tag=73, frozen=True):
    """State and score of a condition; sent before the first task that uses it, and whenever it changes.

    ``kinds`` overrides the score for tasks of single kinds (:attr:`Dispatch.kind`).

    TRUE makes its tasks needed at once; FALSE ends them, within their grace.
    """

    condition: int
    truth: Truth
    score: float = 0.0
    kinds: dict[int, float] = {}


class CancelAttempts(Message, tag=74, frozen=True):
    """End attempts, given as ``(first, count)`` runs of tasks; each is reported CANCELED or as it really ended."""

    runs: list[tuple[int, int]]
    reason: str = ""


class Reserve(Message, tag=75, frozen=True):
    """Keep these resources for the continuation of a checkpoint: lent to preemptible tiers only. None ends it.

    ``lend`` False: lent to nobody.

    Sent again, it replaces amount and ``conditions``: needed tasks under one of these may use the slots.
    """

    checkpoint: int
    resources: Resources | None
    conditions: list[int] = []
    lend: bool = True


class AgentAck(Message, tag=76, frozen=True):
    """Reports up to this sequence number are on disk."""

    sequence: int


class AgentQuery(Message, tag=77, frozen=True):
    """Ask for something to look at: ``explain``, ``processes``, ``status``."""

    token: int
    what: str
    arguments: str = "{}"


class AgentStop(Message, tag=78, frozen=True):
    """End. ``drain`` lets running tasks finish first; else they are given back as unfinished."""

    drain: bool = False
    reason: str = ""


class Publish(Message, tag=79, frozen=True):
    """Make the outside effects of a committed attempt real; answered by :class:`Published`, may be asked again.

    What lies in its own folder ``sandbox`` appears where it was asked for (``body`` of an executable, template of a
    call, else the script's folder for a call), and outputs are staged. ``body`` is empty for a call.
    """

    task: int
    epoch: int
    run: int
    template: int
    body: bytes
    sandbox: str


class AgentLend(Message, tag=80, frozen=True):
    """As :class:`Lend`; answered by :class:`AgentReply` with the same token."""

    token: int
    task: int
    epoch: int
    run: int
    on: bool


FromClient = (
    Hello
    | PutTemplate
    | PutCondition
    | Submit
    | Cancel
    | SubmitPilot
    | CancelPilot
    | Ask
    | Answer
    | Withdraw
    | Flush
    | Fetch
    | Query
    | Bye
    | Watch
    | Extend
    | Lend
)
FromAgent = AgentHello | AgentAlive | AgentNodes | Reports | AgentReply | AgentBye | AgentLog | Published | Spans
ToHub = FromClient | FromAgent
ToClient = (
    Welcome
    | Refused
    | Outcomes
    | Flushed
    | Acknowledged
    | PilotUpdate
    | CheckpointUpdate
    | ConditionUpdate
    | Reply
    | Closed
    | Reconnect
    | HeldOutcomes
    | Unwritten
)
ToAgent = (
    AgentWelcome
    | AgentTemplate
    | RunApart
    | AgentCondition
    | Dispatch
    | CancelAttempts
    | Reserve
    | AgentAck
    | AgentQuery
    | AgentStop
    | Publish
    | AgentLend
    | Refused
    | Reconnect
)
