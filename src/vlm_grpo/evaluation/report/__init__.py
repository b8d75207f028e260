"""HTML pages of evaluations (`page`, `samples`), comparisons and running trainings (`dashboard`)."""
