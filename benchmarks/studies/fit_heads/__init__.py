"""`fit_head` beside scikit-learn."""
