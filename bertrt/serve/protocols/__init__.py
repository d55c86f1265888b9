"""The protocols: a module each, with its endpoints, its bodies and its words for errors."""
