"""What the model is and computes."""
