"""The fast engine under the metrics: factors shared by them, Gram matrices, and 16-bit floats read as integers."""
