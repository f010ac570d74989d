"""Which launch method starts a program: the one that was asked for, else by the program and what the node has."""

from __future__ import annotations

import msgspec

from pilot_hitl_agent.node.launchers.detect import Found, Tool
from pilot_hitl_agent.node.launchers.flavours import ANY, CRAY, INTEL, MPICH, OPEN_MPI, Flavour
from pilot_hitl_agent.node.launchers.gang import NoLauncherError

_NATURES = {"openmpi": OPEN_MPI, "mpich": MPICH, "intel": MPICH}
_CALLED = {OPEN_MPI: "an Open MPI program", MPICH: "an MPICH program", INTEL: "an Intel MPI program",
           CRAY: "a Cray MPICH program", ANY: "an MPI program", "": "no MPI program"}  # fmt: skip
OTHER = 'launcher="fork" starts plain processes without MPI'


class Choice(msgspec.Struct, frozen=True):
    """How to start a gang.

    Attributes:
        method: a key of :data:`.methods.METHODS`.
        tool: with which program.
        plugin: srun's ``--mpi``.
    """

    method: str
    tool: Tool
    plugin: str = ""

    @property
    def text(self) -> str:
        """What people write to get it."""
        return f"{self.method}:{self.plugin}" if self.plugin else self.method


LOCAL = Choice("local", Tool("shim", "", "shim"))
"""One process of this node starts all ranks."""


def starts_directly(asked: str, flavour: Flavour, *, staged: bool) -> bool:
    """Return whether each node starts its own ranks itself.

    It is the same on all nodes of a gang, because it depends on nothing that may differ between them. Staging is done
    once, so it needs somebody who is first.
    """
    return not staged and (asked == "fork" or (not asked and not flavour.mpi))


def choose(asked: str, flavour: Flavour, found: Found, *, nodes: int, slurm: bool, where: str) -> Choice:
    """Return how to start a program that is not started directly.

    Args:
        asked: ``""`` or what the task forces: a method, for srun also with its plug-in (``"srun:pmix"``).
        flavour: of the program.
        found: what the node has.
        nodes: how many the gang spans.
        slurm: whether the pilot is a job of Slurm.
        where: host, for the message.

    Raises:
        NoLauncherError: nothing that is there can do it.
    """
    method, _, plugin = asked.partition(":")
    if nodes == 1 and (method == "fork" or (not method and not flavour.mpi)):
        return LOCAL
    if method == "fork":
        raise NoLauncherError(
            f'launcher="fork": on {nodes} nodes nobody is there to stage files before the first rank; '
            + _offer(found, slurm=slurm)
        )
    if not method:
        return _by_what_is_there(flavour, found, nodes=nodes, slurm=slurm, where=where)
    if method == "srun":
        return _srun(flavour, found, plugin, slurm=slurm, where=where)
    if method in ("mpirun", "mpiexec"):
        return _mpiexec(method, flavour, found, nodes=nodes, slurm=slurm, where=where)
    family = {"prte": "prrte", "flux": "flux"}[method]
    tool = found.of_family(family)
    if tool is None:
        known = found.named("flux") if family == "flux" else None
        why = "runs outside of any Flux instance" if known else "is not in the task's PATH"
        name = "flux" if family == "flux" else "prterun"
        raise NoLauncherError(f"launcher={asked!r}: {name} {why} on {where}; {_offer(found, slurm=slurm)}")
    if nodes > 1 and family == "prrte" and not slurm:
        raise NoLauncherError(f"launcher={asked!r}: without Slurm it starts ranks on one node only; {OTHER}")
    return Choice(method, tool)


def _by_what_is_there(flavour: Flavour, found: Found, *, nodes: int, slurm: bool, where: str) -> Choice:
    tool = found.of_family("slurm") if slurm else None
    if tool is not None and (plugin := _plugin_for(flavour, tool) if flavour.mpi else "none"):
        return Choice("srun", tool, plugin)
    if nodes == 1 or slurm:
        native = _native(flavour, found)
        if native is not None:
            return native
    if (other := found.of_family("flux")) is not None:
        return Choice("flux", other)
    what = _CALLED[flavour.name]
    missing = _remedy(flavour, slurm=slurm)
    raise NoLauncherError(f"nothing on {where} starts the ranks of {what} together: {missing}; {OTHER}")


