"""From what a script asks to what travels: keys, forms, predictions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from pilot_hitl import _templates, errors
from pilot_hitl._forms import AnswerType, answer_type, plain
from pilot_hitl._places import Ground
from pilot_hitl._shows import Shown
from pilot_hitl._staging import Staging
from pilot_hitl.model import checks
from pilot_hitl.model.canonical import Json, canonical, not_json
from pilot_hitl.model.conditions import Term
from pilot_hitl.model.resources import Resources
from pilot_hitl.model.states import Truth
from pilot_hitl.wire import messages as m
from pilot_hitl.wire.codec import TO_HUB, FrameError

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl.gates import Checkpoint

LIKELY = 0.5
"""How likely a predicted answer is when nobody says: as likely as not."""
MAX_TEXT = 4 << 20
"""Characters of a question with its choices, form and all that it shows; files are shown beside."""
MAX_NAME = 200
"""Characters of a checkpoint's name: it is a word of lists and of commands."""


class CheckpointRequest(TypedDict, total=False):
    """What ``checkpoint(name, …)`` takes beside the name; all of it may be left out.

    Attributes:
        question: Markdown.
        choices: JSON values, one of which is the answer.
        form: what the answer must be, instead of choices: a JSON Schema, or a dataclass, TypedDict, msgspec.Struct or
            pydantic model, whose instance ``result()`` returns then. Without both any text is an answer.
        iteration: tells apart checkpoints of one name, as in a loop.
        show: text (Markdown), dicts and lists (tables), ``pathlib.Path`` (image, file), matplotlib figures, futures.
        assignees: who may answer; anybody who may write to the session when left out.
        deadline: seconds, timedelta or text such as ``"8h"`` after it opens.
        default: the answer at the deadline, which has to be given as well.
        reserve: what the continuation will want.
        on_change: when an earlier run asked differently: ``"ask"`` again (default), ``"keep"`` the answer, ``"error"``.
        linger: seconds that the reservation outlives the answer. Default 5.
        predict: the answer that you expect: a value; a list of ``(value, probability)``; or, for choices, a dict
            ``{choice: probability}``. Used by ``branch()`` without arguments, and to order speculation.
        show_prediction: whether those who answer see it. Default False.
        wait: ``"stay"`` (default) or ``"exit"``: when the answer is asked for and not there, the script ends with exit
            code 75, to be run again once somebody answered.
    """

    question: str
    choices: Sequence[Json]
    form: dict[str, Json] | type[Any]
    iteration: int | None
    show: Sequence[object]
    assignees: Sequence[str]
    deadline: str | float | timedelta | None
    default: Any
    reserve: Resources | None
    on_change: Literal["ask", "keep", "error"]
    linger: float
    predict: Any
    show_prediction: bool
    wait: Literal["stay", "exit"]


class Prediction(NamedTuple):
    """An answer that is expected, and how likely it is."""

    value: Any
    probability: float


