"""Sharing: what is kept beside a model (prompts, references), written of it and sent to the Hub.

The model's own methods lead here; none of it travels.
"""
