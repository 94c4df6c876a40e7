"""Methods that merge base and tuned weights after training."""
