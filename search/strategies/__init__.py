"""Strategies: who is expanded, cut, refilled. Each is a small policy over an engine and scorers."""
