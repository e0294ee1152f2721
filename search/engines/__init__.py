"""Engines: where continuations come from. All implement `verifiers.core.Engine`."""