class Form(NamedTuple):
    """What may be answered: the schema, the choices as canonical JSON, and the Python type if one was given."""

    schema: Json
    choices: list[str]
    type: AnswerType | None

    def make(self, value: Json) -> Any:
        """Return an answer as the script wants it."""
        return value if self.type is None else self.type.make(value)

    def check(self, value: Any, what: str) -> Json:
        """Return a value as JSON when it may be answered.

        Raises:
            DescriptionError: it may not; the message begins with ``what``.
        """
        from pilot_hitl.inbox import forms

        try:
            text = canonical(plain(value))
            text.encode()
            made: Json = json.loads(text)
            forms.validate(made, self.schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise errors.DescriptionError(f"{what}: an answer is a JSON value: {not_json(error)}") from error
        except errors.AnswerRefused as error:
            raise errors.DescriptionError(f"{what}: {checks.shown(value)} can never be answered: {error}") from error
        return forms.completed(made, self.schema)


TEXT = Form({"type": "string"}, [], None)
"""What may be answered when nobody says."""


def ask(
    client: Client,
    terms: frozenset[Term],
    ground: Ground,
    staging: Staging | None,
    name: str,
    request: CheckpointRequest,
) -> Checkpoint:
    """Ask people, under these terms; see :meth:`Scope.checkpoint`."""
    from pilot_hitl.gates import Checkpoint

    _check_names(name, request)
    asks = ground.asks
    iteration = _iteration(request.get("iteration"))
    asker = "task" if asks.parent else "script"
    key = asks.keys.named(b"checkpoint", asker, name, "" if iteration is None else str(iteration))
    form = _form(request)
    if form.schema is False:
        raise errors.DescriptionError("form: nothing satisfies the schema false, so nobody could answer")
    predictions = _predictions(request, form)
    shown = Shown(client, _several(request.get("show", ()), "show"))
    client.check_declared([future._id for future in shown.futures], staging)
    question = _text(request.get("question", ""), "question") or name
    everything = terms.union(*(future.condition for future in shown.futures)) if shown.futures else terms
    client.conditions.check(everything)
    message = m.Ask(
        handle=client.new_handle(),
        key=key,
        name=name,
        iteration=iteration or 0,
        question=question,
        form=canonical(form.schema),
        choices=form.choices,
        show=json.dumps(shown.items),
        fingerprint=_fingerprint(shown, question, form),
        on_change=_checked(_ON_CHANGE, "on_change", request.get("on_change", "ask")),
        assignees=_names(request.get("assignees", ())),
        deadline=_deadline(request.get("deadline")),
        default=_default(request, form),
        deps=[future._id for future in shown.futures],
        condition=client.condition(everything, staging),
        reserve=_reserve(request.get("reserve")),
        linger=_templates.seconds(request.get("linger", 5.0), "linger"),
        parent=asks.parent,
        predict=canonical([[each.value, each.probability] for each in predictions]) if predictions else "",
        show_prediction=_checked(checks.flag, "show_prediction", request.get("show_prediction", False)),
    )
    _check_types(message)
    _check_size(message)
    leaves = _checked(_WAIT, "wait", request.get("wait", "stay")) == "exit"
    if leaves and client.leave is None:
        raise errors.DescriptionError(
            'wait="exit" is for scripts: inside a task leave it out, and result() lends the cores of the task meanwhile'
        )
    checkpoint = Checkpoint(client, message, asks, form, predictions, iteration=iteration, leaves=leaves)
    checkpoint.inside(everything, shown.futures)
    if client.truth(everything) is Truth.FALSE:
        why = client.conditions.why_false(everything)
        checkpoint.fail(errors.CheckpointWithdrawn(f"checkpoint {name!r} was not asked: {why}"))
        client.checkpoints[message.handle] = checkpoint
        return checkpoint
    return client.ask(checkpoint, message, asks, staging)


def _check_names(name: str, request: CheckpointRequest) -> None:
    unknown = set(request) - set(CheckpointRequest.__annotations__)
    if unknown:
        known = ", ".join(CheckpointRequest.__annotations__)
        raise errors.DescriptionError(f"checkpoint: there is no {', '.join(sorted(unknown))}; known are {known}")
    if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable():
        short = repr(name) if len(repr(name)) < MAX_NAME else f"{repr(name)[:40]}…"
        raise errors.DescriptionError(
            f"checkpoint: {short} is not a name: write up to {MAX_NAME} printable characters; what people shall read "
            "goes into question="
        )


def _check_types(message: m.Ask) -> None:
    """Refuse what is of a wrong type before anything of the request is made known."""
    try:
        TO_HUB.check(message)
    except FrameError as error:
        raise errors.DescriptionError(f"checkpoint {message.name!r}: {error}") from error


def _check_size(message: m.Ask) -> None:
    """Refuse what nobody could read in a list or a file of requests."""
    parts = {
        "question": len(message.question),
        "choices": sum(map(len, message.choices)),
        "form": 0 if message.choices else len(message.form),
        "show": len(message.show),
        "default": len(message.default),
    }
    if sum(parts.values()) > MAX_TEXT:
        what, size = max(parts.items(), key=lambda each: each[1])
        raise errors.DescriptionError(
            f"checkpoint {message.name!r}: {what} has {size:,} characters, and all of a question together may have "
            f"{MAX_TEXT:,}: write it into a file, and show the file with show=[Path(…)]"
        )


def _text(given: str, what: str) -> str:
    try:
        given.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise errors.DescriptionError(f"{what}: {checks.shown(given)} is not text") from error
    return given


def _fingerprint(shown: Shown, question: str, form: Form) -> bytes:
    try:
        return shown.fingerprint(question, form.schema)
    except UnicodeEncodeError as error:
        raise errors.DescriptionError(f"show, form: there is text that is not Unicode: {error}") from error


def _deadline(given: str | float | timedelta | None) -> float:
    if given is None:
        return 0.0
    after = _templates.seconds(given, "deadline")
    if not after:
        raise errors.DescriptionError(
            f"deadline: {given!r} would be over when it opens: write how long people have, or None for no deadline"
        )
    return after


def _several(given: Any, what: str) -> list[Any]:
    """Return a sequence as a list; a text, one thing, or what has no order is refused."""
    if isinstance(given, str | bytes | Mapping | AbstractSet) or not isinstance(given, Iterable):
        raise errors.DescriptionError(f"{what}: write a list of them, in order, not {type(given).__name__}")
    return list(given)


def _form(request: CheckpointRequest) -> Form:
    from pilot_hitl.inbox import forms

    choices = request.get("choices")
    if choices is not None:
        if request.get("form") is not None:
            raise errors.DescriptionError("checkpoint: give choices or form, not both")
        several = _several(choices, "choices")
        schema = forms.form_of(several)
        return _of_choices(canonical(schema), tuple(canonical(choice) for choice in several))
    given = request.get("form")
    if given is None:
        return TEXT
    made = answer_type(given)
    wanted: Any = given if made is None else made.schema
    forms.check_form(wanted)
    return Form(wanted, [], made)


@lru_cache(maxsize=256)
def _of_choices(schema: str, choices: tuple[str, ...]) -> Form:
    """Return the form of these choices: the same one each time, since a loop asks the same question often."""
    return Form(json.loads(schema), list(choices), None)


def _default(request: CheckpointRequest, form: Form) -> str:
    default = request.get("default")
    if default is None:
        return ""
    if request.get("deadline") is None:
        raise errors.DescriptionError(
            "default: it is taken when the deadline passes, and there is none: add deadline='8h', or leave default "
            "out, and say with predict= which answer you expect"
        )
    return canonical(form.check(default, "default"))


def _predictions(request: CheckpointRequest, form: Form) -> Sequence[Prediction]:
    """Return what is expected, likeliest first.

    Raises:
        DescriptionError: it cannot be answered, or is no probability, or they sum above 1.
    """
    given = request.get("predict")
    if given is None:
        return ()
    found: list[Prediction] = []
    for value, given_part in _pairs(given, form):
        part = probability(f"predict: probability of {checks.shown(value)}", given_part)
        found.append(Prediction(form.check(value, "predict"), part))
    texts = [canonical(each.value) for each in found]
    if len(set(texts)) < len(texts):
        raise errors.DescriptionError("predict: an answer is there twice")
    total = sum(each.probability for each in found)
    if total > 1 + 1e-9:
        raise errors.DescriptionError(f"predict: the probabilities sum to {total:g}, above 1")
    return sorted(found, key=lambda each: -each.probability)


def _pairs(given: Any, form: Form) -> list[tuple[Any, Any]]:
    if form.choices and isinstance(given, Mapping) and not _is_choice(given, form):
        return list(given.items())
    if isinstance(given, list) and given and all(isinstance(each, tuple) and len(each) == 2 for each in given):
        return [(value, probability) for value, probability in given]
    return [(given, LIKELY)]


def _is_choice(value: Any, form: Form) -> bool:
    try:
        return canonical(value) in form.choices
    except (TypeError, ValueError):
        return False


def _names(assignees: object) -> list[str]:
    names = [assignees] if isinstance(assignees, str) else _several(assignees, "assignees")
    return [_checked(_ASSIGNEE, "assignees", each) for each in names]


def _iteration(given: object) -> int | None:
    return None if given is None else _checked(_ITERATION, "iteration", given)


def _reserve(given: object) -> Resources | None:
    if given is None or isinstance(given, Resources):
        return given
    raise errors.DescriptionError(f"reserve: {checks.shown(given)} is no Resources; write ph.Resources(cores=8)")


_ON_CHANGE = checks.one_of("ask", "keep", "error")
_WAIT = checks.one_of("stay", "exit")
_ITERATION = checks.whole(-(1 << 31), (1 << 31) - 1)
_ASSIGNEE = checks.filled(checks.line, "name who may answer")


def _checked(check: checks.Check, what: str, given: object) -> Any:
    try:
        return check(what, given)
    except ValueError as error:
        raise errors.DescriptionError(str(error)) from error


def probability(what: str, given: object) -> float:
    """Return how likely something is said to be.

    Raises:
        DescriptionError: it is no number between 0 and 1.
    """
    return float(_checked(_PART, what, given))


_PART = checks.number(0, 1)
