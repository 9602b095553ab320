"""What a funnel costs: losses and scores of a model on documents, beside those of the dense model."""
