"""Every form in which a trainer leaves a checkpoint, as named matrices; :mod:`opdgeom_utils.checkpoints` opens them."""
