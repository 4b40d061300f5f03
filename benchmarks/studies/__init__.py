"""Studies: the measurements behind pages and tables. They run from a clone and are in no wheel."""
