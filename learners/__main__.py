"""`python -m learners`."""

from learners.cli import main

if __name__ == "__main__":
    main()
