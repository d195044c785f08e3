"""A report on a run: chapter 10 executed on it, as one HTML file, with the whole table beside it."""
