"""Which pilots a script may name, and whether any could hold what it asks for."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pilot_hitl import errors
from pilot_hitl.model.resources import fits, largest
from pilot_hitl.model.states import PilotState

if TYPE_CHECKING:
    from pilot_hitl._client import Client
    from pilot_hitl.model.resources import Shape


def pilot_number(client: Client, name: str, site: str) -> int:
    """Return the number of the pilot that a description names by name or number; 0 for any, also any of a site.

    Raises:
        DescriptionError: there is no such pilot in this session, or none of this site.
    """
    if not (name or site):
        return 0
    for pilot in client.pilots:
        if (not name or name in (pilot.name, str(pilot.number or ""))) and site in ("", pilot.description.site):
            return pilot.wait_number() if name else 0
    if name.isdecimal():
        return _known_number(client, int(name), site)
    if not name and client.others:
        return 0  # Somebody else's pilots: the hub knows where they are.
    if name and client.others:
        return _named_elsewhere(client, name, site)
    raise _unknown(client, name, site)


def _named_elsewhere(client: Client, name: str, site: str) -> int:
    """Return the number of a pilot of this name that another client of the session submitted; one that lives first."""
    rows = client.query("pilots", {"session": client.name})
    same = [row for row in rows if name in (row["name"], f"pilot.{row['pilot']}")]
    if not same:
        raise _unknown(client, name, site)
    return int(max(same, key=lambda row: (not PilotState[row["state"]].final, row["pilot"]))["pilot"])


def _known_number(client: Client, number: int, site: str) -> int:
    """Return the number of a pilot that this script did not submit itself, or submits at this moment."""
    for pilot in client.pilots:
        with suppress(errors.PilotHitlError):  # one that was refused has no number
            pilot.wait_number()  # it may be this one, and the hub has not said yet
    if number in (0, *client.others, *(pilot.number for pilot in client.pilots)):
        return number
    rows = client.query("pilots", {"session": client.name})
    if any(number in (row["pilot"], row["lineage"]) for row in rows):
        return number  # it ended, and perhaps another one has succeeded it
    raise _unknown(client, str(number), site)


def _unknown(client: Client, name: str, site: str) -> errors.DescriptionError:
    known = [repr(each.name) for each in client.pilots] + [repr(str(number)) for number in client.others]
    return errors.DescriptionError(
        f"pilot={name!r}, site={site!r}: no such pilot was submitted (there are: {', '.join(known) or 'none'})"
    )


def check_fits(client: Client, shape: Shape, pilot: int, site: str = "") -> None:
    """Check that some pilot that may run a task could hold it; while a pilot's size is not known, it could.

    Raises:
        CannotFit: none could, whatever is running.
    """
    offers = {
        each.number or -each.token: each.offer()
        for each in client.pilots
        if not each.state.final and site in ("", each.description.site)
    }
    offers |= {each.pilot: each.nodes for each in client.others.values() if not each.state.final}
    candidates = [nodes for number, nodes in offers.items() if pilot in (0, number)]
    if candidates and not any(not nodes or fits(shape, nodes) for nodes in candidates):
        most = largest(shape, (node for nodes in candidates for node in nodes))
        raise errors.CannotFit(
            f"no pilot of session {client.name!r} could ever hold {shape.describe()}: {most}; ask for less, or "
            "submit a larger pilot first"
        )
