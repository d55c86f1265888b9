"""bertrt in the places of other libraries: a module for each, which imports that library."""
