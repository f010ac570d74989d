"""What is held ahead is asked back for a free core once, whatever queue it is of."""

from __future__ import annotations

from pilot_hitl_agent.core.instructions import Retract
from tests.unit.agent.core.honest import cluster
from tests.unit.agent.core.said import bulk, timed, told


def test_a_core_is_asked_for_once_and_not_for_each_queue() -> None:
    made = cluster([1, 1], credit=4)
    made.submit(bulk(1), timed(2, 60.0))
    made.deliver()
    # All held ahead behind the first, better work and that of three queues: nothing follows the second, whose shape is
    # another.
    made.submit(bulk(3, priority=1))
    made.submit(*(bulk(task, kind=task) for task in (4, 5, 6)))
    made.deliver()
    assert made.tasks() == {1, 2}
    before = len(told(made, Retract))
    for node in made.nodes.values():
        if 2 in node.running:
            node.finish(2)
            made.report(node)
    for task in (7, 8, 9):  # whatever happens while the better one is on its way back
        made.submit(bulk(task, kind=4))
    asked = [task for one in told(made, Retract)[before:] for task in one.tasks]
    assert asked == [3]
    made.deliver()
    assert made.tasks() == {1, 3}
