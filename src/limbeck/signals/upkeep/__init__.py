"""What keeps stores of signals in order: looking into them, checking, mending and joining them."""
