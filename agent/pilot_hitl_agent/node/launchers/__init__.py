"""How the ranks of one executable come up together: launch methods, what is installed of them, and which one to take.

Everything here is pure but :mod:`.flavours`, which reads the program's file. ``docs/specs/launch-methods.md`` says what
each method promises and where its options were tried.
"""

from pilot_hitl_agent.node.launchers.choice import Choice, choose, starts_directly
from pilot_hitl_agent.node.launchers.detect import PROBE, Found, Tool, parse
from pilot_hitl_agent.node.launchers.flavours import Flavour, flavour_of
from pilot_hitl_agent.node.launchers.gang import Command, Gang, Host, NoLauncherError
from pilot_hitl_agent.node.launchers.methods import METHODS, compose, in_launch_order

__all__ = [
    "METHODS", "PROBE", "Choice", "Command", "Flavour", "Found", "Gang", "Host", "NoLauncherError", "Tool", "choose",
    "compose", "flavour_of", "in_launch_order", "parse", "starts_directly",
]  # fmt: skip
