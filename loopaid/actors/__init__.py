"""The actors: each owns one piece of mutable state and carries out what `loopaid.core` decides."""
