"""Statistics, tables and plots of stored runs.

Needs the ``report`` extra (scipy, statsmodels, matplotlib, jinja2); nothing is imported before it
is asked for, so that the rest of the package works without.
"""
