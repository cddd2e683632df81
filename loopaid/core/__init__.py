"""Decisions, pure: what happened and when goes in, what is to be done comes out. No I/O, no clock."""
