"""Finds what goes wrong in RLHF and says why: before, during and after a run."""
