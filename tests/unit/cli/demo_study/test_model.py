"""The physics of the demo: conservation, known solutions, convergence, determinism."""

from __future__ import annotations

import numpy as np
import pytest

from pilot_hitl.cli.demo_study import model
from pilot_hitl.cli.demo_study.model import State


def _reference_step(state: State, feed: float, kill: float, dt: float) -> State:
    """One Euler step, written as the equation stands there."""
    u, v = state

    def laplacian(field: model.Field) -> model.Field:
        shifted = [np.roll(field, shift, axis) for shift in (1, -1) for axis in (0, 1)]
        total: model.Field = sum(shifted, start=-4.0 * field)
        return total

    reaction = u * v * v
    return State(
        u + dt * (model.DIFFUSION_U * laplacian(u) - reaction + feed * (1 - u)),
        v + dt * (model.DIFFUSION_V * laplacian(v) + reaction - (feed + kill) * v),
    )


@pytest.mark.parametrize("dt", [1.0, 0.3])
def test_steps_are_those_of_the_equation(dt: float) -> None:
    expected = state = model.initial_state(17, seed=3)
    for _ in range(25):
        expected = _reference_step(expected, 0.03, 0.058, dt)
    found = model.advance(state, 0.03, 0.058, 25, dt)
    np.testing.assert_allclose(found.u, expected.u, rtol=1e-12)
    np.testing.assert_allclose(found.v, expected.v, rtol=1e-12)


def test_total_mass_is_conserved_without_feed_and_removal() -> None:
    state = model.initial_state(32, seed=1)
    after = model.advance(state, 0.0, 0.0, 500)
    assert float((after.u + after.v).sum()) == pytest.approx(float((state.u + state.v).sum()), rel=1e-12)
    assert not np.allclose(after.v, state.v)


def test_mass_changes_by_feed_and_removal_only() -> None:
    feed, kill = 0.035, 0.06
    state = model.initial_state(32, seed=2)
    for _ in range(50):
        after = model.advance(state, feed, kill, 1)
        expected = feed * float((1 - state.u).sum()) - (feed + kill) * float(state.v.sum())
        assert float((after.u + after.v - state.u - state.v).sum()) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        state = after


def test_a_wave_of_u_decays_at_the_rate_of_the_discrete_laplacian() -> None:
    size, waves, steps = 32, 3, 40
    phase = 2 * np.pi * waves * np.arange(size) / size
    wave = np.broadcast_to(np.cos(phase), (size, size))
    # Without v nothing reacts; u - 1 only diffuses and is fed back.
    state = State(1.0 + 0.1 * wave, np.zeros((size, size)))
    feed = 0.02
    factor = 1 - feed - model.DIFFUSION_U * (2 - 2 * np.cos(2 * np.pi * waves / size))
    after = model.advance(state, feed, 0.06, steps)
    np.testing.assert_allclose(after.u - 1.0, 0.1 * factor**steps * wave, atol=1e-13)
    assert not after.v.any()


@pytest.mark.parametrize(("feed", "kill"), [(0.04, 0.05), (0.05, 0.045), (0.03, 0.08)])
def test_rest_states_rest(feed: float, kill: float) -> None:
    u, v = model.rest_state(feed, kill)
    after = model.advance(State(np.full((8, 8), u), np.full((8, 8), v)), feed, kill, 1)
    np.testing.assert_allclose(after.u, u, atol=1e-14)
    np.testing.assert_allclose(after.v, v, atol=1e-14)


def test_too_little_feed_leaves_only_the_empty_state() -> None:
    assert model.rest_state(0.03, 0.08) == (1.0, 0.0)
    assert model.rest_state(0.0, 0.05) == (1.0, 0.0)
    after = model.advance(model.initial_state(24, seed=1), 0.03, 0.08, 4000)
    assert float(after.v.max()) < 1e-12
    np.testing.assert_allclose(after.u, 1.0, atol=1e-9)


def test_halving_the_step_halves_the_error() -> None:
    state = model.initial_state(24, seed=5)
    time = 64
    finest = model.advance(state, 0.03, 0.058, time * 64, 1 / 64)
    errors = []
    for parts in (2, 4, 8):
        found = model.advance(state, 0.03, 0.058, time * parts, 1 / parts)
        errors.append(float(np.abs(found.v - finest.v).max()))
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    assert ratios == [pytest.approx(2.0, abs=0.5), pytest.approx(2.0, abs=0.5)]


def test_equal_seeds_give_equal_bits_and_others_do_not() -> None:
    runs = [model.advance(model.initial_state(24, seed), 0.03, 0.058, 300).v.tobytes() for seed in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_many_steps_are_the_same_as_few_and_few() -> None:
    state = model.initial_state(24, seed=7)
    once = model.advance(state, 0.03, 0.058, 30)
    twice = model.advance(model.advance(state, 0.03, 0.058, 10), 0.03, 0.058, 20)
    assert once.v.tobytes() == twice.v.tobytes()


def test_the_given_state_is_left_alone() -> None:
    state = model.initial_state(16, seed=1)
    before = state.u.tobytes(), state.v.tobytes()
    model.advance(state, 0.03, 0.058, 3)
    assert (state.u.tobytes(), state.v.tobytes()) == before


@pytest.mark.parametrize("dt", [0.0, -1.0, 1.5])
def test_unstable_steps_are_refused(dt: float) -> None:
    with pytest.raises(ValueError, match="stable"):
        model.advance(model.initial_state(16, seed=1), 0.03, 0.058, 1, dt)


def test_fields_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="squares"):
        model.advance(State(np.ones((4, 4)), np.zeros((4, 5))), 0.03, 0.058, 1)


def test_a_pattern_forms_where_the_literature_says_so() -> None:
    spots = model.advance(model.initial_state(48, seed=1), 0.035, 0.0625, 3000)
    empty = model.advance(model.initial_state(48, seed=1), 0.055, 0.055, 3000)
    assert float(spots.v.std()) > 0.05
    assert float(empty.v.std()) < 1e-6
