"""Verifiers: judges of completions, with the extraction and comparison of answers."""
