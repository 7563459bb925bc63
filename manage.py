#!/usr/bin/env python
import sys

from exhaust.management import execute

if __name__ == "__main__":
    execute(sys.argv)
