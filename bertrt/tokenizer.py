"""Where `Encoding` was in version 0.1.0, and is still named by what was pickled then."""

from bertrt.text.encoding import Encoding

__all__ = ["Encoding"]
