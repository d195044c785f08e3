"""Research questions 2 and 3, measured on finished runs: paths, function and gradients, as one long table."""
