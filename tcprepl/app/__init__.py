"""Composition roots: each makes one kind of process from a configuration, starts and stops it."""
