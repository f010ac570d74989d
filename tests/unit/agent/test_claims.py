"""Claims: one agent a term, whoever is faster, and none of an earlier job."""

from __future__ import annotations

import select
import threading
from pathlib import Path

from pilot_hitl.wire.cluster import Claim
from pilot_hitl_agent.cluster.claims import Claims
from pilot_hitl_agent.cluster.looker import Looker


def claim(term: int, node: int = 0, job: str = "7.0") -> Claim:
    """Return a claim."""
    return Claim(term=term, node=node, host=f"n{node}", pid=1, endpoint="tcp://10.0.0.1:1", job=job)


def test_the_highest_term_counts(tmp_path: Path) -> None:
    claims = Claims(tmp_path, "7.0")
    assert claims.latest() is None
    assert claims.next_term() == 1
    assert claims.claim(claim(9))
    assert claims.claim(claim(10, node=3))
    latest = claims.latest()
    assert latest is not None
    assert (latest.term, latest.node) == (10, 3)
    assert claims.next_term() == 11


def test_of_many_that_claim_one_term_one_wins(tmp_path: Path) -> None:
    won: list[int] = []
    barrier = threading.Barrier(8)

    def run(node: int) -> None:
        barrier.wait()
        if Claims(tmp_path, "7.0").claim(claim(1, node)):
            won.append(node)

    threads = [threading.Thread(target=run, args=(node,)) for node in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latest = Claims(tmp_path, "7.0").latest()
    assert latest is not None
    assert won == [latest.node]
    assert sorted(path.name for path in (tmp_path / "agents").iterdir()) == ["1"]


def test_claims_of_an_earlier_run_of_the_job_are_void_but_terms_go_on(tmp_path: Path) -> None:
    assert Claims(tmp_path, "7.0").claim(claim(4))
    again = Claims(tmp_path, "7.1")
    assert again.latest() is None
    assert again.next_term() == 5


def test_a_beat_is_seen_and_a_spoiled_one_is_none(tmp_path: Path) -> None:
    claims = Claims(tmp_path, "7.0")
    claims.claim(claim(2))
    assert claims.beat_of(2) == 0
    claims.beat(2, 17)
    assert claims.beat_of(2) == 17
    (tmp_path / "agents" / "2.beat").write_text("")
    assert claims.beat_of(2) == 0


def test_the_looker_sees_what_the_file_system_says(tmp_path: Path) -> None:
    claims = Claims(tmp_path, "7.0")
    claims.claim(claim(3, node=2))
    claims.beat(3, 5)
    looker = Looker(claims)
    looker.look()
    looker.look()
    assert select.select([looker.fileno()], [], [], 20.0)[0]
    sights = looker.sights()
    looker.close()
    assert [(sight.claim.node if sight.claim else -1, sight.beat) for sight in sights] == [(2, 5)]
