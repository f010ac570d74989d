"""Which MPI a program was made with, from its file: a look at the libraries that it asks the loader for."""

from __future__ import annotations

import mmap
import os
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

OPEN_MPI, MPICH, INTEL, CRAY = "openmpi", "mpich", "intel", "cray"
ANY = "any"
"""It is an MPI program, but not to be seen which."""

_LOOKS = 64
"""Libraries that are looked into: programs get their MPI through others (PETSc, HDF5) as well."""
_SYSTEM = ("/usr/local/lib", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
_COMMON = ("libc.", "libm.", "libpthread.", "libdl.", "librt.", "ld-linux", "libgcc_s.", "libstdc++.", "libutil.",
           "libresolv.", "libz.", "libnsl.")  # fmt: skip
_HEAD = 1 << 16


class Flavour(msgspec.Struct, frozen=True):
    """The MPI of a program.

    Attributes:
        name: one of the constants of this module; empty: it is no MPI program, as far as can be seen.
        pmix: its MPI library is linked with PMIx itself (an MPICH may be).
        interpreted: found by reading a script, so the program may do something else.
    """

    name: str = ""
    pmix: bool = False
    interpreted: bool = False

    @property
    def mpi(self) -> bool:
        """Whether it is an MPI program."""
        return bool(self.name)


def flavour_of(program: str, arguments: Sequence[str], variables: Mapping[str, str], folder: str = "") -> Flavour:
    """Return the MPI of a program.

    Args:
        program: path; one that cannot be read has no MPI.
        arguments: its arguments: those of a Python interpreter name a script.
        variables: its environment: PATH, LD_LIBRARY_PATH, MPI4PY_MPIABI, PYTHONPATH count.
        folder: where relative paths start.
    """
    path = os.path.join(folder, program)
    head = _read(path, 0, _HEAD)
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].decode(errors="replace").split()
        if words and Path(words[0]).name == "env":
            words = [word for word in words[1:] if not word.startswith("-")]
        interpreter = _find_program(words[0], variables) if words else ""
        if interpreter and _is_python(interpreter):
            return _python(interpreter, [path], variables, folder)
        return Flavour()
    if not head.startswith(b"\x7fELF"):
        return Flavour()
    if _is_python(path):
        return _python(path, arguments, variables, folder)
    return _of_binary(path, variables)


def needed(path: str) -> list[str]:
    """Return the libraries that a program or library asks for by itself; empty when it is no such file."""
    elf = _Elf.read(path)
    return elf.needed if elf is not None else []


class _Elf(msgspec.Struct):
    needed: list[str]
    paths: list[str]
    name: str = ""

    @classmethod
    def read(cls, path: str) -> _Elf | None:
        try:
            with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return cls._parse(data, path)
        except (OSError, struct.error, IndexError, ValueError):
            # Not there, empty, or cut short.
            return None

    @classmethod
    def _parse(cls, data: mmap.mmap, path: str) -> _Elf | None:
        if data[:4] != b"\x7fELF" or data[4] not in (1, 2):
            return None
        wide = data[4] == 2
        order = "<" if data[5] == 1 else ">"
        if wide:
            (offset,), (size, count) = (
                struct.unpack_from(f"{order}Q", data, 32),
                struct.unpack_from(f"{order}HH", data, 54),
            )
        else:
            (offset,), (size, count) = (
                struct.unpack_from(f"{order}I", data, 28),
                struct.unpack_from(f"{order}HH", data, 42),
            )
        loads, dynamic = [], (0, 0)
        for index in range(count):
            at = offset + index * size
            if wide:
                kind, _, where, address, _, length = struct.unpack_from(f"{order}IIQQQQ", data, at)
            else:
                kind, where, address, _, length = struct.unpack_from(f"{order}IIIII", data, at)
            if kind == 1:
                loads.append((address, where, length))
            elif kind == 2:
                dynamic = (where, length)
        return cls._dynamic(data, path, f"{order}{'qQ' if wide else 'iI'}", loads, dynamic)

    @classmethod
    def _dynamic(
        cls, data: mmap.mmap, path: str, entry: str, loads: list[tuple[int, int, int]], dynamic: tuple[int, int]
    ) -> _Elf:
        found: dict[int, list[int]] = {}
        step = struct.calcsize(entry)
        for at in range(dynamic[0], dynamic[0] + dynamic[1], step):
            tag, value = struct.unpack_from(entry, data, at)
            if tag == 0:
                break
            found.setdefault(tag, []).append(value)
        table = found.get(5, [0])[0]
        start = next((where + table - address for address, where, length in loads if 0 <= table - address < length), 0)

        def text(value: int) -> str:
            end = data.find(b"\0", start + value)
            return data[start + value : end].decode(errors="replace")

        origin = str(Path(path).resolve().parent)
        runs = [text(value) for tag in (15, 29) for value in found.get(tag, ())]
        places = [part for run in runs for part in run.split(":") if part]
        paths = [part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for part in places]
        name = text(found[14][0]) if 14 in found else ""
        return cls([text(value) for value in found.get(1, ())], paths, name)


