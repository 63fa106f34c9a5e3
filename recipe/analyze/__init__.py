"""Stage analyze: a report on the rows, their lengths and what may be wrong with them."""
