"""The fast engine under the metrics, which knows nothing above it. The formulas themselves are in ``metrics``.

``gram`` makes Gram matrices and their eigenvalues block by block (``TallMatrix`` stands for a matrix by its small
side), ``symmetric_eigen`` finds a few eigenvectors of one, ``factors`` puts both together to singular values and
leading singular vectors that all metrics share, and ``bf16_bits`` reads 16-bit floats as integers: order statistics by
counting.
"""
