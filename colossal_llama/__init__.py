"""Continual pretraining of LLaMA-family models on Colossal-AI's Booster."""

__version__ = "0.1.0"
