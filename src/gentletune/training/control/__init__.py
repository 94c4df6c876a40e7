"""What acts on the weights and the rate while a model trains, beside the optimiser."""
