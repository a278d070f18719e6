"""`python -m whet.cli`: the same as `whet`."""

from whet.cli import main

if __name__ == "__main__":
    main()
