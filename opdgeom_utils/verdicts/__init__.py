"""From a claim and the tables to a verdict: schema, statistics, matches, words; :mod:`opdgeom_utils.claims` judges."""
