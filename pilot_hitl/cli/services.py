"""``pilot-hitl service``: endpoints of a session that stay loaded."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pilot_hitl.cli._group import CommandGroup
from pilot_hitl.cli._home import SESSION_VARIABLE, JsonOption, SessionOption, home, the_session
from pilot_hitl.cli._show import Row, put, put_json, put_rows
from pilot_hitl.cli._tool import connect
from pilot_hitl.model.canonical import Json

app = typer.Typer(
    cls=CommandGroup, no_args_is_help=True, add_completion=False, help="Endpoints of a session that stay loaded."
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the service.")]
_COLUMNS = ("session", "service", "state", "ready", "of", "handler", "max_batch", "message")
_REPLICAS = (
    "replica", "state", "task", "host", "pid", "starts", "requests", "communication_ms", "relayed_ms", "service_ms",
    "inference_ms", "launch_s", "init_s", "publish_s", "message",
)  # fmt: skip


@app.command("list")
def list_services(
    *,
    session: Annotated[
        str, typer.Option("--session", "-s", help="Only this session.", envvar=SESSION_VARIABLE, show_default="all")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List services."""
    name = the_session(session) if session else ""
    with connect(home(), name) as tool:
        found = tool.query("services", session=name or None)
    if as_json:
        put_json(found)
        return
    rows: list[Row] = [{**row, "of": _count(row)} for row in _rows(found)]
    put_rows(rows, _COLUMNS, "No services.")


@app.command()
def show(name: NameArgument, *, session: SessionOption = "", as_json: JsonOption = False) -> None:
    """Show a service and its replicas, with what they measured."""
    where = the_session(session)
    with connect(home(), where) as tool:
        found = tool.query("service", session=where, name=name)
    if as_json:
        put_json(found)
        return
    assert isinstance(found, dict)  # that is what the hub answers
    put(f"{name} of {where}: {found['state']} {found['message'] or ''}".rstrip())
    put_rows([_row(row) for row in _rows(found["replicas"])], _REPLICAS, "")


@app.command()
def stop(
    name: NameArgument,
    *,
    session: SessionOption = "",
    now: Annotated[bool, typer.Option("--now", help="Do not let the replicas finish what waits.")] = False,
    as_json: JsonOption = False,
) -> None:
    """End a service; requests that wait at its replicas are answered first."""
    where = the_session(session)
    with connect(home(), where) as tool:
        found = tool.stop_service(name, drain=not now, reason="it was stopped with pilot-hitl service stop")
    if as_json:
        put_json(found)
        return
    put(f"service {name} of {where} is being stopped")


@app.command()
def request(
    name: NameArgument,
    item: Annotated[str, typer.Argument(metavar="ITEM", help="What the handler gets: JSON, or else plain text.")],
    *,
    session: SessionOption = "",
    method: Annotated[str, typer.Option("--method", help="Of the handler; default the handler itself.")] = "",
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds.")] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Send one request and print the answer."""
    from pilot_hitl.session import Session

    where = the_session(session)
    try:
        value = json.loads(item)
    except ValueError:
        value = item
    with Session(where, role="observer", on_exit="detach", home=home()) as opened:
        answer = opened.service(name).request(value, method=method, timeout=timeout).result(timeout + 5)
    if as_json:
        put_json({"session": where, "service": name, "answer": _plain(answer)})
        return
    put(str(answer))


def _plain(value: object) -> Json:
    """Return a value as JSON has it; arrays as lists, anything else as text."""
    as_list = getattr(value, "tolist", None)
    listed = as_list() if callable(as_list) else value
    try:
        plain: Json = json.loads(json.dumps(listed))
    except (TypeError, ValueError):
        return str(value)
    return plain


def _rows(found: Json) -> list[Row]:
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _count(row: Row) -> int:
    replicas = row.get("replicas")
    return len(replicas) if isinstance(replicas, list) else 0


def _row(replica: Row) -> Row:
    metrics = replica.get("metrics")
    facts: dict[str, Json] = dict(replica)
    if isinstance(metrics, dict):
        facts["requests"] = metrics.get("requests", 0)
        for part in ("communication", "relayed", "service", "inference"):
            figures = metrics.get(part)
            facts[f"{part}_ms"] = figures.get("p50_ms") if isinstance(figures, dict) and figures["count"] else None
        bootstrap = metrics.get("bootstrap")
        if isinstance(bootstrap, dict):
            facts |= {key: round(value, 3) for key, value in bootstrap.items() if isinstance(value, float)}
    return facts
