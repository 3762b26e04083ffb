"""The stages of a distillation, one a file. ``build`` turns a recipe into them."""
