"""`python -m app`: the parser, and one module for each group of commands.

In come the words of a command line. Heavy imports happen inside the handlers, so that
`--help` and configuration errors answer at once.
"""
