"""From a text to token ids, and what is asked of a text before. Knows no model and no task."""
