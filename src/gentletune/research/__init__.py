"""Experiments of their own: theory, tilting, token dynamics, ablations. Nothing but the command line imports them."""
