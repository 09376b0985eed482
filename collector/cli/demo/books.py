"""The figures of a demo, and the claim that they agree."""

import click
import msgspec


class Books(msgspec.Struct):
    """Of one collector: it and its apps live all the while, so that every figure is exact."""

    sent: int = 0
    """In requests that were answered."""
    sent_distinct: int = 0
    accepted: int = 0
    duplicates: int = 0
    waiting: int = 0
    delivered: int = 0
    sandbox_received: int = 0
    sandbox_distinct: int = 0

    def claims(self) -> dict[str, bool]:
        """Every equation that should hold at the end, and whether it does."""
        return {
            f"sent {self.sent:,} = accepted {self.accepted:,} + duplicates {self.duplicates:,}": self.sent
            == self.accepted + self.duplicates,
            f"accepted {self.accepted:,} = distinct events sent {self.sent_distinct:,}": self.accepted
            == self.sent_distinct,
            f"delivered {self.delivered:,} = accepted {self.accepted:,}": self.delivered == self.accepted,
            f"distinct at the sandbox {self.sandbox_distinct:,} = accepted {self.accepted:,}": self.sandbox_distinct
            == self.accepted,
            f"waiting {self.waiting:,} = 0": self.waiting == 0,
        }

    def disagreements(self) -> list[str]:
        """Every equation that should hold at the end and does not."""
        return [claim for claim, holds in self.claims().items() if not holds]

    def lines(self) -> list[tuple[str, int, str]]:
        """Each figure with its name, and what else there is to say about it."""
        return [
            ("sent by the apps", self.sent, f"of these distinct {self.sent_distinct:,}"),
            ("accepted", self.accepted, ""),
            ("duplicates", self.duplicates, ""),
            ("delivered", self.delivered, ""),
            ("still waiting", self.waiting, ""),
            ("distinct at the sandbox", self.sandbox_distinct, f"received {self.sandbox_received:,}"),
        ]

    def show(self) -> None:
        """They are printed, with the verdict."""
        click.echo("\nThe books")
        for name, value, more in self.lines():
            click.echo(f"  {name:<26}{value:>8,}   {more}".rstrip())
        if disagreements := self.disagreements():
            click.echo("\nThey do NOT agree:\n  " + "\n  ".join(disagreements))
        else:
            click.echo("\nThey agree: every event that was accepted is at the sandbox, once.")


class FleetBooks(Books):
    """Of a fleet that loses a collector.

    What that one had stored without saying so any more is a duplicate when it is sent again, and what it had delivered
    without saying so any more is delivered again: so much is in doubt, and no more.
    """

    in_doubt: int = 0
    """Distinct events that were sent again because the answer was an error or none at all."""
    replicas: list[int] = []
    """Messages in each server's copy of the stream."""

    def claims(self) -> dict[str, bool]:
        """Every equation that should hold at the end, and whether it does."""
        return {
            f"sent {self.sent:,} = accepted {self.accepted:,} + duplicates {self.duplicates:,}": self.sent
            == self.accepted + self.duplicates,
            f"distinct events sent {self.sent_distinct:,} = accepted {self.accepted:,}, "
            f"or up to {self.in_doubt:,} more": 0 <= self.sent_distinct - self.accepted <= self.in_doubt,
            f"distinct at the sandbox {self.sandbox_distinct:,} = distinct events sent {self.sent_distinct:,}": (
                self.sandbox_distinct == self.sent_distinct
            ),
            f"delivered {self.delivered:,} is at most received at the sandbox {self.sandbox_received:,}": (
                self.delivered <= self.sandbox_received
            ),
            f"waiting {self.waiting:,} = 0": self.waiting == 0,
            f"messages {self.replicas} on each server are the same": len(set(self.replicas)) == 1,
        }

    def lines(self) -> list[tuple[str, int, str]]:
        """Each figure with its name, and what else there is to say about it."""
        sent, accepted, duplicates, delivered, *rest = super().lines()
        return [
            sent,
            (*accepted[:2], f"{self.in_doubt:,} were sent again, as no answer had come"),
            duplicates,
            (*delivered[:2], "as far as known of the collector that was killed"),
            *rest,
        ]
