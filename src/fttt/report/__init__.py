"""Statistics, tables and plots of stored runs.

All but the table of runs (in ``text``) needs the ``report`` extra: scipy, statsmodels, matplotlib,
jinja2. Nothing is imported at the start, so that the rest of the package works without them.
"""
