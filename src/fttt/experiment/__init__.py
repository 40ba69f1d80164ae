"""Runs: which questions are asked, what each may spend, who tries them, and resuming after a stop.

The one place that knows methods, tasks, models, the engine and the store. Import from its modules:
``plan`` (the settings, settled once, and all that can be wrong before a model is loaded),
``session`` (what methods see), ``replay`` (what is done for one question, or read from the
journal), ``waves`` (an adapter of all questions), ``runner`` (many questions at once), ``sweep``,
``regrade``, ``cases``, ``environment``.
"""
