"""`python -m assay` is `assay`."""

from assay.cli.main import app

if __name__ == "__main__":
    app(prog_name="assay")
