"""Training: frozen features computed once, and the trainer of the prompts."""
