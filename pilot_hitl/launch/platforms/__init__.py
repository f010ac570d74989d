"""What is known of machines: our ``*.toml`` beside this file, the user's own, and RADICAL-Pilot's, read as files.

A platform fills in what a :class:`~pilot_hitl.model.descriptions.PilotDescription` leaves open. What a machine really
has is always asked on its nodes; nothing here is trusted further than a default.
"""

from __future__ import annotations

import importlib.util
import json
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import msgspec

from pilot_hitl.errors import UnknownPlatform

LOCAL = ("local", "localhost", "local.localhost")
"""Names of the machine where the hub runs."""
RADICAL_USER = Path(".radical/pilot/configs")


class Platform(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine, or one of its partitions.

    Attributes:
        name: by which ``PilotDescription.resource`` asks for it.
        description: one line for people.
        system: batch system, lower case; this release submits to ``slurm``.
        source: the file that this was read from.
        sources: where the facts come from.
        checked: when somebody looked at the sources last.
        queue, project, qos, constraint: used when the description leaves them open.
        exclusive: the site gives whole nodes only.
        requires: attributes of the description that the site insists on.
        cores_per_node, gpus_per_node, memory_per_node: of a node; 0: not known here, or none. MB.
        gpu_option: how GPUs are asked for, with ``{}`` for how many on each node.
        launchers: how many launchers (``srun``, ``mpirun``) may run in a job at a time.
        launcher: how the site wants programs of many ranks started; for people.
        system_args: further arguments for the batch system.
        pre_launch: shell lines of the job, before anything of ours starts.
        notes: what else people should know.
    """

    name: str
    description: str = ""
    system: str = "slurm"
    source: str = ""
    sources: list[str] = []
    checked: str = ""
    queue: str = ""
    project: str = ""
    qos: str = ""
    constraint: str = ""
    exclusive: bool = False
    requires: list[str] = []
    cores_per_node: int = 0
    gpus_per_node: int = 0
    memory_per_node: int = 0
    gpu_option: str = "--gres=gpu:{}"
    launchers: int = 100
    launcher: str = ""
    system_args: list[str] = []
    pre_launch: list[str] = []
    notes: str = ""


def find(name: str, home: Path | None = None) -> Platform:
    """Return a platform by its name.

    Args:
        name: as in ``PilotDescription.resource``.
        home: whose ``platforms/*.toml`` are looked at first.

    Raises:
        UnknownPlatform: nobody describes it, or its description cannot be read.
    """
    known, broken = {}, []
    for found in _ours(home):
        if isinstance(found, UnknownPlatform):
            broken.append(str(found))
            continue
        if found.name == name:
            return found
        known[found.name] = found
    for found in _radicals():
        if found.name == name:
            return found
        known[found.name] = found
    close = get_close_matches(name, [*known, *LOCAL[:1]], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "'pilot-hitl platforms list' shows all."
    raise UnknownPlatform(
        f"no platform {name!r} is known here; {hint} Any Slurm cluster can be used as resource='slurm', and a machine "
        f"of your own described in $PILOT_HITL_HOME/platforms/NAME.toml{''.join(f'; {why}' for why in broken)}"
    )


def every(home: Path | None = None) -> Iterator[Platform]:
    """Yield all platforms; where a name comes twice, the first one counts.

    Raises:
        UnknownPlatform: a file of ours or of the user cannot be read as a platform.
    """
    seen: set[str] = set()
    for found in (*_ours(home), *_radicals()):
        if isinstance(found, UnknownPlatform):
            raise found
        if found.name not in seen:
            seen.add(found.name)
            yield found


def _ours(home: Path | None) -> Iterator[Platform | UnknownPlatform]:
    """Yield the user's own platforms and ours; for a file that cannot be read as one, what is wrong with it."""
    folders = [Path(__file__).parent] if home is None else [home / "platforms", Path(__file__).parent]
    for folder in folders:
        for path in sorted(folder.glob("*.toml")):
            try:
                yield _from_toml(path)
            except UnknownPlatform as error:
                yield error


def _radicals() -> Iterator[Platform]:
    for path in _radical_files():
        yield from _from_radical(path)


def _from_toml(path: Path) -> Platform:
    try:
        facts = {"name": path.stem, **tomllib.loads(path.read_text("utf-8")), "source": str(path)}
        return msgspec.convert(facts, Platform)
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UnknownPlatform(f"{path} does not describe a platform: {error}") from error


# --- RADICAL-Pilot's own descriptions: read, never imported ---------------------------------------------------------


def _radical_files() -> Iterator[Path]:
    """Yield the user's and the installed package's ``resource_*.json``, the user's first."""
    yield from sorted((Path.home() / RADICAL_USER).glob("resource_*.json"))
    try:
        spec = importlib.util.find_spec("radical.pilot")
    except ModuleNotFoundError:  # there is no package radical at all
        return
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from sorted((Path(place) / "configs").glob("resource_*.json"))


class _RadicalPlatform(msgspec.Struct, frozen=True):
    """What we read of one of RADICAL-Pilot's platforms; all else is ignored."""

    description: str = ""
    notes: str = ""
    resource_manager: str = ""
    default_queue: str = ""
    cores_per_node: int = 0
    gpus_per_node: int = 0
    mem_per_node: int = 0
    mandatory_args: list[str] = []
    launch_methods: dict[str, object] = {}


def _from_radical(path: Path) -> list[Platform]:
    """Return the platforms of one file; one that does not read as such is left out: it is not ours to complain of."""
    try:
        lines = path.read_text("utf-8").splitlines()
        found = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("#")))
    except (OSError, ValueError):
        return []
    site = path.stem.removeprefix("resource_")
    platforms = []
    for key, value in found.items() if isinstance(found, dict) else []:
        try:
            radical = msgspec.convert(value, _RadicalPlatform, strict=False)
        except msgspec.ValidationError:
            continue
        if radical.resource_manager and f"{site}.{key}" not in LOCAL:
            platforms.append(_translated(f"{site}.{key}", radical, path))
    return platforms


def _translated(name: str, radical: _RadicalPlatform, path: Path) -> Platform:
    order = radical.launch_methods.get("order")
    return Platform(
        name=name,
        description=radical.description or "described by RADICAL-Pilot",
        system=radical.resource_manager.lower(),
        source=str(path),
        sources=["the installed package radical.pilot"],
        queue=radical.default_queue,
        requires=[argument for argument in radical.mandatory_args if argument in ("project", "queue")],
        cores_per_node=radical.cores_per_node,
        gpus_per_node=radical.gpus_per_node,
        memory_per_node=radical.mem_per_node,
        launcher=str(order[0]).lower() if isinstance(order, list) and order else "",
        notes=radical.notes,
    )


__all__ = ["LOCAL", "Platform", "every", "find"]
