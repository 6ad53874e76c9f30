"""`python -m casestudy`: the command line, where its script is not on the path."""

from casestudy.cli import main

if __name__ == "__main__":
    main()
