"""One run of the study, measured, and two of them side by side.

Both runs are the same script with the same seed, pilot, reviewer and answer, each in a session and with a hub of its
own; only the policy differs: under ``block`` the branches, which are submitted at the same place, wait for the answer.
A study that computes next to nothing runs before both, so that neither finds the caches of the machine colder.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pilot_hitl as ph
from pilot_hitl.cli.demo_study.accounts import Account, account
from pilot_hitl.cli.demo_study.homes import LOCAL, remove
from pilot_hitl.cli.demo_study.plan import WARM_UP, Scale
from pilot_hitl.cli.demo_study.results import results_hash
from pilot_hitl.cli.demo_study.reviewers import PREDICTED, ScriptedReviewer
from pilot_hitl.cli.demo_study.study import Board, Outcome, Reviewer, Study
from pilot_hitl.model.canonical import Json
from pilot_hitl.report import Report, page, summarise

BLOCK = "block"
PAGE = "report.html"
"""In the folder of each session: where its core-seconds went, for a browser."""


class Setting(NamedTuple):
    """What both runs have in common.

    Attributes:
        home: of both sessions.
        pilot: each run has one of its own.
        scale, seed: of the study.
    """

    home: Path
    pilot: ph.PilotDescription
    scale: Scale
    seed: int


class Run(NamedTuple):
    """One run of the study.

    Attributes:
        policy: that it speculated by.
        outcome, tasks: what was found, and by how many tasks.
        makespan: seconds from the opening of the session to the finding; on a batch system from the pilot's start.
        folder: of the session.
        report: where the core-seconds went, from the session's own records.
        sha: of all numbers.
        resumed: tasks whose results were there from an earlier run.
    """

    policy: str
    outcome: Outcome
    tasks: Account
    makespan: float
    folder: Path
    report: Report
    sha: str
    resumed: int

    @property
    def waited(self) -> float:
        """Seconds from the question to the answer."""
        return max(0.0, self.outcome.answer.at - self.outcome.asked_at)


def run(setting: Setting, name: str, policy: str, reviewer: Reviewer, board: Board, *, fresh: bool = True) -> Run:
    """Run the study in a session of this name, and close it.

    Raises:
        PilotHitlError: it did not come to its end, or there is no pilot.
    """
    began = time.time()
    with ph.Session(name, home=setting.home, fresh=fresh, policy=policy) as session:
        pilot = session.submit_pilot(setting.pilot)
        resumed = session.resumed
        board.say(f"session {session.folder}, policy {policy}" + (f", {resumed} tasks resumed" if resumed else ""))
        if setting.pilot.resource != LOCAL:
            # How long a queue is says nothing of policies.
            board.say(f"waiting for the pilot on {setting.pilot.resource}")
            pilot.wait_ready()
            began = time.time()
        outcome = Study(session, setting.scale, setting.seed, board).run(reviewer)
        tasks = account(session, outcome)
        folder = session.folder
    # The pilot's own books are complete once it has ended.
    report = summarise(folder)
    (folder / PAGE).write_text(page(report), encoding="utf-8")
    sha = results_hash(outcome.survey, outcome.finding)
    return Run(policy, outcome, tasks, outcome.done_at - began, folder, report, sha, resumed)


def warm_up(setting: Setting) -> None:
    """Run a study that computes next to nothing, in a home that is removed again."""
    beside = None
    if setting.pilot.resource != LOCAL:
        # Nodes see where the home is; what is temporary on this host they may not.
        beside = setting.home.parent
        beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="pilot-hitl-warm-up-", dir=beside))
    silent = Silence()
    try:
        small = setting._replace(home=folder, scale=WARM_UP)
        run(small, "warm-up", BLOCK, ScriptedReviewer(0.0, PREDICTED, silent), silent)
    finally:
        remove(folder)


def facts(first: Run, second: Run | None) -> dict[str, Json]:
    """Return what the JSON says, times in the units of their names; of the blocking run under ``blocking_…``."""
    outcome, finding = first.outcome, first.outcome.finding
    chances = zip(outcome.survey.candidates, outcome.survey.probabilities, strict=True)
    told: dict[str, Json] = {
        "answer": outcome.chosen,
        "predicted": outcome.predicted,
        "probabilities": {item.region.name: round(probability, 6) for item, probability in chances},
        "feed": round(finding.peak.feed, 6),
        "kill": round(finding.peak.kill, 6),
        "strength": round(finding.strength, 6),
        "surrogate_error": round(finding.deviation, 6),
        "policy": first.policy,
        **_measured(first),
    }
    return told | ({f"blocking_{name}": value for name, value in _measured(second).items()} if second else {})


def _measured(side: Run) -> dict[str, Json]:
    tasks, report, outcome = side.tasks, side.report, side.outcome
    return {
        "tasks_done": tasks.done,
        "tasks_failed": tasks.failed,
        "speculative_committed": tasks.committed,
        "speculative_discarded": tasks.discarded,
        "speculative_discarded_ran": tasks.begun,
        "makespan_s": round(side.makespan, 3),
        "asked_to_answer_s": round(side.waited, 3),
        "answer_to_continuation_ms": round(tasks.continuation_ms, 3),
        "answer_to_result_ms": round(max(0.0, outcome.done_at - outcome.answer.at) * 1e3, 1),
        "results_sha256": side.sha,
        "utilisation": round(report.utilisation, 6),
        "useful_utilisation": round(report.useful_utilisation, 6),
        "ledger": {row: round(seconds, 6) for row, seconds in report.ledger.items()},
        "ledger_error_core_s": round(report.ledger_error_core_s, 6),
        "folder": str(side.folder),
        "report": str(side.folder / PAGE),
    }


class Silence:
    """A board that shows nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def follow(self, title: str, tasks: object) -> None:
        """Do nothing."""
