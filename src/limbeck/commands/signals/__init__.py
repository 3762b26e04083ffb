"""``limbeck signals``, a file for what is done with stores and one for what others wrote."""
