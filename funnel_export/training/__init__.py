"""Training of models for their funnel."""
