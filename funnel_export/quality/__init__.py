"""What a funnel costs: scores on documents beside those of the dense model; and fitting its recovery."""
