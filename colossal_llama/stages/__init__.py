"""Runs the stages of a recipe one after the other, and says beforehand what they would need."""
