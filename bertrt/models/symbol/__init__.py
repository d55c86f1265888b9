"""MXNet's `*-symbol.json` and `*.params`, read into the compiler's graph without MXNet."""
