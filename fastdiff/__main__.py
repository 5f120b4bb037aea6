"""`python -m fastdiff` is the command `fastdiff`."""

from fastdiff.cli.app import main

if __name__ == "__main__":
    main()
