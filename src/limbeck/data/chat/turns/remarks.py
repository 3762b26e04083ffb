"""What is said once of a corpus whose chat template hides or loses something."""

DROPPED_TEXT = "the chat template writes nothing of the text that stands beside a tool call"
DROPPED_THOUGHTS = "the chat template writes nothing of the thoughts in a last answer, so they are not learned"
EMPTY = "an answer is empty: it teaches to say nothing"
ASKED_NOTHING = "a turn of `user` is empty: an answer to nothing is learned"
ENDLESS = (
    "no token of the chat template ends an answer, or not every one: at most what it writes after each (a newline) "
    "is learned as its end"
)
NOWHERE = "an answer is empty, and its end cannot be found in what the chat template writes: nothing is learned of it"
HEADED = (
    "the chat template does not say how it asks for an answer: all that stands before one in its turn is read, though "
    "more than a header may be among it"
)
DROPPED_MESSAGE = "the chat template writes nothing of a message of role `{}`: answers are learned without it"
DATED = "the chat template writes a date: it is told {} (`data.date`)"
SECOND_THOUGHT = "an answer holds several thoughts: those after the first are learned as a part of its text"
DROPPED_PART = (
    "the chat template leaves out a part of an answer that holds several thoughts, or text before one: that part is "
    "not learned"
)
DOUBLED_THOUGHTS = "the chat template writes an empty thought before the thoughts of an answer: both are written"
