"""Which MPI a program has, on real files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pilot_hitl_agent.node.launchers.flavours import Flavour, flavour_of, needed

PROGRAM = "#include <mpi.h>\nint main(int c, char **v) { MPI_Init(&c, &v); MPI_Finalize(); return 0; }\n"
VARIABLES = {"PATH": "/usr/bin:/bin"}


def library(folder: Path, name: str, *links: Path) -> Path:
    """A shared library of that name that asks for others."""
    path = folder / name
    command = ["gcc", "-shared", "-fPIC", "-Wl,--no-as-needed", f"-Wl,-soname,{name}", "-o", str(path), "-x", "c",
               "/dev/null", "-x", "none", *map(str, links)]  # fmt: skip
    subprocess.run(command, check=True, timeout=60)
    return path


def program(folder: Path, *links: Path) -> Path:
    source, path = folder / "main.c", folder / "program"
    source.write_text("int main(void) { return 0; }\n")
    command = ["gcc", "-Wl,--no-as-needed", "-o", str(path), str(source), *map(str, links), f"-Wl,-rpath,{folder}"]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.mark.requires("openmpi")
def test_programs_of_real_compilers(tmp_path: Path) -> None:
    source = tmp_path / "p.c"
    source.write_text(PROGRAM)
    for kind in ("openmpi", "mpich"):
        compiler = shutil.which(f"mpicc.{kind}")
        if compiler is None:
            continue
        path = tmp_path / kind
        subprocess.run([compiler, "-o", path, source], check=True, timeout=60)
        assert flavour_of(str(path), [], VARIABLES).name == kind
        assert flavour_of(kind, [], VARIABLES, str(tmp_path)).name == kind


@pytest.mark.requires("openmpi")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("libmpi.so.40", "openmpi"),
        ("libmpi.so.12", "mpich"),
        ("libmpich.so.12", "mpich"),
        ("libmpifort.so.12", "mpich"),
        ("libmpi_mpifh.so.40", "openmpi"),
        ("libmpi_cray.so.12", "cray"),
        ("libmpi_gnu_91.so.12", "cray"),
        ("libmpi_abi.so.0", "any"),
        ("libmpirical.so.1", ""),
    ],
)
def test_the_name_of_the_library_tells(tmp_path: Path, name: str, expected: str) -> None:
    assert flavour_of(str(program(tmp_path, library(tmp_path, name))), [], VARIABLES).name == expected


@pytest.mark.requires("openmpi")
def test_mpi_behind_another_library_is_found(tmp_path: Path) -> None:
    solver = library(tmp_path, "libsolver.so.1", library(tmp_path, "libmpi.so.40"))
    built = program(tmp_path, solver)
    assert "libsolver.so.1" in needed(str(built))
    assert flavour_of(str(built), [], VARIABLES).name == "openmpi"


@pytest.mark.requires("openmpi")
def test_an_mpich_that_speaks_pmix_is_seen(tmp_path: Path) -> None:
    mpich = library(tmp_path, "libmpi.so.12", library(tmp_path, "libpmix.so.2"))
    assert flavour_of(str(program(tmp_path, mpich)), [], VARIABLES) == Flavour("mpich", pmix=True)


def test_what_is_no_mpi_program(tmp_path: Path) -> None:
    assert not flavour_of("/bin/sh", [], VARIABLES).mpi
    assert not flavour_of(str(tmp_path / "absent"), [], VARIABLES).mpi
    (tmp_path / "empty").touch()
    assert not flavour_of(str(tmp_path / "empty"), [], VARIABLES).mpi
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho mpi4py\n")
    assert not flavour_of(str(script), [], VARIABLES).mpi


@pytest.mark.parametrize("cut", [5, 40, 64, 200, 700, 5000])
def test_a_file_that_is_cut_short_is_no_mpi_program(tmp_path: Path, cut: int) -> None:
    whole = Path("/bin/sh").resolve().read_bytes()
    (tmp_path / "cut").write_bytes(whole[:cut])
    assert not flavour_of(str(tmp_path / "cut"), [], VARIABLES).mpi


def interpreter(folder: Path, *modules: str) -> Path:
    """An environment whose mpi4py has these modules."""
    place = folder / "venv" / "lib" / "python3.11" / "site-packages" / "mpi4py"
    place.mkdir(parents=True)
    for module in modules:
        (place / module).touch()
    (folder / "venv" / "bin").mkdir()
    path = folder / "venv" / "bin" / "python3"
    path.symlink_to(Path(sys.executable).resolve())
    return path


def test_python_is_of_mpi_when_its_script_names_mpi4py(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "MPI.mpich.so", "MPI.openmpi.so")
    script = tmp_path / "solve.py"
    script.write_text("from mpi4py import MPI\n")
    plain = tmp_path / "plain.py"
    plain.write_text("print()\n")
    chosen = {**VARIABLES, "MPI4PY_MPIABI": "mpich"}
    assert flavour_of(str(python), [str(script)], chosen) == Flavour("mpich", interpreted=True)
    assert flavour_of(str(python), ["solve.py"], chosen, str(tmp_path)).name == "mpich"
    assert flavour_of(str(python), ["-m", "mpi4py", str(plain)], chosen).mpi
    assert not flavour_of(str(python), [str(plain)], chosen).mpi
    script.write_text(f"#!{python}\nfrom mpi4py import MPI\n")
    assert flavour_of(str(script), [], chosen).name == "mpich"
    script.write_text("#!/usr/bin/env python3\nfrom mpi4py import MPI\n")
    assert flavour_of(str(script), [], {**chosen, "PATH": str(python.parent)}).name == "mpich"


def test_python_without_mpi4py_in_sight_is_of_any_mpi(tmp_path: Path) -> None:
    python = interpreter(tmp_path)
    assert flavour_of(str(python), ["-c", "import mpi4py"], {"PATH": os.defpath}).name == "any"


@pytest.mark.requires("openmpi")
def test_mpi4py_that_was_built_for_one_mpi(tmp_path: Path) -> None:
    python = interpreter(tmp_path)
    place = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "mpi4py"
    library(place, "MPI.cpython-311.so", library(tmp_path, "libmpi.so.40"))
    assert flavour_of(str(python), ["-c", "import mpi4py"], VARIABLES).name == "openmpi"
