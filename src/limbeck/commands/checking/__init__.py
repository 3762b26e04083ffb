"""``limbeck check``: whether a recipe is right, and what a run of it does."""
