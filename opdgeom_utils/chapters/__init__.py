"""What the book's chapters show: tables shaped for a figure, sentences computed from numbers, the plan of a report."""
