"""The Gray-Scott model: two substances that diffuse and react, on a periodic square.

::

    du/dt = Du lap(u) - u v^2 + F (1 - u)
    dv/dt = Dv lap(v) + u v^2 - (F + k) v

``u`` feeds the reaction ``u + 2v -> 3v``; ``F`` is the feed rate, ``k`` the rate at which ``v`` is removed. By (F, k)
the same soup stays empty, makes spots, stripes, or never comes to rest.

Five-point Laplacian with spacing 1, explicit Euler steps. The sum of the Laplacian over a periodic square is zero, so a
step changes the total of ``u + v`` by exactly ``dt * (F sum(1 - u) - (F + k) sum(v))``, up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float64]
"""A square of concentrations, ``(n, n)``."""

DIFFUSION_U = 0.16
DIFFUSION_V = 0.08
MAX_STEP = 1.0
"""Largest time step: Euler's limit for diffusion is ``1 / (4 D)`` = 1.56, the reaction needs some of it."""


class State(NamedTuple):
    """The two concentrations at one moment."""

    u: Field
    v: Field


def initial_state(size: int, seed: int, spots: int = 12) -> State:
    """Return a square full of ``u`` with some noise and ``spots`` seeds of ``v``; the same for the same seed."""
    random = np.random.default_rng(seed)
    u = 1.0 - 0.02 * random.random((size, size))
    v = 0.02 * random.random((size, size))
    # Wide enough to live: where patterns are possible, whether one comes shall not hang on where the seeds fell.
    width = max(2, size // 9)
    for row, column in random.integers(0, size, (spots, 2)):
        rows = np.arange(row, row + width) % size
        columns = np.arange(column, column + width) % size
        patch = np.ix_(rows, columns)
        u[patch] = 0.5
        v[patch] = 0.25
    return State(u, v)


def advance(state: State, feed: float, kill: float, steps: int, dt: float = MAX_STEP) -> State:
    """Return the state ``steps`` steps later; the given one is left alone.

    Raises:
        ValueError: the fields are no squares of one size, or the step is too long to be stable.
    """
    size = state.u.shape[0]
    if state.u.shape != (size, size) or state.v.shape != (size, size):
        raise ValueError(f"u and v must be squares of one size, not {state.u.shape} and {state.v.shape}")
    if not 0 < dt <= MAX_STEP:
        raise ValueError(f"dt: {dt} is not above 0 and at most {MAX_STEP}, where the scheme is stable")
    # Fields with a frame of ghost cells: the frame is refilled by the opposite edge at each step, and the Laplacian is
    # four views of one array. All results go into buffers that exist already, which is most of the speed.
    u, v = _framed(state.u), _framed(state.v)
    lap_u, lap_v, reaction, scratch = (np.empty((size, size)) for _ in range(4))
    inner_u, inner_v = u[1:-1, 1:-1], v[1:-1, 1:-1]
    for _ in range(steps):
        _laplacian(u, lap_u)
        _laplacian(v, lap_v)
        np.multiply(inner_v, inner_v, out=reaction)
        reaction *= inner_u
        lap_u *= DIFFUSION_U
        lap_u -= reaction
        np.subtract(1.0, inner_u, out=scratch)
        scratch *= feed
        lap_u += scratch
        lap_v *= DIFFUSION_V
        lap_v += reaction
        np.multiply(inner_v, feed + kill, out=scratch)
        lap_v -= scratch
        if dt != 1.0:
            lap_u *= dt
            lap_v *= dt
        inner_u += lap_u
        inner_v += lap_v
    return State(inner_u.copy(), inner_v.copy())


def rest_state(feed: float, kill: float) -> tuple[float, float]:
    """Return the uniform ``(u, v)`` with reaction, in which nothing changes.

    Where there is none, that is without enough feed, it is the empty state ``(1, 0)``, which always rests.
    """
    # u v = F + k, and F (1 - u) = (F + k) v, so u solves u^2 - u + (F + k)^2 / F = 0.
    loss = feed + kill
    discriminant = 1.0 - 4.0 * loss * loss / feed if feed > 0 else -1.0
    if discriminant < 0:
        return 1.0, 0.0
    u = (1.0 - discriminant**0.5) / 2.0
    return u, loss / u


def _framed(field: Field) -> Field:
    framed = np.empty((field.shape[0] + 2, field.shape[1] + 2))
    framed[1:-1, 1:-1] = field
    return framed


def _laplacian(framed: Field, out: Field) -> None:
    """Refill the frame from the opposite edges and write the five-point Laplacian of the inner part."""
    framed[0, :] = framed[-2, :]
    framed[-1, :] = framed[1, :]
    framed[:, 0] = framed[:, -2]
    framed[:, -1] = framed[:, 1]
    np.multiply(framed[1:-1, 1:-1], -4.0, out=out)
    out += framed[:-2, 1:-1]
    out += framed[2:, 1:-1]
    out += framed[1:-1, :-2]
    out += framed[1:-1, 2:]
