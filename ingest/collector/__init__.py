"""The collector: every source's endpoint on an event loop, with group commit.

A request waits on the loop and costs no thread. What waits at the same time is stored together, in
one commit, and each request is answered with its own counts after that commit.
"""
