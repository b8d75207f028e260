"""From data rows to rollouts: encoded prompts, completions, tool turns, and the batch that the loss is given."""
