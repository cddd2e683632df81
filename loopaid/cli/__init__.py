"""The client tool, `loopai`. Knows the client library and the wire's types, never the daemon's inside."""
