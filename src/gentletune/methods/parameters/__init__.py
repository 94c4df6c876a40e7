"""Methods that choose what is trained: adapters, a part of the weights."""
