"""Answers of competition mathematics, compared as mathematics or by the benchmark's string rule."""

from fttt.verifiers.math.verifier import MathRule, MathVerifier, check_rule

__all__ = ["MathRule", "MathVerifier", "check_rule"]
