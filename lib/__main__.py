"""`python -m lib COMMAND`: what may be done by hand; see `lib/cli`."""

from lib.cli.app import main

if __name__ == "__main__":
    main()
