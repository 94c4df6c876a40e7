"""Runs and studies: plan, execute, keep the records."""
