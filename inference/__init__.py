"""A trained network at work: predictions, averages over scales, the dense CRF, and scores."""