def _srun(flavour: Flavour, found: Found, plugin: str, *, slurm: bool, where: str) -> Choice:
    tool = found.of_family("slurm")
    if tool is None or not slurm:
        why = "this pilot is no job of Slurm" if tool is not None else f"srun is not in the task's PATH on {where}"
        raise NoLauncherError(f'launcher="srun": {why}; {_offer(found, slurm=slurm)}')
    if plugin and plugin not in tool.plugins:
        have = ", ".join(tool.plugins) or "none"
        raise NoLauncherError(f'launcher="srun:{plugin}": srun on {where} has no such MPI plug-in; it has {have}')
    return Choice("srun", tool, plugin or _plugin_for(flavour, tool) or "none")


def _mpiexec(asked: str, flavour: Flavour, found: Found, *, nodes: int, slurm: bool, where: str) -> Choice:
    if nodes > 1 and not slurm:
        raise NoLauncherError(f"launcher={asked!r}: without Slurm it starts ranks on one node only; {OTHER}")
    native = _native(flavour, found)
    if native is not None:
        return native
    stranger = next((tool for tool in found.tools if tool.family in _NATURES), None)
    if stranger is None:
        raise NoLauncherError(
            f"launcher={asked!r}: neither mpirun nor mpiexec is in the task's PATH on {where}; "
            + _offer(found, slurm=slurm)
        )
    raise NoLauncherError(
        f"launcher={asked!r}: {stranger.path} on {where} is {_family(stranger)} and the program is "
        f"{_CALLED[flavour.name]}, whose ranks would not find each other; {_remedy(flavour, slurm=slurm)}"
    )


def _native(flavour: Flavour, found: Found) -> Choice | None:
    """Return the launcher that belongs to a program's own MPI; any for one that does not show which it has."""
    wanted = {OPEN_MPI: ("openmpi", "prrte"), MPICH: ("mpich", "intel"), INTEL: ("intel", "mpich"), CRAY: ()}.get(
        flavour.name, ("openmpi", "mpich", "intel", "prrte")
    )
    tools = [tool for tool in found.tools if tool.family in wanted]
    if flavour.name in (OPEN_MPI, MPICH, INTEL):
        tools.sort(key=lambda tool: wanted.index(tool.family))
    if not tools:
        return None
    method = {"openmpi": "mpirun", "prrte": "prte"}.get(tools[0].family, "mpiexec")
    return Choice(method, tools[0])


def _plugin_for(flavour: Flavour, tool: Tool) -> str:
    """Return the plug-in that a program's MPI understands; empty when srun has none."""
    order = {
        OPEN_MPI: ("pmix",),
        MPICH: ("pmix", "pmi2") if flavour.pmix else ("pmi2",),
        INTEL: ("pmi2",),
        CRAY: ("cray_shasta", "pmi2"),
        ANY: ("pmix", "pmi2"),
    }.get(flavour.name, ())
    for name in order:
        if name in tool.plugins:
            return name
        versions = sorted(plugin for plugin in tool.plugins if plugin.startswith(f"{name}_v"))
        if versions:
            return versions[-1]
    return ""


def _remedy(flavour: Flavour, *, slurm: bool) -> str:
    steps = {OPEN_MPI: "srun with --mpi=pmix, or Open MPI's mpirun", MPICH: "srun with --mpi=pmi2, or MPICH's mpiexec",
             INTEL: "srun with --mpi=pmi2, or Intel's mpiexec.hydra", CRAY: "srun with --mpi=cray_shasta"}  # fmt: skip
    ways = steps.get(flavour.name, "srun, mpirun or mpiexec")
    if not slurm:
        ways = ways.rpartition("or ")[2]
    return f"it takes {ways} in the PATH of the task or of the pilot"


def _family(tool: Tool) -> str:
    return {"openmpi": "Open MPI's", "mpich": "MPICH's", "intel": "Intel MPI's"}[tool.family]


def _offer(found: Found, *, slurm: bool) -> str:
    ways = []
    if slurm and found.of_family("slurm") is not None:
        ways.append("srun")
    ways += [name for name, families in (("mpirun", ("openmpi",)), ("mpiexec", ("mpich", "intel")),
                                         ("prte", ("prrte",)), ("flux", ("flux",)))
             if found.of_family(*families) is not None]  # fmt: skip
    return f"there is {', '.join(ways)}, or {OTHER}" if ways else f"no other launcher is there either; {OTHER}"
