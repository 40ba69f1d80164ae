"""Statistics, tables and plots of stored runs.

All but ``run_table`` needs the ``report`` extra (scipy, statsmodels, matplotlib, jinja2). Nothing
is imported at the start, so that the rest of the package works without them.
"""
