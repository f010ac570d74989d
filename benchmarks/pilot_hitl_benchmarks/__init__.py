"""What the runtime costs, each figure beside a limit that is measured in the same run.

``pilot-hitl bench`` runs them; ``docs/performance.md`` says what they mean.
"""
