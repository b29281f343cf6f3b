"""The version of align."""

VERSION = "0.1.0"
