"""Arms with a known fault, to see whether the instrument finds it: not registered but while it is calibrated."""
