"""`python -m lib COMMAND`: the entry point of the commands in `lib/cli`."""

from lib.cli.app import app
from lib.cli.options import run_command_line

if __name__ == "__main__":
    run_command_line(app)
