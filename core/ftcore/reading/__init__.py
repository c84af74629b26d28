"""From a file in any form that people keep rows in to its rows, one after the other, without holding the file."""
