# What we use of mpi4py, so that mypy needs none: an extra may be missing where types are checked.
