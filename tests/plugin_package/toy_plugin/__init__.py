"""A package of somebody else: a scaffold, a kind of evidence and a metric, known to shoulders by entry points alone."""
