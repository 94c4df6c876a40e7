"""Methods that change what the optimiser does with a gradient."""
