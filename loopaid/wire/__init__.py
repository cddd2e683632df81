"""The protocols, sans-IO: bytes in, values out. Nothing here knows a socket or a clock."""
