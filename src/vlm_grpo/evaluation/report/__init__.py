"""HTML pages of evaluations (`page`, `samples`), comparisons and training runs (`dashboard`)."""
