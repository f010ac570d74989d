"""Chaos runs on the same fixture as the behaviour tests."""

from tests.behaviour.conftest import study

__all__ = ["study"]
