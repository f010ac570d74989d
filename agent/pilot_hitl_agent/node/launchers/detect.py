"""What launchers a node has: a shell script that asks each of them, and the reading of its answers."""

from __future__ import annotations

import msgspec

_NAMES = (
    "srun", "mpirun", "mpiexec", "mpiexec.hydra", "mpirun.openmpi", "mpiexec.openmpi", "mpiexec.mpich", "mpirun.mpich",
    "prterun", "flux",
)  # fmt: skip
_MARK = "=== "
_END = "end"
_SHORT = ("too many open files", "cannot fork", "resource temporarily unavailable", "cannot allocate memory")
"""What shells and programs say that could not do what they were asked, and might another time."""
PROBE = f"""
limit() {{ if command -v timeout >/dev/null 2>&1; then timeout 10 "$@"; else "$@"; fi; }}
for name in {" ".join(_NAMES)}; do
  path=$(command -v -- "$name" 2>/dev/null) || continue
  printf '{_MARK}%s %s\\n' "$name" "$path"
  case $name in
    srun)
      limit "$path" --mpi=list 2>&1 </dev/null
      limit scontrol show config 2>/dev/null </dev/null |
        while IFS= read -r line; do case $line in TaskPlugin\\ *|TaskPlugin=*) printf '%s\n' "$line" ;; esac; done ;;
    flux) printf 'FLUX_URI=%s\\n' "$FLUX_URI" ;;
    *) limit "$path" --version 2>&1 </dev/null ;;
  esac
done
printf '{_MARK}{_END}\n'
exit 0
"""
"""For ``/bin/sh -c``, with nothing but what is in the PATH that it asks about; :func:`parse` reads what it prints.

It takes some tenths of a second and is bounded.
"""


class Tool(msgspec.Struct, frozen=True):
    """One launcher.

    Attributes:
        name: of its file.
        path: absolute.
        family: "slurm", "openmpi", "mpich", "intel", "prrte", "flux"; "" when its answer was not understood.
        plugins: MPI plug-ins of srun.
        binds: srun binds tasks to cores unless told not to.
        ready: it could be used now (Flux: inside an instance).
    """

    name: str
    path: str
    family: str
    plugins: tuple[str, ...] = ()
    binds: bool = False
    ready: bool = True


class Found(msgspec.Struct, frozen=True):
    """The launchers of a node, in order of preference within a family.

    Attributes:
        complete: every one was asked and could answer; else there may be more.
    """

    tools: tuple[Tool, ...] = ()
    complete: bool = True

    def of_family(self, *families: str) -> Tool | None:
        """Return the first tool of one of these families."""
        return next((tool for tool in self.tools if tool.family in families and tool.ready), None)

    def named(self, *names: str) -> Tool | None:
        """Return the first tool whose file has one of these names."""
        return next((tool for tool in self.tools if tool.name in names), None)


def parse(text: str) -> Found:
    """Read what :data:`PROBE` printed."""
    tools = []
    name = path = ""
    answer: list[str] = []
    for line in [*text.splitlines(), _MARK]:
        if not line.startswith(_MARK):
            answer.append(line)
            continue
        if name and path.startswith("/"):
            tools.append(_tool(name, path, answer))
        name, _, path = line[len(_MARK) :].partition(" ")
        answer = []
    low = text.lower()
    complete = text.rstrip().endswith(f"{_MARK}{_END}") and not any(words in low for words in _SHORT)
    return Found(tuple(tools), complete)


def _tool(name: str, path: str, answer: list[str]) -> Tool:
    text = "\n".join(answer)
    if name == "srun":
        return Tool(name, path, "slurm", _plugins(answer), _binds(answer))
    if name == "flux":
        return Tool(name, path, "flux", ready=any(line.startswith("FLUX_URI=") and line[9:] for line in answer))
    low = text.lower()
    if "intel(r) mpi" in low:
        family = "intel"
    elif "hydra" in low or "mpich" in low:
        family = "mpich"
    elif "open mpi" in low or "openrte" in low or "open rte" in low:
        family = "openmpi"
    elif "prrte" in low or "prte" in low:
        family = "prrte"
    else:
        family = ""
    return Tool(name, path, family)


def _plugins(answer: list[str]) -> tuple[str, ...]:
    """Names stand one a line, bare or after ``srun:``; versions of pmix follow in a line of their own."""
    found: dict[str, None] = {}
    for line in answer:
        text = line.removeprefix("srun:").strip()
        if text.startswith("specific pmix plugin versions available:"):
            for version in text.partition(":")[2].replace(",", " ").split():
                found[version] = None
        elif text and " " not in text and text.replace("_", "").isalnum():
            found[text] = None
    return tuple(found)


def _binds(answer: list[str]) -> bool:
    """When it could not be asked, assume it does: to forbid it then costs a line on standard error at most."""
    for line in answer:
        key, separator, value = line.partition("=")
        if separator and key.strip().lower() == "taskplugin":
            return "affinity" in value.lower() or "cgroup" in value.lower()
    return True
