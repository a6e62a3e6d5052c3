"""`python -m hpcqa` is `hpcqa`."""

from hpcqa.cli import main

if __name__ == "__main__":
    main()
