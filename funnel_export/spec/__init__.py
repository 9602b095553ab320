"""Settings: what an export, a funnel and an optimization profile are asked to be."""
