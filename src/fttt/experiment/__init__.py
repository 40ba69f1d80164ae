"""Runs: which questions are owed, what each may spend, who tries them, and going on after a stop.

The one place that knows methods, tasks, models, the engine and the store. Import from its modules:
``plan`` (everything that can be wrong before a model is loaded), ``session`` (what methods see),
``runner`` (many questions at once), ``environment``, ``progress``, ``sweep``, ``regrade``.
"""
