"""The coordinator's Flower ServerApp: find the plan that the run names, and lead it."""

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.host import Host
from coordinator.rounds import RoundRecord
from coordinator.strategy import Conductor

_TIMEOUT_S = 120.0


def server_app(host: Host, *, on_round: Callable[[RoundRecord], None]) -> ServerApp:
    """A ServerApp that leads the run of the plan in its run configuration.

    Args:
        host: The coordinator's memory.
        on_round: Called after each round is durable.

    Returns:
        An app that reads `plan`, a digest, from the run configuration.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        digest = str(context.run_config["plan"])
        Conductor(grid, host, digest, on_round=on_round, timeout_s=_TIMEOUT_S).lead()

    return app
