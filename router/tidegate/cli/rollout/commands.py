"""``tidegate rollout``: the table of its commands.

tidegate rollout lint vision-int8.yaml
tidegate rollout simulate vision-int8.yaml --candidate failures=2%
tidegate rollout apply -f vision-int8.yaml --wait
tidegate rollout watch vision-int8
tidegate rollout report vision-int8 -o report.html
"""

import typer

from tidegate.cli.rollout import applying, linting, reporting, showing, simulating

__all__ = ["app"]

app = typer.Typer(
    help="Apply, watch and command rollouts, and try them before.", no_args_is_help=True
)
app.command("apply")(applying.apply)
app.command("list")(showing.list_rollouts)
app.command("get")(showing.get)
app.command("watch")(showing.watch)
app.command("explain")(showing.explain)
app.command("history")(showing.history)
app.command("pause")(applying.pause)
app.command("resume")(applying.resume)
app.command("promote")(applying.promote)
app.command("abort")(applying.abort)
app.command("retry")(applying.retry)
app.command("undo")(applying.undo)
app.command("delete")(applying.delete)
app.command("report")(reporting.report)
app.command("simulate")(simulating.simulate)
app.command("lint")(linting.lint)
