"""Report what the rows look like, how long they are, and what may be wrong with them."""