def _of_binary(path: str, variables: Mapping[str, str]) -> Flavour:
    """Look through the libraries of a program, nearest first, for the first that is an MPI's."""
    seen: set[str] = set()
    ahead: deque[str] = deque([path])
    for _ in range(_LOOKS):
        if not ahead:
            break
        elf = _Elf.read(ahead.popleft())
        if elf is None:
            continue
        for name in elf.needed:
            if (kind := _kind(name)) != "":
                return _with_pmix(kind, name, elf.paths, variables)
        for name in elf.needed:
            if name not in seen and not name.startswith(_COMMON):
                seen.add(name)
                if where := _find_library(name, elf.paths, variables):
                    ahead.append(where)
    return Flavour()


def _with_pmix(kind: str, name: str, paths: Sequence[str], variables: Mapping[str, str]) -> Flavour:
    where = _find_library(name, paths, variables)
    pmix = bool(where) and any(each.startswith("libpmix.") for each in needed(where))
    if kind == MPICH and where and "I_MPI_ROOT" in variables and where.startswith(variables["I_MPI_ROOT"]):
        kind = INTEL
    return Flavour(kind, pmix)


def _kind(library: str) -> str:
    """Return whose MPI library a name is; empty for any other."""
    stem, _, version = library.partition(".so")
    if stem.startswith(("libmpi_cray", "libmpi_gnu_", "libmpi_intel_", "libmpi_nvidia_", "libmpi_amd_")):
        return CRAY
    if stem in ("libmpich", "libmpichfort", "libmpichcxx", "libmpichf90", "libpmpich"):
        return MPICH
    if stem in ("libmpi_cxx", "libmpi_mpifh", "libmpi_usempif08", "libmpi_usempi_ignore_tkr", "liboshmem"):
        return OPEN_MPI
    if stem in ("libmpi", "libmpifort", "libmpicxx"):
        # The number tells: 12 is that of MPICH and of all that are compatible with it.
        return MPICH if version == ".12" or stem != "libmpi" else OPEN_MPI if version else ANY
    return ANY if stem == "libmpi_abi" else ""


def _find_library(name: str, paths: Sequence[str], variables: Mapping[str, str]) -> str:
    for folder in (*paths, *variables.get("LD_LIBRARY_PATH", "").split(":"), *_folders()):
        if folder and os.path.isfile(where := os.path.join(folder, name)):
            return where
    return ""


def _folders() -> Iterator[str]:
    """Yield where the loader looks by itself, as far as it takes no parsing of its cache."""
    for folder in _SYSTEM:
        yield folder
        yield f"{folder}/{os.uname().machine}-linux-gnu"


def _find_program(name: str, variables: Mapping[str, str]) -> str:
    if "/" in name:
        return name
    for folder in variables.get("PATH", os.defpath).split(":"):
        if os.access(where := os.path.join(folder, name), os.X_OK):
            return where
    return ""


def _is_python(path: str) -> bool:
    return Path(path).name.startswith(("python", "pypy"))


def _python(interpreter: str, arguments: Sequence[str], variables: Mapping[str, str], folder: str) -> Flavour:
    """A Python program is one of MPI when its text, or the text of its script, names mpi4py."""
    texts = [argument.encode() for argument in arguments]
    script = next((argument for argument in arguments if not argument.startswith("-")), "")
    if script.endswith(".py") or (arguments and arguments[0] == script):
        texts.append(_read(os.path.join(folder, script), 0, _HEAD))
    if not any(b"mpi4py" in text for text in texts):
        return Flavour()
    return Flavour(_mpi4py(interpreter, variables) or ANY, interpreted=True)


def _mpi4py(interpreter: str, variables: Mapping[str, str]) -> str:
    """Return the MPI of an interpreter's mpi4py; empty when that does not show.

    mpi4py comes built for one MPI, or for several; then it takes the one that MPI4PY_MPIABI says, or whose library the
    loader finds first.
    """
    prefix = str(Path(interpreter).parent.parent)
    places = [Path(entry) for entry in variables.get("PYTHONPATH", "").split(":") if entry]
    places += sorted(Path(prefix).glob("lib*/python3*/site-packages"))
    if prefix == "/usr":
        places.append(Path("/usr/lib/python3/dist-packages"))
        places += sorted(Path("/usr/local/lib").glob("python3*/dist-packages"))
    for place in places:
        modules = sorted((place / "mpi4py").glob("MPI.*.so"))
        if not modules:
            continue
        if len(modules) == 1:
            return _of_binary(str(modules[0]), variables).name
        asked = variables.get("MPI4PY_MPIABI", "")
        if asked:
            return {"openmpi": OPEN_MPI, "mpich": MPICH, "impi": INTEL}.get(asked.removesuffix("@"), ANY)
        for name in ("libmpi.so", "libmpi.so.12", "libmpi.so.40"):
            if where := _find_library(name, [f"{prefix}/lib"], variables):
                elf = _Elf.read(where)
                return _kind(elf.name) if elf is not None and elf.name else ""
        return ""
    return ""


def _read(path: str, offset: int, length: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError:
        return b""
