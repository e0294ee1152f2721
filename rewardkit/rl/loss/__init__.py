"""From rewards and log-probabilities to a loss: pure functions on tensors, the same for every algorithm."""
