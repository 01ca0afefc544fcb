"""Sharing: what is written of a model, and sent to the Hub. The model's own methods lead here; none of it travels."""
