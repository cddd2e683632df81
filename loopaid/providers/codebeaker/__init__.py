"""Sessions on a CodeBeaker server."""
