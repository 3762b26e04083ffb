"""What of a teacher's text is learned: filters, keep policies, and the data set that comes out."""

from limbeck.generation.select.contamination import EvaluationIndex
from limbeck.generation.select.data_set.card import CardFacts, TeacherFacts
from limbeck.generation.select.data_set.folder import write_data_set, write_prompts
from limbeck.generation.select.filters import Filtered, Taken, filter_candidates
from limbeck.generation.select.keep import Chosen, PassRate, choose, final_answer, more_samples, pass_rates

__all__ = [
    "CardFacts",
    "Chosen",
    "EvaluationIndex",
    "Filtered",
    "PassRate",
    "Taken",
    "TeacherFacts",
    "choose",
    "filter_candidates",
    "final_answer",
    "more_samples",
    "pass_rates",
    "write_data_set",
    "write_prompts",
]
