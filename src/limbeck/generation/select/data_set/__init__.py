"""The data set that comes out: a folder with tables and a card."""

from limbeck.generation.select.data_set.card import CardFacts, TeacherFacts
from limbeck.generation.select.data_set.folder import write_data_set, write_prompts

__all__ = ["CardFacts", "TeacherFacts", "write_data_set", "write_prompts"]
