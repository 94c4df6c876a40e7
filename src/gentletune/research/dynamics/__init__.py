"""What becomes of tokens in training, by how probable the base model found them."""
