"""Methods that weight the label tokens, each step, from what the model makes of them."""
