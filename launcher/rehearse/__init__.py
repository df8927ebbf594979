"""Rehearsals: a spot trace replayed against real agents, or against a model of them. Pure but for `replay`."""
