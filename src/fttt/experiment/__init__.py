"""Runs methods over questions: concurrency, budget, ledger, replay."""
