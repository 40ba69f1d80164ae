"""Typed settings: flags over file over defaults."""
