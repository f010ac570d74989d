"""The study that ``pilot-hitl demo`` runs: where in its parameter plane does the Gray-Scott reaction make patterns?

* :mod:`~pilot_hitl.cli.demo_study.model`: the physics, numpy only;
* :mod:`~pilot_hitl.cli.demo_study.simulate`: the executable of one simulation;
* :mod:`~pilot_hitl.cli.demo_study.plan`: which simulations, which regions;
* :mod:`~pilot_hitl.cli.demo_study.analysis`: the function tasks: summaries, prediction, fit;
* :mod:`~pilot_hitl.cli.demo_study.pictures`: heat maps of text;
* :mod:`~pilot_hitl.cli.demo_study.study`: the study as a script against the public face;
* :mod:`~pilot_hitl.cli.demo_study.reviewers`: who answers.
"""
