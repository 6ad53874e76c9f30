"""How the bundled model `tiny` was made: tokenizer, training, evaluation, snapshots."""
