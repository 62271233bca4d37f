"""`python -m embedded up`: the commands of this package alone, also where no `mpo` is installed."""

import typer

from embedded.commands import register

app = typer.Typer(no_args_is_help=True)
register(app)
if __name__ == "__main__":
    app()
