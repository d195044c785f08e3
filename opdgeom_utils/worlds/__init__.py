"""Problems that others set, behind the protocol of the loop (:class:`opdgeom_utils.problems.Tasks`)."""
