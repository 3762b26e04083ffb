"""Stages of a run: decided, run side by side, marked, and resumed. Knows no machine learning."""
