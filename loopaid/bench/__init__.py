"""Measurements of a real daemon on this machine: `loopai bench`. Never part of the tests, which check no times."""
